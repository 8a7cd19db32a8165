"""What an agent and its warm interpreters have agreed on: descriptors, a page, what is sent.

The interpreter gets a page that its forks share with the agent: what they charge, how many programs
started, and why one refused.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from typing import Any

    from mlbench_exec.agent.program import Program

CHANNEL, PAGE = 3, 4  # descriptors that the agent leaves open
PAGE_BYTES = 4096
MOST_ASKED_BYTES = 8192  # a folder may have a path of half as many
CHARGED = struct.Struct("=d")  # at 0
STARTS = struct.Struct("=I")
STARTS_AT, REFUSED_AT = 8, 12
REASON_AT, REASON_BYTES = 64, 1024
PREFIX, FILLING = "/.mlbench-exec-place", "-" * 4200
PLACE = PREFIX + FILLING  # what it is told to run: longer than any path


def is_exotic(code: bytes | None) -> bool:
    """Whether a program could lose its `__file__` by itself: what tells how it ended."""
    return code is None or (b"__file__" in code and (b"del" in code or b"pop" in code))


def sent_world(world: Any) -> dict[str, Any]:
    """What a warm interpreter's own World is made from."""
    return {
        "uid": world.uid,
        "gid": world.gid,
        "inner_uid": world.inner_uid,
        "inner_gid": world.inner_gid,
        "nproc": world.nproc,
        "filter": world.filter,
        "has_memory": world.counters.has_memory,
    }


def sent_program(one: Program) -> dict[str, Any]:
    return dict(vars(one))
