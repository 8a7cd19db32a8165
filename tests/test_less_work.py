"""Less work for the same scores: --until-pass and --share-identical against a full run."""

import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlbench_exec.run import Evaluation
from mlbench_exec.sandbox import Job, Limits, Observation
from mlbench_exec.settings import Settings
from mlbench_exec.testing.fakes import FakeBackend, observation

DEMO = Path(__file__).parent.parent / "examples" / "demo"
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "until a pass": {"until_pass": True},
    "equal ones once": {"share_identical": True},
    "both": {"until_pass": True, "share_identical": True},
}
Line = dict[str, Any]
Table = list[list[str]]


def play(job: Job) -> Observation:
    """A program is the name of what becomes of it."""
    return observation(exit_code=0 if job.code.startswith(b"good") else 1)


def write(path: Path, lines: list[Line]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def evaluate(home: Path, outputs: Path, said: io.StringIO, **options: Any) -> list[Line]:
    """Run it all; results.jsonl, which is the same for equal scores."""
    backend = options.pop("fake", None)
    settings = Settings(dataset=str(home / "rows.jsonl"), **options)
    evaluation = Evaluation(str(outputs), home / "run", settings, backend=backend, stderr=said)
    anyio.run(evaluation.run)
    results = (home / "run" / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in results]


def judge(table: Table, backend: FakeBackend, **options: Any) -> tuple[list[Line], str]:
    """Judge made-up outputs; the results, and what the run said."""
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        keys = [{"github_id": 1, "id": row_id} for row_id in range(len(table))]
        columns = {"github": "https://example.org/r", "path": "", "type": "Python Code"}
        write(
            home / "rows.jsonl", [{**key, **columns, "arguments": "{'n': 'good'}"} for key in keys]
        )
        outputs = write(
            home / "outputs.jsonl",
            [{**key, "output": row} for key, row in zip(keys, table, strict=True)],
        )
        file = home / "environments.toml"
        file.write_text('[environments.one]\ngithub_ids = [1]\nworkdir = "/srv/one"\n')
        options = {"environments_file": file, "concurrency": 4, "fake": backend} | options
        return evaluate(home, outputs, said, **options), " ".join(said.getvalue().split())


# Programs that pass, fail when they are run, and fail a static check; some of them equal.
OUTPUTS = st.sampled_from(["good", "good too", "bad, not good", "not good", "worse"])
TABLES = st.lists(st.lists(OUTPUTS, min_size=1, max_size=7), min_size=1, max_size=5)


@pytest.mark.slow
@hypothesis_settings(max_examples=12, deadline=None)
@given(table=TABLES)
def test_random_tables_come_to_the_same(table: Table) -> None:
    """The same results.jsonl, and no program is run that can't matter or ran already."""
    found, jobs = {}, {}
    for way, options in WAYS.items():
        backend = FakeBackend(play)
        found[way], _ = judge(table, backend, **options)
        jobs[way] = len(backend.jobs)
    assert all(results == found["full"] for results in found.values())
    assert jobs == {way: sum(needed(row, way) for row in table) for way in WAYS}


def needed(row: list[str], way: str) -> int:
    """How many programs of a row have to run."""
    executed = [code for code in row if "good" in code]
    if way in {"until a pass", "both"}:
        executed = [code for code in row[:5] if "good" in code]
        passing = [n for n, code in enumerate(executed) if code.startswith("good")]
        executed = executed[: passing[0] + 1] if passing else executed
    return len(set(executed)) if way in {"equal ones once", "both"} else len(executed)


class Meeting(FakeBackend):
    """The first four programs end when all of them are running."""

    def __init__(self) -> None:
        super().__init__(play)
        self._arrived, self._is_complete = 0, anyio.Event()

    async def _play(self, job: Job) -> Observation:
        self._arrived += 1
        if self._arrived == 4:
            self._is_complete.set()
        with anyio.fail_after(20):
            await self._is_complete.wait()
        return await super()._play(job)


def test_rows_go_on_side_by_side() -> None:
    """Until a pass a row's outputs wait for each other, and rows for nothing."""
    for options in WAYS.values():
        results, _ = judge([["not good", "good", "good"] for _ in range(4)], Meeting(), **options)
        assert [(row["pass1"], row["pass2"]) for row in results] == [(0, 1)] * 4


def test_a_run_says_what_it_saves() -> None:
    """Its header names both options where they are on, and neither where they aren't."""
    _, said = judge([["good"]], FakeBackend(play), **WAYS["both"])
    assert "executes equal outputs of a row once (--share-identical)" in said
    assert "stops a row where no pass@k can change (--until-pass)" in said
    _, said = judge([["good"]], FakeBackend(play))
    assert "--share-identical" not in said
    assert "--until-pass" not in said


@pytest.mark.slow
def test_real_programs_come_to_the_same(tmp_path: Path) -> None:
    """The demo's, some of them twice in a row: the same results, from fewer executions."""
    repeated = (0, 1, 0, 2, 1, 3, 4)
    lines = [json.loads(line) for line in (DEMO / "outputs.jsonl").read_text().splitlines()]
    for line in lines:
        line["output"] = [line["output"][n] for n in repeated]
    text = (DEMO / "environments.toml.in").read_text()
    text = text.replace("@ROOT@", str(DEMO.parent.parent)).replace("@PYTHON@", sys.executable)
    found, executed = {}, {}
    for way, options in WAYS.items():
        home = tmp_path / way
        home.mkdir()
        (home / "rows.jsonl").write_bytes((DEMO / "rows.jsonl").read_bytes())
        (home / "environments.toml").write_text(text)
        fixed: Line = {"backend": "local", "concurrency": 2, "time_limit_s": 1.0}
        fixed |= {"environments_file": home / "environments.toml"}
        fixed |= {"limits": Limits(memory_bytes=256 << 20)}
        outputs = write(home / "outputs.jsonl", lines)
        found[way] = evaluate(home, outputs, io.StringIO(), **fixed, **options)
        verdicts = (home / "run" / "verdicts.jsonl").read_text().splitlines()

        executed[way] = len({json.loads(line)["started_at"] for line in verdicts} - {None})
    assert all(results == found["full"] for results in found.values())
    assert {row["pass5"] for row in found["full"]} == {0, 1}
    assert executed["both"] < executed["until a pass"] < executed["full"]
    assert executed["both"] <= executed["equal ones once"] < executed["full"]
