"""Submissions: what models answered, read line by line from a file, stdin or an iterator.

What can't be used becomes a `Rejected` in its place in the stream, never an exception: one bad
line costs that line.
"""

import hashlib
import io
import json
import os
import stat
import sys
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import AsyncExitStack, closing, nullcontext
from typing import Any, BinaryIO, cast

import anyio
import anyio.to_thread
import msgspec

from mlbench_exec.errors import InputError
from mlbench_exec.samples import Key, Sample

STDIN = "-"
LINE_LIMIT_BYTES = 64 << 20
_CHUNK_BYTES = 64 << 10
_BOM = b"\xef\xbb\xbf"
_ID_LIMIT = 1 << 63

Source = str | os.PathLike[str] | BinaryIO


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """A model's outputs for one row.

    An element that is not a string stands as `None`: that output can't be judged, the others can.
    Strings may hold lone surrogates, as JSON's escapes can.
    """

    github_id: int
    id: int
    outputs: tuple[str | None, ...]
    place: str  # file and line, or the item of an iterator

    @property
    def key(self) -> Key:
        return (self.github_id, self.id)


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    """A submission that can't be used, and why. The ids are null where they can't be read."""

    place: str
    reason: str
    github_id: int | None = None
    id: int | None = None


def output_hash(code: str) -> str:
    """32 hexadecimal digits that tell outputs apart; lone surrogates are allowed."""
    return hashlib.sha256(code.encode("utf-8", "surrogatepass")).hexdigest()[:32]


# One line.


def parse_line(line: bytes, place: str) -> Submission | Rejected | None:
    """Read one line of OUTPUTS; `None` for a blank one. Nothing in the line makes it raise."""
    line = line.removeprefix(_BOM).strip()
    if not line:
        return None
    try:
        row = decode_json(line)
    except ValueError as error:
        return Rejected(place=place, reason=str(error))
    return _from_row(row, place)


def decode_json(text: bytes) -> Any:
    """Decode one JSON value, keeping lone surrogates; `ValueError` says what is wrong with it."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, ValueError):
        pass  # the slower decoder takes surrogates, and has the better messages
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8 (byte {error.start} of the line): save the file as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not valid JSON ({error.msg} at column {error.colno}): "
            "each line must hold one whole JSON object"
        ) from None
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON: write null, or leave the key out")


def _from_row(row: object, place: str) -> Submission | Rejected:
    if not isinstance(row, Mapping):
        shape = '{"github_id": …, "id": …, "output": […]}'
        return Rejected(place=place, reason=f"is {_kind(row)}, not an object: write {shape}")
    problem = _id_problem(row, "github_id") or _id_problem(row, "id") or _output_problem(row)
    if problem is not None:
        return Rejected(
            place=place,
            reason=problem,
            github_id=_id(row.get("github_id")),
            id=_id(row.get("id")),
        )
    return Submission(
        github_id=row["github_id"],
        id=row["id"],
        outputs=tuple(one if isinstance(one, str) else None for one in row["output"]),
        place=place,
    )


def _id(value: object) -> int | None:
    return value if type(value) is int and -_ID_LIMIT <= value < _ID_LIMIT else None


def _id_problem(row: Mapping[Any, Any], name: str) -> str | None:
    if name not in row:
        return f'has no "{name}": add the one of the dataset\'s row'
    value = row[name]
    if _id(value) is not None:
        return None
    if isinstance(value, str):
        digits = value.strip()
        step = f': write "{name}": {int(digits)}' if _is_short_number(digits) else ""
        return f"{name} is the string {_shown(value)}, but ids are integers{step}"
    if type(value) is int:
        return f"{name} is too large for an id: use the dataset's own"
    return f"{name} is {_kind(value)}, but ids are integers: use the dataset's own"


def _output_problem(row: Mapping[Any, Any]) -> str | None:
    if "output" not in row:
        return 'has no "output": add the list of the model\'s outputs'
    match row["output"]:
        case str():
            return "output is a string, not a list of strings: wrap it in a list"
        case []:
            return "output is an empty list: give at least one output, or leave the row out"
        case list() | tuple():
            return None
        case other:
            return f"output is {_kind(other)}, not a list of strings: wrap each output as a string"


def _is_short_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


def _shown(text: str) -> str:
    return json.dumps(text if len(text) <= 40 else text[:39] + "…")


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list() | tuple():
            return "a list"
        case Mapping():
            return "an object"
        case other:
            return f"a {type(other).__name__}"


# Many lines.


class LineSplitter:
    """Cuts chunks into numbered lines, holding no more than one line of at most `limit_bytes`.

    A line over the limit comes as `None`; its bytes are let go as they arrive.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held = bytearray()
        self._is_over = False
        self._number = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes | None]]:
        start = 0
        while (end := chunk.find(b"\n", start)) != -1:
            self._hold(chunk[start:end])
            yield self._cut()
            start = end + 1
        self._hold(chunk[start:])

    def finish(self) -> Iterator[tuple[int, bytes | None]]:
        """The last line, where no newline ends it."""
        if self._held or self._is_over:
            yield self._cut()

    def _hold(self, part: bytes) -> None:
        if self._is_over or len(self._held) + len(part) > self._limit_bytes:
            self._is_over = True
            self._held.clear()
        else:
            self._held += part

    def _cut(self) -> tuple[int, bytes | None]:
        line = None if self._is_over else bytes(self._held)
        self._held.clear()
        self._is_over = False
        self._number += 1
        return self._number, line


async def read_submissions(
    source: Source, *, line_limit_bytes: int = LINE_LIMIT_BYTES
) -> AsyncIterator[Submission | Rejected]:
    """Read a JSONL file, pipe or binary stream ("-": stdin) as its lines arrive.

    Memory is bounded by the longest line, and a line by `line_limit_bytes`. Raises `InputError`
    where the source can't be read. A stream that was passed in is left open.
    """
    name = _name(source)
    splitter = LineSplitter(line_limit_bytes)
    try:
        with _open(source) as file:
            while chunk := await _read(file):
                for line in splitter.feed(chunk):
                    if item := _parse_cut(line, name, line_limit_bytes):
                        yield item
            for line in splitter.finish():
                if item := _parse_cut(line, name, line_limit_bytes):
                    yield item
    except OSError as error:
        raise InputError(
            f"{name}: can't be read ({error.strerror or error}): check the path of OUTPUTS"
        ) from error


def _parse_cut(
    cut: tuple[int, bytes | None], name: str, limit_bytes: int
) -> Submission | Rejected | None:
    number, line = cut
    place = f"{name}:{number}"
    if line is None:
        reason = f"the line is longer than {limit_bytes} bytes: shorten its outputs"
        return Rejected(place=place, reason=reason)
    return parse_line(line, place)


def _name(source: Source) -> str:
    if isinstance(source, str | os.PathLike):
        return "<stdin>" if source == STDIN else os.fspath(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "<stream>"


def _open(source: Source) -> closing[BinaryIO] | nullcontext[BinaryIO]:
    if not isinstance(source, str | os.PathLike):
        return nullcontext(source)
    if source == STDIN:
        return nullcontext(_stdin())
    try:
        file = io.FileIO(source, opener=_open_at_once)
    except ValueError as error:  # a NUL byte in the path
        raise OSError(str(error)) from None
    return closing(cast(BinaryIO, file))


def _open_at_once(path: str, flags: int) -> int:
    """Without O_NONBLOCK, opening a named pipe waits in the kernel for its writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _stdin() -> BinaryIO:
    """Unbuffered where stdin is a real one: its buffer's lock, held by a blocked read, is fatal
    to the interpreter's exit."""
    if sys.stdin is None:
        raise InputError("<stdin>: is closed: pipe the outputs in, or name a file")
    try:
        descriptor = sys.stdin.fileno()
    except (OSError, ValueError):  # a stand-in for stdin, without a descriptor
        return sys.stdin.buffer
    return cast(BinaryIO, io.FileIO(descriptor, closefd=False))


async def _read(file: BinaryIO) -> bytes:
    """What the file has to give now, at least one byte; empty at its end.

    Worker threads are joined when the interpreter exits, so a thread that waits for a pipe would
    keep a cancelled program alive: the event loop does the waiting, and the thread only reads.
    """
    read_some = getattr(file, "read1", file.read)
    while True:
        if isinstance(file, io.FileIO):
            await _wait_readable(file)
        chunk = await anyio.to_thread.run_sync(read_some, _CHUNK_BYTES, abandon_on_cancel=True)
        if chunk is not None:  # None: another reader of a non-blocking pipe was faster
            return cast(bytes, chunk)


async def _wait_readable(file: io.FileIO) -> None:
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return
    try:
        await anyio.wait_readable(file)
    except PermissionError:  # epoll refuses what never blocks, such as /dev/null
        return


# Whatever a caller has.


async def as_submissions(
    items: Iterable[object] | AsyncIterable[object],
) -> AsyncGenerator[Submission | Rejected, None]:
    """Take `Submission`s, `Rejected`s or dicts shaped like a line, from any iterable.

    Anything else becomes a `Rejected`. A plain iterable is advanced on the event loop. Closing
    this closes `items`, where they can be closed.
    """
    number = 0
    async with AsyncExitStack() as stack:
        if isinstance(items, AsyncIterable):
            _close_with(stack, items)
            async for item in items:
                number += 1
                yield _from_item(item, number)
        else:
            for item in items:
                number += 1
                yield _from_item(item, number)


def gold_submissions(samples: Mapping[Key, Sample]) -> Iterator[Submission | Rejected]:
    """The dataset's own answers, as if a model had given one for each row."""
    for (github_id, row_id), sample in samples.items():
        place = f"the dataset's row {github_id}/{row_id}"
        if sample.gold:
            yield Submission(github_id=github_id, id=row_id, outputs=(sample.gold,), place=place)
        else:
            reason = "it has no answer of its own: its `output` column is missing or empty"
            yield Rejected(place=place, reason=reason, github_id=github_id, id=row_id)


async def screen(
    items: AsyncIterable[Submission | Rejected],
    samples: Mapping[Key, Sample],
    *,
    split: str = "full",
    bad_rows: Mapping[Key, str] | None = None,
) -> AsyncGenerator[Submission | Rejected, None]:
    """Let through one submission for each row of the dataset; the others become `Rejected`.

    `bad_rows` are rows that the dataset has but that can't be used, each with the reason.

    Of those with the same key the first counts. Remembers keys and places, never outputs. Closing
    this closes `items`, where they can be closed.
    """
    seen: dict[Key, str] = {}
    async with AsyncExitStack() as stack:
        _close_with(stack, items)
        async for item in items:
            if isinstance(item, Rejected):
                yield item
            elif bad_rows and item.key in bad_rows and item.key not in samples:
                yield _reject(item, f"has a row that can't be used: {bad_rows[item.key]}")
            elif item.key not in samples:
                yield _reject(
                    item, f"is not in the dataset (split {split}): check --dataset and --split"
                )
            elif item.key in seen:
                first = seen[item.key]
                yield _reject(item, f"was given at {first} already: the first counts; remove one")
            else:
                seen[item.key] = item.place
                yield item


def _reject(submission: Submission, reason: str) -> Rejected:
    github_id, row_id = submission.key
    return Rejected(
        place=submission.place,
        reason=f"github_id {github_id}, id {row_id} {reason}",
        github_id=github_id,
        id=row_id,
    )


def _from_item(item: object, number: int) -> Submission | Rejected:
    if isinstance(item, Submission | Rejected):
        return item
    return _from_row(item, f"item {number}")


def _close_with(stack: AsyncExitStack, items: AsyncIterable[Any]) -> None:
    aclose = getattr(items, "aclose", None)
    if aclose is not None:
        stack.push_async_callback(aclose)
