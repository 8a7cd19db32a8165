"""Frames: four bytes of length, then that much of a message.

What comes from the host is marshalled, and what goes between the agent and its warm interpreters;
what the host is told is JSON. The `json` module isn't used: it takes longer to import than all the
agent.
"""

from __future__ import annotations

import marshal
import os

TYPE_CHECKING = False  # nor is typing
if TYPE_CHECKING:
    from typing import Any

encode: Any  # from a message and 0 to parts of its text
try:
    from _json import encode_basestring_ascii, make_encoder

    # As json.encoder calls it: compact, sorting and skipping nothing. NaN is the host's to refuse.
    encode = make_encoder(None, repr, encode_basestring_ascii, None, ":", ",", False, False, True)
except (ImportError, TypeError):  # a Python that has it no more, or makes it otherwise
    from json import JSONEncoder

    encode = JSONEncoder(separators=(",", ":")).iterencode

IN, OUT = 0, 1  # the host is at the other end of stdin and stdout
MAX_INCOMING = 128 << 20  # the host is trusted, its frames are still bounded
LENGTH_BYTES = 4
ANY_VERSION = 2  # of marshal's: every Python 3 reads it


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
    """One message; raises ValueError for what is none."""
    length = int.from_bytes(_read_exactly(fd, LENGTH_BYTES), "big")
    if length > MAX_INCOMING:
        raise HostGone
    payload = _read_exactly(fd, length)
    try:
        return marshal.loads(payload)
    except (EOFError, TypeError) as error:
        raise ValueError("not a message: %s" % error) from None


def write(fd: int, message: dict[str, Any]) -> None:
    _send(fd, marshal.dumps(message, ANY_VERSION))


def tell_host(message: dict[str, Any]) -> None:
    _send(OUT, "".join(encode(message, 0)).encode("ascii"))


def _send(fd: int, payload: bytes) -> None:
    data = memoryview(len(payload).to_bytes(LENGTH_BYTES, "big") + payload)
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BrokenPipeError:
            raise HostGone from None
