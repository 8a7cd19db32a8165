"""Fuzzing: whatever bytes come, readers answer with a value or with their own error, never more.

MLBENCH_FUZZ=N tries N inputs for each test instead of some hundreds.
"""

import ast
import contextlib
import itertools
import json
import os
import struct
import tempfile
import tomllib
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlbench_exec import wire
from mlbench_exec.cli import main
from mlbench_exec.environments import Environment, load_environments
from mlbench_exec.errors import InputError
from mlbench_exec.report.terminal import plain
from mlbench_exec.samples import parse_arguments, parse_sample
from mlbench_exec.submissions import Rejected, Submission, parse_line
from mlbench_exec.testing import observation
from mlbench_exec.wire import FrameBuffer, ProtocolError

TRIED = int(os.environ.get("MLBENCH_FUZZ", "0"))
fuzz = settings(
    max_examples=TRIED or 100,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(0 if TRIED else 120)]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
RESULT = msgspec.json.decode(msgspec.json.encode(wire.Result(observation=observation())))
FIELDS = sorted(RESULT["observation"])


@st.composite
def nearly_messages(draw: st.DrawFn) -> bytes:
    """A result with some of it put out of shape."""
    message = json.loads(json.dumps(RESULT))
    for name in draw(st.lists(st.sampled_from(FIELDS), max_size=3)):
        message["observation"][name] = draw(JSON)
    if draw(st.booleans()):
        message[draw(st.text(max_size=8) | st.sampled_from(["type", "spent"]))] = draw(JSON)
    return json.dumps(message).encode()


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """What an agent could send: frames, wrong lengths, garbage, cut anywhere."""
    payload = draw(
        nearly_messages() | st.binary(max_size=300) | JSON.map(lambda v: json.dumps(v).encode())
    )
    length = draw(st.just(len(payload)) | st.integers(0, 0xFFFFFFFF))
    data = struct.pack(">I", length) + payload + draw(st.binary(max_size=20))
    size = draw(st.integers(1, len(data)))
    return [data[start : start + size] for start in range(0, len(data), size)]


@fuzz
@given(chunks=streams())
def test_frames(chunks: list[bytes]) -> None:
    """Any bytes give a message of ours, ask for more, or are a `ProtocolError`."""
    frames = FrameBuffer()
    for chunk in chunks:
        frames.feed(chunk)
        try:
            message = frames.next_message()
        except ProtocolError:
            return
        if message is not None:
            assert isinstance(message, wire.Message)
            again = wire.frame(msgspec.json.encode(message))
            assert len(again) <= wire.MAX_FRAME_BYTES


LINES = st.one_of(
    st.binary(max_size=400),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {"github_id": JSON | st.integers(0, 20), "id": JSON | st.integers(0, 300)},
        optional={"output": JSON | st.lists(st.text() | st.none(), max_size=6)},
    ).map(lambda row: json.dumps(row).encode()),
)


@fuzz
@given(line=LINES)
@example(line=b'{"github_id": 1e400, "id": NaN}')
@example(line=b"[" * 100_000)
@example(line=b'{"github_id": 1, "id": 1, "output": ["\\ud800"]}')
def test_submissions(line: bytes) -> None:
    """Any line is blank, a submission of two integers, or rejected with a reason."""
    found = parse_line(line, "outputs.jsonl:1")
    match found:
        case Submission(github_id=github_id, id=row, outputs=outputs):
            assert type(github_id) is int
            assert type(row) is int
            assert all(output is None or type(output) is str for output in outputs)
        case Rejected(reason=reason, place=place):
            assert reason
            assert place == "outputs.jsonl:1"
        case None:
            assert not line.removeprefix(b"\xef\xbb\xbf").strip()


KEYS = [
    "github_ids",
    "repo",
    "workdir",
    "python",
    "conda_env",
    "image",
    "preload",
    "time_limit",
    "env",
    "mounts",
]
WORDS = st.text(max_size=12) | st.sampled_from(["/srv/r", "..", "/a/../b", "~", "\0", "/", "x:y"])
VALUES = (
    st.integers(-5, 2**70).map(str)
    | st.floats().map(repr)
    | WORDS.map(lambda text: json.dumps(text))
    | st.lists(st.integers(0, 20), max_size=3).map(str)
    | st.just("{}")
    | st.just("{python = nan, bash = -1}")
    | st.just('[{source = "/a", target = "/b/../../etc"}]')
)
TABLES = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6).map(
    lambda table: "\n".join(f"{key} = {value}" for key, value in table.items())
)
FILES = st.one_of(
    st.binary(max_size=300),
    TABLES.map(lambda text: f"[environments.own]\n{text}\n".encode("utf-8", "surrogatepass")),
    st.tuples(st.text(max_size=8), TABLES).map(
        lambda pair: f"[environments.{json.dumps(pair[0])}]\n{pair[1]}\n".encode(
            "utf-8", "surrogatepass"
        )
    ),
)


@fuzz
@given(content=FILES)
def test_environments(content: bytes) -> None:
    """Any file gives sound environments, or an `InputError` that names the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "environments.toml"
        path.write_bytes(content)
        try:
            found = load_environments(path)
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017 - either end is right
            return
    for environment in found:
        assert isinstance(environment, Environment)
        assert environment.workdir.startswith("/")
        assert ".." not in environment.workdir.split("/")
        assert all(0 < limit_s < float("inf") for limit_s in environment.time_limit_s.values())
    assert tomllib.loads(content.decode())


@fuzz
@given(value=st.text(max_size=200) | JSON.map(repr) | JSON)
@example(value="__import__('os').system('true')")
@example(value="{'a': " * 5000)
@example(value="{" + "-" * 10_000 + "1: 1}")
def test_arguments(value: object) -> None:
    """Any `arguments` column is a dict of texts or a `ValueError`; nothing of it is executed."""
    try:
        found = parse_arguments(value)
    except ValueError:
        return
    assert all(type(one) is str for pair in found.items() for one in pair)
    if isinstance(value, str):
        assert isinstance(ast.literal_eval(value), dict)


@fuzz
@given(row=st.dictionaries(st.sampled_from(["github_id", "id", "type", "arguments", "path"]), JSON))
def test_rows(row: dict[str, object]) -> None:
    """Any row of a dataset is a sample or an `InputError` that says where it stands."""
    try:
        sample = parse_sample(row, place="rows.jsonl:7")
    except InputError as error:
        assert "rows.jsonl:7" in str(error)  # noqa: PT017 - either end is right
        return
    assert type(sample.github_id) is int


@fuzz
@given(text=st.text())
@example(text="\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\u2066[red]x[/red]\r\n")
def test_nothing_changes_a_terminal(text: str) -> None:
    """What a report shows of foreign text is one line without controls, as text and not markup."""
    shown = plain(text, limit=10_000)
    assert not shown.spans
    assert not [c for c in shown.plain if ord(c) < 32 or 0x7F <= ord(c) < 0xA0]
    assert not {"\u202e", "\u2066", "\u2028", "\u200f"} & set(shown.plain)


OPTIONS = [
    (option, parameter.is_flag)
    for parameter in main.commands["run"].params
    if isinstance(parameter, click.Option) and parameter.name not in ("dataset", "gold")
    for option in parameter.opts
]
WORD = st.text(max_size=12) | st.sampled_from(
    [
        "0",
        "-1",
        "1e400",
        "nan",
        "8g",
        "none",
        "9/",
        "9/255,x",
        "/a:/b:rw",
        ":",
        "auto",
        "fair",
        "--",
    ]
)
FLAGS = st.lists(
    st.sampled_from(OPTIONS).flatmap(
        lambda pair: st.just([pair[0]]) if pair[1] else WORD.map(lambda word: [pair[0], word])
    )
    | WORD.map(lambda word: [word]),
    max_size=4,
)


@fuzz
@given(flags=FLAGS)
@example(flags=[["--memory", "9" * 5000 + "g"]])
@example(flags=[["--only", "1" * 5000]])
@example(flags=[["--mount", "\0:\0"]])
@example(flags=[["--weights", "~" + "x" * 300]])
def test_command_line(flags: list[list[str]]) -> None:
    """Any flags of a run that can't be are a message of a few lines, and exit code 2."""
    line = ["run", "-", "--dataset", "/nowhere/rows.jsonl", *itertools.chain(*flags)]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        result = CliRunner().invoke(main, line, input="")
    assert result.exception is None or isinstance(result.exception, SystemExit), line
    assert result.exit_code == 2, (line, result.output)
    assert "Traceback" not in result.output
