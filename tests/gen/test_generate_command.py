"""mlbench-gen generate and run, as programs: interrupted, killed, piped, continued."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from acceptance.command import read_lines
from gen.asking import KEY, good, number_of
from gen.programs import BIN, ROWS, WITHIN_S, arguments, dataset, environments
from mlbench_exec import InputError
from mlbench_gen.output import Output
from mlbench_gen.testing import Asked, Cut, Fault, Good, ModelServer, Response, Script

LOOKS_FOR_KEYS = """\
import glob, os
print(dict(os.environ))
for path in glob.glob("/proc/*/environ"):
    try:
        print(open(path, errors="replace").read())
    except OSError:
        pass
"""


def slow(script: Script, delay_s: float) -> Script:
    """The same answers, later."""

    def later(asked: Asked) -> Response:
        response = script(asked)
        if isinstance(response, Good):
            return Good(texts=response.texts, delay_s=delay_s)
        return response

    return later


def started(program: str, *options: str, stdout: Any = subprocess.DEVNULL, log: Path) -> Any:
    with log.open("ab") as stderr:
        return subprocess.Popen(
            [BIN / "mlbench-gen", program, *options],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, "TEST_KEY": KEY},
            start_new_session=True,
        )


def whole_lines(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in content.split(b"\n")[:-1]]


def wait_for_lines(path: Path, count: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + WITHIN_S
    while len(whole_lines(path)) < count:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_three_times_the_outputs_are_the_same(tmp_path: Path) -> None:
    """Killed at random moments and once interrupted, a generation ends with the outputs of an
    undisturbed one, asks for no row again that it had, and shows its key nowhere."""
    rows, out, log = dataset(tmp_path), tmp_path / "out", tmp_path / "log.txt"
    answers = out / "answers.jsonl"
    chance = random.Random()
    had: set[int] = set()
    with ModelServer(slow(good, 0.1)) as server:
        options = arguments(server, rows, out)
        for ending in (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
            process = started("generate", *options, log=log)
            wait_for_lines(answers, len(had) + chance.randint(1, 4), process, log)
            time.sleep(chance.random() * 0.1)
            process.send_signal(ending)
            process.wait(30)
            if ending == signal.SIGINT:
                assert process.returncode == 130
            had = {line["id"] for line in whole_lines(answers)}
            before = len(server.log)
            assert len(had) < ROWS
        final = started("generate", *options, log=log)
        assert final.wait(WITHIN_S) == 0
        again = {number_of(asked) for asked in server.log[before:]}
        assert again == set(range(ROWS)) - had
        # A row is asked anew only if its answer was under way when the process died.
        assert sum(server.asked().values()) <= ROWS + 4 * 4
    expected = [
        {"github_id": 1, "id": number, "output": [f"print({number})"] * 2} for number in range(ROWS)
    ]
    assert read_lines(out / "outputs.jsonl") == expected
    kept = b"".join(path.read_bytes() for path in [*out.iterdir(), log])
    assert KEY.encode() not in kept


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_pipe_is_judged_and_continued_on_both_sides(tmp_path: Path) -> None:
    """`generate … -o - | mlbench-exec run -`: both killed and started again, each output has one
    verdict, and no row is asked again that was answered."""
    rows, out, log = dataset(tmp_path, 12), tmp_path / "out", tmp_path / "log.txt"
    run: list[str | Path] = [
        BIN / "mlbench-exec",
        "run",
        "-",
        "--dataset",
        rows,
        "--backend",
        "local",
    ]
    run += ["--environments", environments(tmp_path), "--out", tmp_path / "run"]
    run += ["--memory", "256m", "--concurrency", "1"]
    verdicts = tmp_path / "run" / "verdicts.jsonl"

    def pipe() -> "tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]":
        asking = started("generate", *options, "-o", "-", stdout=subprocess.PIPE, log=log)
        with log.open("ab") as said:
            judging = subprocess.Popen(run, stdin=asking.stdout, stdout=said, stderr=said)
        asking.stdout.close()
        return asking, judging

    with ModelServer(slow(good, 0.1)) as server:
        options = arguments(server, rows, out, "--requests", "1")
        asking, judging = pipe()
        wait_for_lines(verdicts, 3, judging, log)
        asking.kill()
        judging.kill()
        asking.wait(30)
        judging.wait(30)
        had = {line["id"] for line in whole_lines(out / "answers.jsonl")}
        before = len(server.log)
        judged = len(whole_lines(verdicts))
        asking, judging = pipe()
        assert asking.wait(WITHIN_S) == 0, log.read_text()
        assert judging.wait(WITHIN_S) == 0, log.read_text()
        assert {number_of(asked) for asked in server.log[before:]} == set(range(12)) - had
    found = [(one["id"], one["index"], one["status"]) for one in read_lines(verdicts)]
    assert sorted(found) == [(row, index, "passed") for row in range(12) for index in range(2)]
    assert judged < 24


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_run_continues_on_both_sides(tmp_path: Path) -> None:
    """`mlbench-gen run`, killed and started again: each output has one verdict, no answered row
    is asked again, one line tells of both sides, and a row without an answer is told."""
    rows, out, log = dataset(tmp_path, 12), tmp_path / "run", tmp_path / "log.txt"

    def script(asked: Asked) -> Response:
        if number_of(asked) == 7:
            return Fault(status=400, message="too long")
        if asked.attempt == 1 and number_of(asked) % 3 == 0:
            return Cut(good=good(asked))
        if number_of(asked) == 8:
            return Good(texts=["```python\nraise SystemExit(3)\n```"])
        if number_of(asked) == 9:
            return Good(texts=[f"```python\n{LOOKS_FOR_KEYS}```"])
        return good(asked)

    with ModelServer(slow(script, 0.1)) as server:
        options = arguments(server, rows, out, "--environments", environments(tmp_path))
        options += ["--backend", "local", "--memory", "256m", "--concurrency", "1", "--stream"]
        process = started("run", *options, log=log)
        verdicts = out / "verdicts.jsonl"
        wait_for_lines(verdicts, 3, process, log)
        process.kill()
        process.wait(30)
        had = {line["id"] for line in whole_lines(out / "generation" / "answers.jsonl")}
        before = len(server.log)
        final = started("run", *options, stdout=subprocess.PIPE, log=log)
        table, _ = final.communicate(timeout=WITHIN_S)
        assert final.returncode == 1, log.read_text()  # one row has no answer
        assert {number_of(asked) for asked in server.log[before:]} == set(range(12)) - had
    found = {(one["id"], one["index"]): one["status"] for one in read_lines(verdicts)}
    assert len(found) == len(read_lines(verdicts)) == 22
    assert {key for key, status in found.items() if status == "failed"} == {(8, 0), (8, 1)}
    [unjudged] = read_lines(out / "unjudged.jsonl")
    assert (unjudged["id"], "too long" in unjudged["reason"]) == (7, True)
    assert "answered 11/12" in log.read_text()
    assert KEY not in verdicts.read_text()
    assert "| judged " in log.read_text()
    assert b"pass@1" in table


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError:
            continue


@pytest.mark.asyncio
async def test_a_full_pipe_holds_the_writer_and_can_be_left(pipe: tuple[int, int]) -> None:
    """A line larger than the pipe waits for its reader, without holding up a cancellation."""
    reader, writer = pipe
    line = b"x" * (1 << 20) + b"\n"
    output = Output(writer)
    with anyio.move_on_after(0.1) as waiting:
        await output.write(line)
    assert waiting.cancelled_caught
    assert len(os.read(reader, 1 << 20)) <= 1 << 16

    async def read_on() -> None:
        while True:
            await anyio.wait_readable(reader)
            await anyio.to_thread.run_sync(os.read, reader, 1 << 16)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read_on)
        await output.write(line)
        tasks.cancel_scope.cancel()


@pytest.mark.asyncio
async def test_a_reader_that_left_is_told(pipe: tuple[int, int]) -> None:
    """Where nobody reads stdout any more, the message says that nothing is lost."""
    reader, writer = pipe
    os.close(reader)
    with pytest.raises(InputError, match="the same command goes on"):
        await Output(writer).write(b"line\n")


@pytest.mark.slow
def test_extras_are_loaded_by_what_needs_them_alone() -> None:
    """Importing everything of mlbench_gen loads neither openai nor datasets nor
    rank-bm25, nor what these bring along."""
    code = (
        "import sys, mlbench_gen.cli, mlbench_gen.prepare, mlbench_gen.testing\n"
        "extras = {'openai', 'pydantic_core', 'jiter', 'datasets', 'numpy', 'rank_bm25'}\n"
        "print(extras & sys.modules.keys())"
    )
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown == "set()\n"


@pytest.mark.slow
def test_bad_usage_asks_nothing(tmp_path: Path) -> None:
    """A missing key is said at once, with exit code 2, before a folder is made."""
    out = tmp_path / "out"
    ended = subprocess.run(
        [
            BIN / "mlbench-gen",
            "generate",
            "--engine_name",
            "m",
            "--out",
            out,
            "--key-env",
            "NO_SUCH",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=WITHIN_S,
    )
    assert ended.returncode == 2
    assert "export NO_SUCH=" in ended.stderr
    assert not out.exists()
