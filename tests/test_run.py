import io
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from click.testing import CliRunner

from mlbench_exec.cli import main
from mlbench_exec.dry_run import DryRun, Planned, dry_run
from mlbench_exec.errors import InputError, RunFolderError, SandboxFailed
from mlbench_exec.journal.files import Lines
from mlbench_exec.run import Evaluation, Outcome, Selection
from mlbench_exec.sandbox import Job, Limits, Observation
from mlbench_exec.settings import Settings
from mlbench_exec.testing.fakes import FakeBackend, observation

ROWS = 6
ORPHAN = 12  # a github_id without an environment
FOLDER = {
    "lock",
    "manifest.json",
    "report.html",
    "results.jsonl",
    "summary.json",
    "unjudged.jsonl",
    "verdicts.jsonl",
}
ENVIRONMENTS = """
[environments.one]
github_ids = [1]
workdir = "/srv/one"

[environments.two]
github_ids = [2]
workdir = "/srv/two"
"""
Line = dict[str, Any]


def play(job: Job) -> Observation | Exception:
    """A program is the name of what becomes of it."""
    if job.code.startswith(b"ok"):
        return observation()
    if job.code.startswith(b"broken"):
        return SandboxFailed("the agent is gone")
    return observation(exit_code=1, stderr="Traceback (most recent call last):\nValueError: no")


def line(row_id: int, *output: str | None, github_id: int = 1) -> Line:
    return {"github_id": github_id, "id": row_id, "output": list(output)}


PLAIN = [
    line(1, "ok", "bad", "bad", "bad", "bad"),
    line(2, "bad", "ok", "bad", "bad", "ok"),
    line(3, "bad", "bad", "bad", "bad", "bad"),
    line(1, "ok a.py --lr 0.1", "bad a.py ", "ok", "", "ok a.sh ", github_id=2),
]


class Place:
    """A folder with a dataset, environments, outputs, and runs over them."""

    def __init__(self, folder: Path) -> None:
        self.home = folder
        self.outputs = folder / "outputs.jsonl"
        self.run = folder / "run"
        rows = [self._row(1, row_id, "Python Code", {}) for row_id in range(1, ROWS + 1)]
        rows += [self._row(2, 1, "Bash Script", {}), self._row(ORPHAN, 1, "Python Code", {})]
        self.write("rows.jsonl", rows)
        (folder / "environments.toml").write_text(ENVIRONMENTS)

    @staticmethod
    def _row(github_id: int, row_id: int, kind: str, arguments: dict[str, str]) -> Line:
        return {
            "github_id": github_id,
            "github": f"https://github.com/a/repo{github_id}",
            "id": row_id,
            "path": "./",
            "arguments": str(arguments),
            "type": kind,
        }

    def write(self, name: str, lines: Iterable[object]) -> Path:
        path = self.home / name
        path.write_text("".join(f"{json.dumps(one)}\n" for one in lines))
        return path

    def settings(self, **changes: Any) -> Settings:
        plain: dict[str, Any] = {
            "dataset": str(self.home / "rows.jsonl"),
            "environments_file": self.home / "environments.toml",
            "concurrency": 2,
        }
        return Settings(**(plain | changes))

    def evaluation(
        self,
        lines: Iterable[object] | None = None,
        *,
        outputs: str | None = None,
        folder: str = "run",
        backend: FakeBackend | None = None,
        selection: Selection | None = None,
        restart: bool = False,
        stderr: io.StringIO | None = None,
        **settings: Any,
    ) -> Evaluation:
        if lines is not None:
            self.write("outputs.jsonl", lines)
        return Evaluation(
            outputs or str(self.outputs),
            self.home / folder,
            self.settings(**settings),
            selection=selection,
            restart=restart,
            stderr=stderr or io.StringIO(),
            backend=backend or FakeBackend(play),
        )

    async def judge(self, lines: Iterable[object] | None = None, **options: Any) -> Outcome:
        return await self.evaluation(lines, **options).run()

    def lines(self, name: str, folder: str = "run") -> list[Line]:
        text = (self.home / folder / name).read_text()
        assert text == "" or text.endswith("\n")
        return [json.loads(one) for one in text.splitlines()]

    def verdicts(self, folder: str = "run") -> dict[tuple[int, int, int], str]:
        found = self.lines("verdicts.jsonl", folder)
        verdicts = {(v["github_id"], v["id"], v["index"]): v["status"] for v in found}
        assert len(verdicts) == len(found)  # never two for one
        return verdicts

    def json(self, name: str, folder: str = "run") -> Any:
        return json.loads((self.home / folder / name).read_text())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def wait_for(is_so: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not is_so():  # noqa: ASYNC110 - a file has no event
            await anyio.sleep(0.001)


def has_run(backend: FakeBackend, jobs: int) -> bool:
    return len(backend.jobs) >= jobs


def untimed(summary: Line) -> Line:
    return {name: value for name, value in summary.items() if name != "timings"}


# A whole run.


@pytest.mark.asyncio
async def test_a_run_leaves_its_folder(place: Place) -> None:
    """Every file of the contract, each valid, and nothing else."""
    stderr = io.StringIO()
    outcome = await place.judge(PLAIN, stderr=stderr)
    assert {path.name for path in place.run.iterdir()} == FOLDER
    assert (outcome.unjudged, outcome.usable, outcome.summary.judged) == (0, 4, 20)
    assert place.verdicts()[2, 1, 2] == "wrong_type"
    assert place.verdicts()[1, 2, 1] == "passed"
    assert len(place.verdicts()) == 20
    assert place.lines("unjudged.jsonl") == []
    assert place.lines("results.jsonl") == [
        {"id": 1, "github_id": 1, "pass1": 1, "pass2": 1, "pass5": 1},
        {"id": 2, "github_id": 1, "pass1": 0, "pass2": 1, "pass5": 1},
        {"id": 3, "github_id": 1, "pass1": 0, "pass2": 0, "pass5": 0},
        {"id": 1, "github_id": 2, "pass1": 1, "pass2": 1, "pass5": 1},
    ]
    summary = place.json("summary.json")
    assert (summary["counts"], summary["eval_pass1"], summary["eval_pass2"]) == (4, 0.5, 0.75)
    assert summary["coverage"] == {"submitted_rows": 4, "split_rows": 8, "share": 0.5}
    manifest = place.json("manifest.json")
    assert manifest["settings"]["dataset"].endswith("rows.jsonl")
    assert manifest["inputs"][0]["path"] == str(place.outputs)
    shown = stderr.getvalue()
    assert "fake (given)" in shown
    assert str(place.run) in shown
    assert "20/20" in shown


@pytest.mark.asyncio
async def test_a_stream_is_judged_like_a_file(place: Place) -> None:
    """Submissions given as a stream fill a run folder; another stream continues it, and only so."""
    stderr = io.StringIO()

    def evaluation(*lines: Line) -> Evaluation:
        async def source() -> AsyncIterator[object]:
            for one in lines:
                yield one

        return Evaluation(
            "a model",
            place.run,
            place.settings(),
            stderr=stderr,
            backend=FakeBackend(play),
            source=source(),
            total=20,
            beside=lambda: "answered 4/4",
        )

    await evaluation(*PLAIN[:2]).run()
    outcome = await evaluation(*PLAIN).run()
    assert (outcome.usable, outcome.unjudged) == (4, 0)
    assert len(place.verdicts()) == 20
    assert place.json("manifest.json")["inputs"] == [{"path": "a model", "sha256": None}]
    assert "answered 4/4 | judged 20/20" in stderr.getvalue()
    with pytest.raises(RunFolderError, match="verdicts on other outputs"):
        await evaluation(line(1, "others")).run()


@pytest.mark.asyncio
async def test_nothing_is_dropped_in_silence(place: Place) -> None:
    """Each output and each line is a verdict or stands in unjudged.jsonl with its reason."""
    place.write("outputs.jsonl", [])
    place.outputs.write_text(
        "\n".join(
            [
                json.dumps(line(1, "ok", None, "broken")),
                "",
                "{oops",
                json.dumps(line(99, "ok")),
                json.dumps(line(1, "ok")),
                json.dumps({"github_id": "1", "id": 2, "output": ["ok"]}),
                json.dumps(line(1, "ok", github_id=ORPHAN)),
                '{"github_id": 1, "id": 4, "output": ["ok \\ud800"]}',
            ]
        )
    )
    outcome = await place.judge()
    assert set(place.verdicts()) == {(1, 1, 0), (1, 4, 0)}
    unjudged = place.lines("unjudged.jsonl")
    places = {(one["kind"], (one["place"] or "").rpartition(":")[2]) for one in unjudged}
    assert places == {
        ("input", "1"),
        ("infrastructure", ""),
        ("input", "3"),
        ("input", "4"),
        ("input", "5"),
        ("input", "6"),
        ("environment", ""),
    }
    assert all(one["reason"] for one in unjudged)
    assert (outcome.unjudged, outcome.usable) == (len(unjudged), 3)


@pytest.mark.asyncio
async def test_bad_rows_of_the_dataset_are_told(place: Place) -> None:
    """They can't be judged against; the rest of the dataset is used."""
    with (place.home / "rows.jsonl").open("a") as file:
        file.write('{"github_id": 1, "id": 77}\n')
    outcome = await place.judge([line(1, "ok")])
    (bad_row,) = place.lines("unjudged.jsonl")
    assert bad_row["place"].endswith("rows.jsonl:9")
    assert (bad_row["github_id"], bad_row["id"], outcome.unjudged) == (1, 77, 1)
    assert len(outcome.summary.unjudged_reasons) == 1


@pytest.mark.asyncio
async def test_pass_at_k_is_null_where_it_isnt_known(place: Place) -> None:
    """An output without a verdict, or too few outputs; a known pass makes it 1 all the same."""
    await place.judge(
        [
            line(1, "broken", "ok", "bad", "bad", "bad"),
            line(2, "bad", "bad"),
            line(3, "ok"),
            line(4, "broken", "bad", "bad", "bad", "bad"),
        ]
    )
    scores = [(one["pass1"], one["pass2"], one["pass5"]) for one in place.lines("results.jsonl")]
    assert scores == [(None, 1, 1), (0, 0, None), (1, 1, 1), (None, None, None)]


@pytest.mark.asyncio
@pytest.mark.parametrize("options", [{}, {"until_pass": True}, {"share_identical": True}])
async def test_a_report_computes_the_same_again(place: Place, options: Line) -> None:
    """From the journal alone: with everything else deleted, both files come back as they were."""
    with (place.home / "rows.jsonl").open("a") as file:
        file.write('{"github_id": 1, "id": 77}\n')
    orphan, unknown = line(1, "ok", github_id=ORPHAN), line(99, "ok")
    rows = [*PLAIN, line(4, "broken", "ok", "no"), line(5, ""), orphan, unknown, "no row"]
    await place.judge(rows, **options)
    made = ("results.jsonl", "summary.json")
    before = [(place.run / name).read_bytes() for name in made]
    for name in (*made, "log.jsonl"):
        (place.run / name).unlink()
    arguments = ["report", str(place.run), "--json"]
    shown = await anyio.to_thread.run_sync(partial(CliRunner().invoke, main, arguments))
    assert shown.exit_code == 0, shown.output
    assert [(place.run / name).read_bytes() for name in made] == before
    assert json.loads(shown.stdout) == json.loads(before[1])
    assert json.loads(before[1])["failures"]


@pytest.mark.asyncio
async def test_broken_sandboxes_are_logged(place: Place) -> None:
    """log.jsonl tells of each attempt, as JSON, and is made only where there is something."""
    await place.judge([line(1, "broken")])
    events = place.lines("log.jsonl")
    assert [(one["event"], one["attempt"], one["level"]) for one in events] == [
        ("sandbox_failed", attempt, "warning") for attempt in (1, 2, 3)
    ]


@pytest.mark.asyncio
async def test_what_cannot_be_warm_is_said_with_the_reason(place: Place) -> None:
    """In the log once, in the manifest, at the end, and in the header when the run goes on."""
    reason = "slow is not preloaded: it starts threads"

    def noted(job: Job) -> Observation:
        return observation(notes=(reason,), ran_again="import slow: x was changed before")

    said = io.StringIO()
    await place.judge([line(1, "ok", "ok")], backend=FakeBackend(noted), stderr=said)
    assert [(one["event"], one["reason"]) for one in place.lines("log.jsonl")] == [
        ("not_warm", reason),
        ("ran_again_cold", "import slow: x was changed before"),
    ]
    manifest = json.loads((place.run / "manifest.json").read_text())
    assert manifest["not_warm"] == {"one": [reason]}
    assert f"one: {reason}\n" in said.getvalue()
    said = io.StringIO()
    await place.judge([line(1, "ok", "ok"), line(2, "ok")], stderr=said)
    assert f"one: {reason}" in said.getvalue()
    assert json.loads((place.run / "manifest.json").read_text())["not_warm"] == {"one": [reason]}


# Where rows come from.


class Stdin:
    """A pipe in stdin's place."""

    def __init__(self) -> None:
        reading, self._writing = os.pipe()
        self._reading = os.fdopen(reading, "rb", buffering=0)

    def fileno(self) -> int:
        return self._reading.fileno()

    def write(self, *lines: Line) -> None:
        os.write(self._writing, "".join(f"{json.dumps(one)}\n" for one in lines).encode())

    def end(self) -> None:
        os.close(self._writing)

    def close(self) -> None:
        self._reading.close()


@pytest.mark.asyncio
async def test_rows_are_judged_as_they_arrive_on_stdin(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first verdict is written while the pipe is still open; what came through it is kept."""
    stdin = Stdin()
    monkeypatch.setattr(sys, "stdin", stdin)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(place.evaluation(outputs="-").run)
        stdin.write(PLAIN[0])
        verdicts = place.run / "verdicts.jsonl"
        await wait_for(lambda: verdicts.exists() and len(verdicts.read_text().splitlines()) == 5)
        stdin.write(PLAIN[1])
        stdin.end()
    stdin.close()
    assert len(place.verdicts()) == 10
    assert place.json("manifest.json")["inputs"] == [{"path": "-", "sha256": None}]
    kept = place.lines("outputs.jsonl")
    assert [row["id"] for row in kept] == [1, 2]
    assert json.dumps(kept[0]["output"][0])[1:-1] in (place.run / "report.html").read_text()


@pytest.mark.asyncio
async def test_a_limit_ends_the_reading(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last row that was asked for nothing waits for another line."""
    stdin = Stdin()
    monkeypatch.setattr(sys, "stdin", stdin)
    stdin.write(*PLAIN[:2])
    with anyio.fail_after(5):
        outcome = await place.judge(outputs="-", selection=Selection(limit=2))
    assert outcome.usable == 2
    stdin.end()
    stdin.close()


@pytest.mark.asyncio
async def test_a_named_pipe_is_read_once(place: Place) -> None:
    """What a shell's <(…) names gives its rows only once, so they are judged at first sight."""
    pipe = place.home / "pipe"
    os.mkfifo(pipe)
    text = "".join(f"{json.dumps(one)}\n" for one in PLAIN)
    writer = threading.Thread(target=pipe.write_text, args=(text,))
    writer.start()
    with anyio.fail_after(5):
        await place.judge(outputs=str(pipe))
    writer.join()
    assert len(place.verdicts()) == 20


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["missing", "folder", "NUL"])
async def test_outputs_that_cant_be_read_start_nothing(place: Place, kind: str) -> None:
    """The message names the path; no backend was started and no folder made."""
    path = {"missing": "gone.jsonl", "folder": str(place.home), "NUL": "a\0b"}[kind]
    backend = FakeBackend(play)
    with pytest.raises(InputError, match=r"can't be read .*: check the path of OUTPUTS") as caught:
        await place.judge(outputs=path, backend=backend)
    assert str(caught.value).startswith(path)
    assert not backend.sandboxes
    assert not place.run.exists()
    with pytest.raises(InputError, match="can't be read"):
        await dry_run(path, place.settings(), Selection(), backend=backend)


@pytest.mark.asyncio
async def test_rows_can_be_chosen(place: Place) -> None:
    """By repository, by row, and by number; the rest is none of the run's business."""
    chosen = {
        "repository": Selection(only=((2, None),)),
        "row": Selection(only=((1, 3), (2, 1))),
        "first": Selection(limit=1),
        "first of one": Selection(only=((2, None),), limit=1),
    }
    rows = {}
    for name, selection in chosen.items():
        outcome = await place.judge(PLAIN, folder=name, selection=selection)
        rows[name] = {key[:2] for key in place.verdicts(name)}
        assert place.lines("unjudged.jsonl", name) == []
        assert outcome.usable == len(rows[name])
    assert rows == {
        "repository": {(2, 1)},
        "row": {(1, 3), (2, 1)},
        "first": {(1, 1)},
        "first of one": {(2, 1)},
    }


# Continuing.


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize("options", [{}, {"until_pass": True, "share_identical": True}])
async def test_an_interrupted_run_continues_as_if_nothing_had_been(
    place: Place, options: Line
) -> None:
    """Wherever it was cut off, the end is the same, and nothing is executed twice."""
    await place.judge(PLAIN, folder="undisturbed", **options)
    expected = untimed(place.json("summary.json", "undisturbed"))
    for cut in (1, 2, 4):
        folder, backend = f"cut after {cut}", FakeBackend(play, delay_s=0.001)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(place.evaluation(folder=folder, backend=backend, **options).run)
            await wait_for(partial(has_run, backend, cut + 1))
            tasks.cancel_scope.cancel()
        assert backend.statistics().is_open == 0
        known = place.verdicts(folder)
        rest, stderr = FakeBackend(play), io.StringIO()
        outcome = await place.judge(folder=folder, backend=rest, stderr=stderr, **options)
        assert place.verdicts(folder) == place.verdicts("undisturbed")
        assert untimed(place.json("summary.json", folder)) == expected
        if known:
            assert f"{len(known)} outputs are judged already" in stderr.getvalue()
        if not options:
            executed = sum(status in {"passed", "failed"} for status in known.values())
            assert len(rest.jobs) == outcome.summary.timings.executed - executed


@pytest.mark.asyncio
async def test_verdicts_that_come_together_share_a_write(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs no sandbox comes as fast as it can be read: not a write each."""
    writes: list[int] = []
    append = Lines.append

    def counted(lines: Lines, content: bytes) -> None:
        writes.append(content.count(b"\n"))
        append(lines, content)

    monkeypatch.setattr(Lines, "append", counted)
    await place.judge([line(1, *[""] * 200), line(2, *[""] * 200)])
    assert sum(writes) == len(place.verdicts()) == 400
    assert len(writes) <= 40


@pytest.mark.asyncio
async def test_a_finished_run_executes_nothing_again(place: Place) -> None:
    """The same command gives the same summary, without a sandbox."""
    await place.judge(PLAIN)
    before, backend = place.json("summary.json"), FakeBackend(play)
    outcome = await place.judge(backend=backend)
    assert backend.jobs == []
    assert untimed(place.json("summary.json")) == untimed(before)
    assert (outcome.unjudged, outcome.usable) == (0, 4)


@pytest.mark.asyncio
async def test_rows_that_outputs_has_gained_are_judged(place: Place) -> None:
    """New rows and new outputs of known rows; progress counts the old ones as done."""
    await place.judge(PLAIN[:2])
    backend, stderr = FakeBackend(play), io.StringIO()
    longer = line(1, *PLAIN[0]["output"], "ok 6")
    await place.judge([longer, *PLAIN[1:]], backend=backend, stderr=stderr)
    assert len(place.verdicts()) == 21
    assert len(backend.jobs) == 1 + 5 + 3
    assert "21/21" in stderr.getvalue()


@pytest.mark.asyncio
async def test_judged_rows_that_outputs_has_lost_are_told(place: Place) -> None:
    """They still count, and the header says so; a choice of rows is no loss."""
    await place.judge(PLAIN)
    stderr = io.StringIO()
    await place.judge(PLAIN[:2], stderr=stderr)
    assert "2 judged rows that are not in" in stderr.getvalue()
    stderr = io.StringIO()
    await place.judge(PLAIN[:2], stderr=stderr, selection=Selection(limit=1))
    assert "any more" not in stderr.getvalue()


@pytest.mark.asyncio
async def test_what_was_unjudged_is_tried_again(place: Place) -> None:
    """unjudged.jsonl holds only what the last run could not judge."""
    first = await place.judge([line(1, "ok", "broken")])
    assert first.unjudged == 1
    again = await place.judge(backend=FakeBackend())
    assert again.unjudged == 0
    assert place.lines("unjudged.jsonl") == []
    assert place.verdicts() == {(1, 1, 0): "passed", (1, 1, 1): "passed"}


@pytest.mark.asyncio
async def test_changed_outputs_are_refused_by_name(place: Place) -> None:
    """Also those that are gone or no text any more; nothing is run, the verdicts stay."""
    await place.judge([line(1, "ok", "bad"), line(2, "ok", "bad"), line(3, "ok"), line(4, "ok")])
    before, backend = place.verdicts(), FakeBackend(play)
    changed = [line(1, "ok", "other"), line(2, "ok"), line(3, None), line(4, "ok")]
    with pytest.raises(RunFolderError) as caught:
        await place.judge(changed, backend=backend)
    message = str(caught.value)
    for number, output in ((1, 1), (2, 1), (3, 0)):
        assert f"outputs.jsonl:{number}: github_id 1, id {number}, output {output}\n" in message
    assert "id 4" not in message
    assert "--restart" in message
    assert backend.jobs == []
    assert place.verdicts() == before


@pytest.mark.asyncio
async def test_many_changed_outputs_are_counted(place: Place) -> None:
    """The message stays readable however many there are."""
    await place.judge(PLAIN)
    with pytest.raises(RunFolderError, match="and 10 more"):
        await place.judge([{**one, "output": ["new"] * 5} for one in PLAIN])


@pytest.mark.asyncio
async def test_changed_outputs_on_a_pipe_are_refused_as_they_arrive(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe is read once, so the rows before them are judged."""
    await place.judge(PLAIN[:1])
    stdin = Stdin()
    monkeypatch.setattr(sys, "stdin", stdin)
    stdin.write(line(1, "other"))
    stdin.end()
    with pytest.raises(RunFolderError, match="<stdin>:1: github_id 1, id 1, output 0"):
        await place.judge(outputs="-")
    stdin.close()


@pytest.mark.asyncio
async def test_restart_starts_over(place: Place) -> None:
    """What the folder held is gone, and judged anew."""
    await place.judge(PLAIN)
    await place.judge([line(5, "ok")], restart=True)
    assert place.verdicts() == {(1, 5, 0): "passed"}
    assert [one["id"] for one in place.lines("results.jsonl")] == [5]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"limits": Limits(memory_bytes=1 << 30)}, "limits.memory_bytes: was 8589934592, now "),
        ({"limits": Limits(clock="wall")}, 'limits.clock: was "fair", now "wall"'),
        ({"time_limit_s": 3.0}, "time_limit_s: was null, now 3"),
        ({"network": "bridge"}, 'network: was "none", now "bridge"'),
        ({"until_pass": True}, "until_pass: was false, now true"),
    ],
)
async def test_changed_limits_are_refused_by_name(place: Place, changes: Line, named: str) -> None:
    """Verdicts of one folder were all reached in the same way."""
    await place.judge(PLAIN[:1])
    with pytest.raises(RunFolderError) as caught:
        await place.judge(**changes)
    assert named in str(caught.value)
    await place.judge(concurrency=1)  # which changes no verdict
    await place.judge(restart=True, **changes)


@pytest.mark.asyncio
async def test_another_backend_is_refused_by_name(place: Place) -> None:
    """`auto` may choose another one today; what it would run in is not the same."""
    await place.judge(PLAIN[:1])
    other = FakeBackend(play)
    other.name = "other"
    with pytest.raises(RunFolderError, match='backend: was "fake", now "other"'):
        await place.judge(backend=other)


@pytest.mark.asyncio
async def test_a_changed_environment_is_refused_by_name(place: Place) -> None:
    """So is a dataset that asks for something else."""
    await place.judge(PLAIN[:1])
    file = place.home / "environments.toml"
    file.write_text(ENVIRONMENTS.replace('"/srv/one"', '"/opt/one"'))
    with pytest.raises(RunFolderError, match=r"environments\.one\.workdir: was .*/srv/one"):
        await place.judge()
    file.write_text(ENVIRONMENTS)
    with (place.home / "rows.jsonl").open("a") as rows:
        rows.write(json.dumps(place._row(1, 50, "Python Code", {})) + "\n")
    with pytest.raises(RunFolderError, match="dataset: was"):
        await place.judge()


@pytest.mark.asyncio
async def test_a_folder_has_one_run_at_a_time(place: Place) -> None:
    """The second is refused, and the first goes on."""
    backend = FakeBackend(play, delay_s=0.01)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(place.evaluation(PLAIN, backend=backend).run)
        await wait_for(lambda: bool(backend.jobs))
        with pytest.raises(RunFolderError, match="is in use by another run"):
            await place.judge()
    assert len(place.verdicts()) == 20


@pytest.mark.asyncio
async def test_a_continued_runs_rate_is_not_that_of_its_last_part(place: Place) -> None:
    """Nothing was executed in the last part, so nothing changes."""
    await place.judge(PLAIN, backend=FakeBackend(play, delay_s=0.01))
    first = place.json("summary.json")["timings"]
    await place.judge()
    again = place.json("summary.json")["timings"]
    assert again == first


# Looking before running.


@pytest.mark.asyncio
async def test_a_dry_run_says_what_would_be_run(place: Place) -> None:
    """Per environment, with what is missing there, what is decided, and what can't be used."""
    place.write(
        "outputs.jsonl",
        [*PLAIN, line(1, "ok", github_id=ORPHAN), line(99, "ok"), line(4, "ok", None)],
    )
    backend = FakeBackend(play, unusable={"two": "it has no image"})
    found = await dry_run(str(place.outputs), place.settings(), Selection(), backend=backend)
    assert found == DryRun(
        planned=(
            Planned(environment="one", executions=16, problem=None),
            Planned(environment="two", executions=3, problem="environment two: it has no image"),
            Planned(environment="github_id 12", executions=1, problem="it has no environment"),
        ),
        static=2,
        unusable=found.unusable,
    )
    unknown, no_text = found.unusable
    assert unknown.startswith(f"{place.outputs}:6: github_id 1, id 99 is not in the dataset")
    assert no_text.startswith(f"{place.outputs}:7, output 1: the output is not a string")
    assert backend.jobs == []
    assert not place.run.exists()
