"""Frames between host and agent: four bytes of length, then that much JSON."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

IN, OUT = 0, 1  # the host is at the other end of stdin and stdout
MAX_INCOMING = 128 << 20  # the host is trusted, its frames are still bounded
_LENGTH = struct.Struct(">I")


class HostGone(Exception):
    """The other end of the stream is closed: nobody waits for an answer."""


def _read_exactly(fd: int, size: int) -> bytes:
    chunks = []
    while size:
        chunk = os.read(fd, min(size, 1 << 20))
        if not chunk:
            raise HostGone
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def read(fd: int) -> Any:
    (length,) = _LENGTH.unpack(_read_exactly(fd, _LENGTH.size))
    if length > MAX_INCOMING:
        raise HostGone
    return json.loads(_read_exactly(fd, length).decode("utf-8"))


def write(fd: int, message: dict[str, Any]) -> None:
    payload = json.dumps(message, separators=(",", ":")).encode("ascii")
    data = memoryview(_LENGTH.pack(len(payload)) + payload)
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BrokenPipeError:
            raise HostGone from None
