"""Frames: four bytes of length, then that much of a message.

What comes from the host is marshalled, and what goes between the agent and its warm interpreters;
what the host is told is JSON. The `json` module isn't used: it takes longer to import than all the
agent.
"""

from __future__ import annotations

import marshal
import os

try:
    from _json import encode_basestring_ascii as _quoted
except ImportError:
    from json.encoder import encode_basestring_ascii as _quoted

TYPE_CHECKING = False  # nor is typing
if TYPE_CHECKING:
    from typing import Any

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
    _send(OUT, json_of(message).encode("ascii"))


def json_of(value: Any) -> str:
    """JSON of what a message holds: texts, numbers, and lists and mappings of them."""
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, dict):
        pairs = ["%s:%s" % (_quoted(key), json_of(one)) for key, one in value.items()]
        return "{%s}" % ",".join(pairs)
    if isinstance(value, (list, tuple)):
        return "[%s]" % ",".join([json_of(one) for one in value])
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _send(fd: int, payload: bytes) -> None:
    data = memoryview(len(payload).to_bytes(LENGTH_BYTES, "big") + payload)
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BrokenPipeError:
            raise HostGone from None
