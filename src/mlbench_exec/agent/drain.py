"""Drain: what a program prints, bounded."""

from __future__ import annotations

import os


class Drain:
    """The first and the last bytes of a stream, with the count of all."""

    def __init__(self, fd: int, limit: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.total = 0
        self.is_open = True
        self._half = limit // 2
        self._head = bytearray()
        self._tail = bytearray()

    def pull(self, rounds: int = 16) -> None:
        """Read what is there, `rounds` chunks at most."""
        for _ in range(rounds):
            try:
                chunk = os.read(self.fd, 65536)
            except BlockingIOError:
                return
            if not chunk:
                self.is_open = False
                return
            self.total += len(chunk)
            room = self._half - len(self._head)
            if room > 0:
                self._head += chunk[:room]
                chunk = chunk[room:]
            if chunk:
                self._tail += chunk
                if len(self._tail) > self._half:
                    del self._tail[: len(self._tail) - self._half]

    def pull_rest(self) -> None:
        """Read to the end, once nobody is left to write; bounded by what a pipe holds."""
        self.pull(rounds=64)

    def text(self) -> str:
        head = self._head.decode("utf-8", "replace")
        cut = self.total - len(self._head) - len(self._tail)
        tail = bytes(self._tail)
        if not cut:
            return bytes(self._head + self._tail).decode("utf-8", "replace")
        return "%s\n[... %d bytes left out ...]\n%s" % (head, cut, tail.decode("utf-8", "replace"))

    def raw(self) -> bytes:
        return bytes(self._head + self._tail)
