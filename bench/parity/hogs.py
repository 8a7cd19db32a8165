"""Hogs: processes from outside the engine that keep every core busy."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

# Each looks a thousand times a second or less whether its parent is still there: a benchmark that
# is killed leaves no busy process behind.
SOURCE = """\
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(10000): pass
"""


@contextlib.contextmanager
def hogs(count: int) -> Iterator[None]:
    """Keep so many processes busy, each in a session of its own, while the block lasts."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", SOURCE],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def cores() -> int:
    return len(os.sched_getaffinity(0))
