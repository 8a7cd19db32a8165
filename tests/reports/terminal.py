"""Terminal: a command on a pseudo-terminal, and the screen that a person would see."""

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import pyte

POLL_S = 0.02


class Terminal:
    """A command whose stdin, stdout and stderr are a terminal of so many columns and lines.

    A context manager: leaving it kills what is left of the command.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        columns: int = 100,
        lines: int = 30,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.raw = b""
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self._lock = threading.Lock()
        self._master, slave = pty.openpty()
        self._set_size(columns, lines)
        base = {**os.environ, "TERM": "xterm-256color"}
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
            base.pop(name, None)
        self.process = subprocess.Popen(
            list(command),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**base, **(env or {})},
            cwd=cwd,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(30)
        self._thread.join(10)
        with contextlib.suppress(OSError):
            os.close(self._master)

    def text(self) -> str:
        """What stands on the screen."""
        with self._lock:
            return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def wait_for(self, seen: Callable[[str], bool], *, within_s: float = 60) -> str:
        """The screen's text once it is as wanted."""
        until = time.monotonic() + within_s
        while not seen(text := self.text()):
            assert time.monotonic() < until, f"never seen; the screen:\n{text}"
            time.sleep(POLL_S)
        return text

    def resize(self, columns: int, lines: int) -> None:
        with self._lock:
            self.screen.resize(lines, columns)
        self._set_size(columns, lines)

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait(self, *, within_s: float = 60) -> int:
        """The exit code, once all that was written has been read."""
        code = self.process.wait(within_s)
        self._thread.join(10)
        return code

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the last one that had it open is gone
                return
            if not data:
                return
            with self._lock:
                self.raw += data
                self._stream.feed(data)
