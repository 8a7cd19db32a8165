"""The measurements: their summaries from literals, and all of them once, quickly."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bench import corpus, overhead, places, scale, show, slots, startup, torch_rows
from bench.__main__ import Written
from bench.figures import Figure, Summary, Target, median, ratio, steady_rate
from bench.judging import NOT_WARM, Judged, Row
from bench.machine import Machine
from bench.overhead import Measured, Point
from bench.peers import Serial, one_after_another

from mlbench_exec import rules
from mlbench_exec.samples import Sample
from mlbench_exec.testing.fakes import observation
from mlbench_exec.verdicts import Verdict

ROOT = Path(__file__).parent.parent
SAMPLE = Sample(github_id=1, id=7, repository="r", path="./", arguments={}, type="Python Code")


def verdict(index: int, *, start_s: float = 0.0, slot: int = 0, **seen: Any) -> Verdict:
    return rules.executed_verdict(
        SAMPLE,
        index,
        "hash",
        rules.check(SAMPLE, "pass"),
        observation(**seen),
        environment="plain",
        attempts=1,
        contended=False,
        started_at=f"2026-01-01T00:00:{start_s:06.3f}+00:00",
        slot=slot,
    )


def judged(*verdicts: Verdict, **fields: Any) -> Judged:
    ordinary: dict[str, Any] = {"wall_s": 1.0, "cpu_s": 0.1, "peak_bytes": 1, "machine_cpu_s": 2.0}
    return Judged(verdicts=verdicts, **(ordinary | fields))


def met(summary: Summary) -> dict[str, bool | None]:
    return {target.name: target.is_met for target in summary.targets}


def test_a_target_knows_whether_it_is_met() -> None:
    """At its limit "at most" and "at least" hold and "below" doesn't; without a value none does."""
    senses: list[Any] = ["at least", "at most", "below"]

    def found(value: float | None) -> list[bool | None]:
        return [
            Target(name="t", value=value, unit="", wanted=2, sense=sense).is_met for sense in senses
        ]

    assert found(1) == [False, True, True]
    assert found(2) == [True, True, False]
    assert found(3) == [True, False, False]
    assert found(None) == [None, None, None]


def test_a_rate_leaves_out_the_opening() -> None:
    """Of 9 starts the first two count for nothing, however long they took."""
    assert steady_rate([0, 90, *(100 + n / 4 for n in range(7))]) == pytest.approx(4)
    assert steady_rate([1.0]) is None
    assert steady_rate([1.0, 1.0, 1.0]) is None


def test_small_sums() -> None:
    """A ratio without one of its sides is none."""
    assert (median([3, 1, 2]), median([4, 1, 2, 3])) == (2, 2.5)
    assert (ratio(6, 2), ratio(None, 2), ratio(6, None), ratio(6, 0)) == (3, None, None, None)


def test_overhead_is_held_to_ratios() -> None:
    """Rates are divided by cores, and by those of peers in the same run."""
    points = {
        ("docker cold", 8): 110.0,
        ("docker warm", 8): 150.0,
        ("docker exec", 8): 10.0,
        ("llm-sandbox's pool", 8): 11.0,
        ("docker run", 2): 4.0,
        ("docker run", 8): 3.0,
        ("docker fresh", 8): 3.7,
    }
    measured = Measured(
        cores=2,
        points=(
            *(Point(way=way, concurrency=at, rate=rate) for (way, at), rate in points.items()),
            Point(way="fork + exec", concurrency=1, rate=60, each_ms=15.0),
            Point(way="docker cold", concurrency=1, rate=41, each_ms=24.0),
            Point(way="local cold", concurrency=1, rate=40, each_ms=25.0),
        ),
    )
    assert met(overhead.summarize(measured)) == {
        "docker, cold, 8 at once": True,
        "docker, warm, 8 at once": False,
        "docker, warm, to docker exec": True,
        "docker, warm, to llm-sandbox's pool": False,
        "one fresh container a snippet, to the best of docker run": True,
        "docker cold, 1 at once: beyond fork + exec": True,
        "docker warm, 1 at once: beyond fork + exec": None,
        "local cold, 1 at once: beyond fork + exec": False,
        "local warm, 1 at once: beyond fork + exec": None,
    }


def test_what_did_not_run_warm_is_no_warm_figure() -> None:
    """A run that was to be warm and wasn't is left out, with the reason."""
    cold = judged(*(verdict(n, start_s=n, wall_s=0.9) for n in range(8)))
    point = overhead.point_of("local warm", 1, cold, wants_warm=True)
    assert (point.rate, point.note) == (None, NOT_WARM)
    point = overhead.point_of("local cold", 1, cold, wants_warm=False)
    assert point.rate == pytest.approx(1)
    assert point.own_ms == pytest.approx(100)
    warm = judged(*(verdict(n, start_s=n, warm=True) for n in range(8)))
    assert overhead.point_of("local warm", 1, warm, wants_warm=True).rate == pytest.approx(1)


def test_a_run_that_failed_is_no_figure() -> None:
    """Where a program that does nothing fails, there is no rate."""
    point = overhead.point_of("x", 1, judged(verdict(0, exit_code=1)), wants_warm=False)
    assert (point.rate, point.note) == (None, "1 failed, 0 unjudged")


def test_slots_are_held_by_what_starts_in_them() -> None:
    """The last of the starts count, up to the very last one, whatever the order."""
    starts = [8, 0, 4, 2, 6, 5]
    assert slots.held(starts, 3, slots=2, sleep_s=2) == pytest.approx(3 * 2 / (2 * 4))
    assert slots.held(starts, 6, slots=2, sleep_s=2) == pytest.approx(5 * 2 / (2 * 8))
    one = slots.Measured(concurrency=2, count=3, ahead=2, share=0.96, floor=0.9, wall_s=1)
    opening = slots.Measured(concurrency=2, count=3, ahead=0, share=0.5, floor=0.9, wall_s=1)
    summary = slots.summarize([one, opening])
    assert [figure.name for figure in summary.figures] == [
        "5 sleeps, 2 at once",
        "3 sleeps, 2 at once",
    ]
    assert met(summary) == {"slots hold a snippet, 3 sleeps, 2 at once": True}
    assert "bare Pythons 90.0%" in summary.figures[0].note


def test_memory_is_compared_between_sizes() -> None:
    """The largest run's peak is divided by the smallest's."""
    small = scale.Measured(outputs=10, wall_s=1, engine_cpu_s=1, peak_bytes=100)
    for peak, good in ((110, True), (111, False)):
        large = scale.Measured(outputs=1000, wall_s=1, engine_cpu_s=1, peak_bytes=peak)
        assert list(met(scale.summarize([small, large])).values()) == [good]


def test_an_idle_agent_is_weighed() -> None:
    """In millions of bytes, the whole sandbox."""
    one = startup.Measured(backend="local", sandboxes=8, took_s=1, idle_bytes=11.9e6)
    assert list(met(startup.summarize([one])).values()) == [True]


def test_torch_is_compared_cold_to_warm() -> None:
    """A warm import has to take a thirtieth; where nothing ran warm, that isn't known."""
    cold = torch_rows.Way(name="cold", wall_s={1: 2.0}, cpu_s={1: 2.0}, import_wall_s=3.0)
    warm = torch_rows.Way(name="warm", wall_s={1: 0.2}, cpu_s={1: 0.2}, import_wall_s=0.1)
    assert list(met(torch_rows.summarize([cold, warm])).values()) == [True]
    missing = torch_rows.way_of("warm", judged(verdict(0)), judged(verdict(0)), wants_warm=True)
    assert missing.note == NOT_WARM
    assert list(met(torch_rows.summarize([cold, missing])).values()) == [None]


def test_verdicts_that_differ_are_named() -> None:
    """Each output that passes one way and fails the other."""
    serial = Serial(passed={"1/7/0": True, "1/7/1": True}, wall_s=4)
    run = judged(verdict(0), verdict(1, exit_code=1), wall_s=2.0)
    point = corpus.compared("cold", 2, run, serial)
    assert point.differs == ("1/7/1: failed",)
    summary = corpus.summarize(corpus.Measured(executed=2, serial_s=4, points=(point,)))
    assert summary.figures[1].note == "2.0 times as fast; 1 verdicts differ (1/7/1: failed)"


def test_ml_benchs_way_passes_what_still_runs(tmp_path: Path) -> None:
    """Exit code 0 and the time limit pass, in a folder where the last program's files stay."""
    place = places.Place(
        name="p", github_id=1, workdir=str(tmp_path), python=sys.executable, limit_s=0.5
    )
    codes = ("open('left', 'w')", "open('left')", "1/0", "while True: pass", "not executed")
    rows = [Row(github_id=1, id=7, outputs=codes)]
    done = one_after_another(rows, [place], {f"1/7/{n}" for n in range(4)})
    assert done.passed == {"1/7/0": True, "1/7/1": True, "1/7/2": False, "1/7/3": True}
    assert list(tmp_path.iterdir()) == []


def test_the_table_says_what_was_not_measured() -> None:
    """With the reason, and without a verdict on its target."""
    machine = Machine(
        measured_at="now",
        cpu="c",
        cores=2,
        memory_gib=1,
        kernel="k",
        python="3",
        docker="none",
        load_before=0,
    )
    summary = Summary(
        figures=(Figure(name="a way", value=None, note=NOT_WARM),),
        targets=(Target(name="it", value=None, unit="", wanted=2, sense="at least"),),
    )
    text = show.table(machine, {"overhead": summary})
    assert f"| a way | not measured | {NOT_WARM} |" in text
    assert "| it | not measured | at least 2 | not measured |" in text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_everything_is_measured_once(tmp_path: Path) -> None:
    """A quick run on this machine, without Docker and torch, writes figures and a table."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLBENCH_")}
    command = [sys.executable, "-m", "bench", "--quick", "--out", str(tmp_path)]
    said = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    written = msgspec.json.decode((tmp_path / "bench.json").read_bytes(), type=Written)
    values = {
        figure.name: figure.value
        for summary in written.summaries.values()
        for figure in summary.figures
    }
    assert written.summaries.keys() == {"overhead", "torch", "slots", "scale", "startup", "corpus"}
    for name in ("fork + exec, 1 at once", "local cold, 8 at once", "2,000 outputs"):
        assert values[name], values
    assert written.measured["corpus"]["executed"] == 9
    assert all(point["differs"] == [] for point in written.measured["corpus"]["points"])
    assert (tmp_path / "table.md").read_text().startswith("Machine: ")
