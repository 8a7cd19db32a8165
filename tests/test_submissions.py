"""Submissions: lines in, submissions or reasons out."""

import io
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbench_exec.dataset import load_dataset
from mlbench_exec.errors import InputError
from mlbench_exec.samples import Key, Sample
from mlbench_exec.submissions import (
    LineSplitter,
    Rejected,
    Submission,
    as_submissions,
    output_hash,
    parse_line,
    read_submissions,
    screen,
)

LINE = b'{"github_id": 3, "id": 74, "output": ["a", "b"]}'


def submission(github_id: int = 3, id: int = 74, place: str = "o.jsonl:1") -> Submission:
    return Submission(github_id=github_id, id=id, outputs=("a", "b"), place=place)


def sample(github_id: int, id: int) -> Sample:
    return Sample(
        github_id=github_id, id=id, repository="r", path="./", arguments={}, type="Python Code"
    )


async def collect(items: AsyncIterator[Submission | Rejected]) -> list[Submission | Rejected]:
    return [one async for one in items]


def test_a_line_becomes_a_submission() -> None:
    """A whole line gives its key, outputs and place; other keys are ignored."""
    assert parse_line(LINE, "o.jsonl:1") == submission()
    assert parse_line(LINE[:-1] + b', "model": [1]}\r\n', "o.jsonl:1") == submission()
    assert parse_line(b"\xef\xbb\xbf" + LINE, "o.jsonl:1") == submission()


@pytest.mark.parametrize("line", [b"", b"\r\n", b"  \t", b"\xef\xbb\xbf"])
def test_a_blank_line_is_nothing(line: bytes) -> None:
    """Blank lines are neither submissions nor mistakes."""
    assert parse_line(line, "p") is None


def test_outputs_that_are_no_strings_stand_as_none() -> None:
    """One bad element leaves the row's other outputs usable, at their own index."""
    item = parse_line(b'{"github_id": 1, "id": 2, "output": ["a", null, 3, ["b"], "c"]}', "p")
    assert isinstance(item, Submission)
    assert item.outputs == ("a", None, None, None, "c")


def test_lone_surrogates_are_kept() -> None:
    """Text that isn't valid Unicode arrives as the model wrote it, and can be hashed."""
    item = parse_line(b'{"github_id": 1, "id": 2, "output": ["a\\ud800", "\\ud83d\\ude00"]}', "p")
    assert isinstance(item, Submission)
    assert item.outputs == ("a\ud800", "\U0001f600")
    assert output_hash("a\ud800") != output_hash("a")


def test_output_hash_is_stable() -> None:
    """The hash is the first half of the SHA-256 digest, in hexadecimal."""
    assert output_hash("") == "e3b0c44298fc1c149afbf4c8996fb924"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not valid JSON"),
        (b'{"github_id": 1} {', "not valid JSON"),
        (b"[1]", "is a list, not an object"),
        (b'"text"', "is a string, not an object"),
        (b"null", "is null, not an object"),
        (b'{"id": 1, "output": ["a"]}', 'has no "github_id"'),
        (b'{"github_id": 1, "id": 2}', 'has no "output"'),
        (b'{"github_id": "12", "id": 2, "output": ["a"]}', 'write "github_id": 12'),
        (b'{"github_id": 1, "id": "x", "output": ["a"]}', 'id is the string "x", but ids are'),
        (b'{"github_id": 1, "id": true, "output": ["a"]}', "id is a boolean"),
        (b'{"github_id": 1, "id": 2.0, "output": ["a"]}', "id is a number, but ids are integers"),
        (b'{"github_id": 1, "id": null, "output": ["a"]}', "id is null"),
        (b'{"github_id": 1, "id": 99999999999999999999, "output": ["a"]}', "id is too large"),
        (b'{"github_id": 1, "id": ' + b"9" * 5000 + b', "output": ["a"]}', "not valid JSON"),
        (b'{"github_id": 1, "id": 1e999, "output": ["a"]}', "id is a number"),
        (b'{"github_id": NaN, "id": 2, "output": ["a"]}', "NaN is not JSON"),
        (b'{"github_id": 1, "id": 2, "output": ["a"], "x": NaN}', "NaN is not JSON"),
        (b'{"github_id": 1, "id": 2, "output": "abcde"}', "wrap it in a list"),
        (b'{"github_id": 1, "id": 2, "output": []}', "is an empty list"),
        (b'{"github_id": 1, "id": 2, "output": null}', "output is null"),
        (b'{"github_id": 1, "id": 2, "output": {"a": 1}}', "output is an object"),
        (b'{"github_id": 1, "id": 2, "output": ["\xff"]}', "not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' * 20_000 + b"1" + b"}" * 20_000, "nested too deeply"),
    ],
)
def test_a_bad_line_is_rejected_with_its_reason(line: bytes, reason: str) -> None:
    """Each mistake becomes a `Rejected` that says what is wrong and what to do."""
    item = parse_line(line, "o.jsonl:9")
    assert isinstance(item, Rejected)
    assert item.place == "o.jsonl:9"
    assert reason in item.reason


def test_a_rejected_line_names_the_ids_it_can() -> None:
    """The ids that can be read go with the reason."""
    item = parse_line(b'{"github_id": 1, "id": "2", "output": ["a"]}', "p")
    assert isinstance(item, Rejected)
    assert (item.github_id, item.id) == (1, None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
ROWS = st.fixed_dictionaries({}, optional={"github_id": JSON, "id": JSON, "output": JSON})


@pytest.mark.slow
@settings(deadline=None)
@given(st.binary() | JSON.map(json.dumps).map(str.encode) | ROWS.map(json.dumps).map(str.encode))
def test_no_line_raises(line: bytes) -> None:
    """Every line is a submission, a rejection or blank."""
    match parse_line(line, "p"):
        case Submission(github_id=github_id, id=row_id, outputs=outputs):
            assert type(github_id) is type(row_id) is int
            assert outputs
        case Rejected(reason=reason):
            assert reason
        case nothing:
            assert nothing is None


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.binary(max_size=8)), st.integers(0, 6))
def test_lines_are_cut_the_same_from_any_chunks(chunks: list[bytes], limit: int) -> None:
    """How bytes are chunked never shows, and no line over the limit comes through."""
    splitter = LineSplitter(limit)
    lines = [cut for chunk in chunks for cut in splitter.feed(chunk)] + list(splitter.finish())
    whole = b"".join(chunks).split(b"\n")
    if not whole[-1]:
        whole.pop()
    assert lines == [
        (number, line if len(line) <= limit else None) for number, line in enumerate(whole, 1)
    ]


@pytest.mark.asyncio
async def test_a_file_is_read_line_by_line(tmp_path: Path) -> None:
    """Places count blank lines, and an unfinished last line is judged like any other."""
    file = tmp_path / "o.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + LINE + b"\r\n\n{\n" + LINE.replace(b"74", b"75"))
    items = await collect(read_submissions(file))
    assert [one.place for one in items] == [f"{file}:1", f"{file}:3", f"{file}:4"]
    assert [type(one) for one in items] == [Submission, Rejected, Submission]


@pytest.mark.asyncio
async def test_a_line_that_is_too_long_costs_only_itself() -> None:
    """A line over the limit is rejected, and reading goes on behind its end."""
    stream = io.BytesIO(LINE + b"\n" + b"x" * 200_000 + b"\n" + LINE.replace(b"74", b"75"))
    items = await collect(read_submissions(stream, line_limit_bytes=100))
    assert [type(one) for one in items] == [Submission, Rejected, Submission]
    assert items[1].place == "<stream>:2"
    assert not stream.closed


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["missing.jsonl", ".", "\0"])
async def test_a_source_that_cannot_be_read_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing file, a folder and an impossible path are `InputError`s."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        await collect(read_submissions(name))
    assert str(caught.value).startswith(f"{name}: can't be read")


@pytest.mark.asyncio
async def test_what_never_blocks_can_be_read() -> None:
    """A device that the event loop can't watch reads as the empty file it is."""
    assert await collect(read_submissions(os.devnull)) == []


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes | None], None]]:
    """Put a pipe in stdin's place; call with bytes to write them, with None to end it."""
    reader, writer = os.pipe()
    ended = False

    def write(data: bytes | None) -> None:
        nonlocal ended
        if data is not None:
            os.write(writer, data)
        elif not ended:
            ended = True
            os.close(writer)

    with open(reader, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield write
        write(None)


@pytest.mark.asyncio
async def test_stdin_is_read_as_it_arrives(pipe: Callable[[bytes | None], None]) -> None:
    """A line is there as soon as its newline is, before the writer has ended."""
    items = read_submissions("-")
    with anyio.fail_after(5):
        pipe(LINE + b"\n" + LINE[:10])
        assert await anext(items) == submission(place="<stdin>:1")
        pipe(LINE[10:] + b"\n")
        assert await anext(items) == submission(place="<stdin>:2")
        pipe(None)
        assert await collect(items) == []


@pytest.mark.asyncio
async def test_waiting_for_stdin_can_be_cancelled(pipe: Callable[[bytes | None], None]) -> None:
    """No thread is left in a read: a cancelled wait ends at once, and loses no line."""
    with anyio.move_on_after(0.05) as scope:
        await collect(read_submissions("-"))
    assert scope.cancelled_caught
    pipe(LINE + b"\n")
    pipe(None)
    with anyio.fail_after(5):
        assert await collect(read_submissions("-")) == [submission(place="<stdin>:1")]


@pytest.mark.asyncio
async def test_a_named_pipe_waits_for_its_writer(tmp_path: Path) -> None:
    """A named pipe without a writer is waited for on the event loop, not taken for empty."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with anyio.move_on_after(0.05) as scope:
        await collect(read_submissions(fifo))
    assert scope.cancelled_caught
    items = read_submissions(fifo)

    def open_to_write() -> int | None:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            return None

    async with anyio.create_task_group() as group:

        async def write() -> None:
            while (descriptor := open_to_write()) is None:  # noqa: ASYNC110 - a pipe sends no event
                await anyio.sleep(0.01)
            os.write(descriptor, LINE)
            os.close(descriptor)

        group.start_soon(write)
        with anyio.fail_after(5):
            assert await collect(items) == [submission(place=f"{fifo}:1")]


@pytest.mark.asyncio
async def test_any_iterable_gives_submissions() -> None:
    """Submissions, rejections and dicts pass from plain and asynchronous iterables alike."""
    row = {"github_id": 3, "id": 74, "output": ("a", "b")}
    rejected = Rejected(place="p", reason="r")
    given_items: list[object] = [submission(), row, rejected, 7]

    async def stream() -> AsyncIterator[object]:
        for one in given_items:
            yield one

    items = await collect(as_submissions(given_items))
    assert items == await collect(as_submissions(stream()))
    assert items[:3] == [submission(), submission(place="item 2"), rejected]
    assert items[3] == Rejected(place="item 4", reason=items[3].reason)  # type: ignore[union-attr]


SAMPLES: dict[Key, Sample] = {(3, 74): sample(3, 74), (3, 75): sample(3, 75)}


@pytest.mark.asyncio
async def test_screening_keeps_the_first_of_each_known_key() -> None:
    """Unknown and repeated keys are rejected by name; the rest passes in order."""
    rejected = Rejected(place="o:0", reason="r")
    given_items = [
        rejected,
        submission(3, 74, "o:1"),
        submission(3, 99, "o:2"),
        submission(3, 74, "o:3"),
        submission(3, 75, "o:4"),
    ]
    items = await collect(screen(as_submissions(given_items), SAMPLES, split="full"))
    assert [items[0], items[1], items[4]] == [rejected, given_items[1], given_items[4]]
    assert items[2] == Rejected(
        place="o:2",
        reason="github_id 3, id 99 is not in the dataset (split full): check --dataset and --split",
        github_id=3,
        id=99,
    )
    assert isinstance(items[3], Rejected)
    assert "was given at o:1 already" in items[3].reason


@pytest.mark.asyncio
async def test_stopping_early_closes_what_it_reads_from() -> None:
    """Closing the screen closes the whole chain behind it."""
    closed = False

    async def stream() -> AsyncIterator[object]:
        nonlocal closed
        try:
            while True:
                yield submission()
        finally:
            closed = True

    items: Any = screen(as_submissions(stream()), SAMPLES)
    await anext(items)
    await items.aclose()
    assert closed


@pytest.mark.asyncio
async def test_real_submissions_are_known_or_named() -> None:
    """Of 73 real submissions 53 have their row in the test split, and the others are named."""
    folder = os.environ.get("MLBENCH_DATA")
    if not folder:
        pytest.skip("MLBENCH_DATA names no folder with ML-Bench's data")
    dataset = await anyio.to_thread.run_sync(load_dataset, f"{folder}/mlbench_full.jsonl")
    source = read_submissions(f"{folder}/model_outputs_pass5.jsonl")
    items = await collect(screen(source, dataset.samples, split=dataset.split))
    known = [one for one in items if isinstance(one, Submission)]
    unknown = [one for one in items if isinstance(one, Rejected)]
    assert (len(known), len(unknown)) == (53, 20)
    assert all(len(one.outputs) == 5 for one in known)
    assert all("is not in the dataset (split full)" in one.reason for one in unknown)


@pytest.mark.asyncio
async def test_a_row_that_the_dataset_has_but_cant_use_is_told_apart() -> None:
    """Its submission is not called unknown: the reason is that of the dataset's row."""

    async def rows() -> AsyncIterator[Submission | Rejected]:
        yield Submission(github_id=9, id=1, outputs=("x",), place="a.jsonl:1")

    bad_rows = {(9, 1): "arguments are a list, not a dict"}
    (rejected,) = await collect(screen(rows(), {}, bad_rows=bad_rows))
    assert isinstance(rejected, Rejected)
    assert rejected.reason == (
        "github_id 9, id 1 has a row that can't be used: arguments are a list, not a dict"
    )
