import io
import json
from pathlib import Path
from typing import get_args

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from mlbench_exec.errors import RunFolderError
from mlbench_exec.failures import Failure
from mlbench_exec.pool import Statistics
from mlbench_exec.report import (
    Progress,
    plain,
    render_header,
    render_json,
    render_summary,
    write_results,
    write_summary,
)
from mlbench_exec.scores import Tally, summarize
from mlbench_exec.summary import Summary
from mlbench_exec.verdicts import PASSING, Status, Unjudged, Verdict


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


MEAN = Failure(kind="network", error="[bold]Evil\x1b[2J\u202eError", detail="\x9b31m\x1b]0;x\x07")


def tally() -> Tally:
    counted = Tally()
    rows: list[tuple[int, int, list[Status]]] = [
        (9, 2, ["failed", "passed", "failed", "failed", "failed"]),
        (9, 1, ["wrong_type", "out_of_memory", "killed", "failed", "failed"]),
        (2, 7, ["passed_at_limit"]),
    ]
    for github_id, row_id, statuses in rows:
        for index, status in enumerate(statuses):
            counted.add(
                Verdict(
                    github_id=github_id,
                    id=row_id,
                    index=index,
                    status=status,
                    passed=status in PASSING,
                    arguments_ok=True,
                    type_ok=True,
                    output_hash="h",
                    error="[bold]Evil\x1b[2J\u202eError" if status == "failed" else None,
                ),
                empty=status == "passed",
                failure=MEAN if status == "failed" else None,
            )
    counted.add_unjudged(
        Unjudged(reason="no [red]image\x07", kind="environment", github_id=2, id=7, index=1)
    )
    return counted


def summary() -> Summary:
    names = {9: "External-Attention-pytorch", 2: "bert[/]\x1b]0;title\x07"}
    return summarize(tally(), split_rows={9: 24, 2: 22}, names=names)


def judged(status: Status) -> Verdict:
    return Verdict(
        github_id=9,
        id=1,
        index=0,
        status=status,
        passed=status in PASSING,
        arguments_ok=True,
        type_ok=True,
        output_hash="h",
    )


def shown(renderable: RenderableType, width: int = 160) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=True, color_system=None).print(renderable)
    return stream.getvalue()


def ids_in(path: Path) -> list[int]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_results_come_in_the_datasets_order(tmp_path: Path) -> None:
    """Each submitted row has one line; rows that the dataset lacks come last."""
    write_results(tmp_path, tally(), order=[(9, 1), (9, 3), (9, 2)])
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert lines == [
        {"id": 1, "github_id": 9, "pass1": 0, "pass2": 0, "pass5": 0},
        {"id": 2, "github_id": 9, "pass1": 0, "pass2": 1, "pass5": 1},
        {"id": 7, "github_id": 2, "pass1": 1, "pass2": 1, "pass5": 1},
    ]
    write_results(tmp_path, tally())
    assert ids_in(tmp_path / "results.jsonl") == [7, 1, 2]


def test_the_summary_file_is_what_json_prints(tmp_path: Path) -> None:
    """summary.json has the promised names, and `--json` prints the same text."""
    write_summary(tmp_path, summary())
    text = (tmp_path / "summary.json").read_text()
    assert text.strip() == render_json(summary()).strip()
    written = json.loads(text)
    assert written["counts"] == 3
    assert written["eval_pass1"] == pytest.approx(1 / 3)
    assert written["eval_pass5"] == 0.5
    assert written["all_rows"]["pass1"]["rate"] == pytest.approx(1 / 46)
    assert written["statuses"]["failed"] == 6
    assert written["statuses"]["skipped"] == 0
    assert written["repos"]["External-Attention-pytorch"]["rows"] == 2
    assert not list(tmp_path.glob("*.tmp"))


def test_a_file_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    """The message names the file, the cause, and what is safe."""
    with pytest.raises(RunFolderError, match=r"can't write .*summary\.json: No such file"):
        write_summary(tmp_path / "gone", summary())


def test_the_summary_tells_what_a_person_wants_to_know() -> None:
    """Totals, coverage, repositories, statuses, errors, reasons and next steps are there."""
    text = shown(render_summary(summary()))
    for part in (
        "33.33 %",
        "3 of the split's 46 rows submitted (6.52 %)",
        "External-Attention-pytorch",
        "passed_at_limit",
        "1 empty answer passed",
        "correct the environments file",
        "0 outputs executed",
        "6 outputs failed for want of a network",
    ):
        assert part in " ".join(text.split()), part
    assert "skipped" not in text


def test_the_summary_fits_a_narrow_terminal() -> None:
    """On 90 columns every figure is whole; only long names are cut."""
    text = shown(render_summary(summary()), width=90)
    lines = text[text.index("By repository") : text.index("Verdicts")].splitlines()
    assert max(map(len, lines)) <= 90
    row = next(line for line in lines if line.strip().startswith("External"))
    assert row.split()[1:] == ["2", "10", "0.0", "50.0", "1", "0", "6", "1", "1", "1", "0"]


def test_what_programs_name_can_not_speak_to_the_terminal() -> None:
    """Markup, escapes and bidirectional marks are shown, never obeyed."""
    text = shown(render_summary(summary()))
    assert not set(text) & set("\x1b\x07\u202e")
    assert "[bold]Evil\\x1b[2J\\u202eError" in text
    assert "\\x9b31m\\x1b]0;x\\x07" in text
    assert "bert[/]\\x1b]0;title\\x07" in text
    assert "no [red]image\\x07" in text
    header = shown(render_header({"backend": "local", "why": "[b]no\x1b[31m docker"}))
    assert "[b]no\\x1b[31m docker" in header


@given(st.text())
def test_any_text_becomes_one_safe_line(text: str) -> None:
    """Whatever a text holds, what is shown of it is one printable, encodable line."""
    safe = plain(text, limit=50).plain
    assert all(character.isprintable() or character.isspace() for character in safe)
    assert len(safe.splitlines()) <= 1
    safe.encode()
    assert plain("a" * 99, limit=50).plain == "a" * 49 + "…"


def test_an_empty_run_has_a_summary() -> None:
    """No rows give dashes, and no division by zero."""
    assert "0 rows submitted" in shown(render_summary(summarize(Tally())))


def test_progress_tells_rate_and_time_left() -> None:
    """Earlier verdicts are done, but only this run's make the rate."""
    clock = Clock()
    slots = Statistics(3, 0, 0, 3)
    progress = Progress(io.StringIO(), total=130, clock=clock, slots=lambda: slots, size=4)
    assert progress.line() == "0/130  sandboxes 3/4"
    progress.resumed(10)
    clock.now_s = 2.0
    for _ in range(19):
        progress.judged(judged("passed"))
    progress.unjudged()
    assert progress.line() == "30/130  10.0/s  10 s left  passed 19  unjudged 1  sandboxes 3/4"
    assert repr(progress).startswith("<Progress '30/130")


def test_progress_without_a_total_has_no_time_left() -> None:
    """Standard input has no known end."""
    clock = Clock()
    progress = Progress(io.StringIO(), clock=clock)
    clock.now_s = 4.0
    progress.judged(judged("passed_at_limit"))
    assert progress.line() == "1  0.2/s  at limit 1"


def test_the_rate_is_that_of_the_last_minute() -> None:
    """A slow start is forgotten."""
    clock = Clock()
    progress = Progress(io.StringIO(), clock=clock)
    for second in range(1, 301):
        clock.now_s = float(second)
        for _ in range(10 if second > 200 else 1):
            progress.judged(judged("failed"))
        progress.line()
    assert "  10.0/s  " in progress.line()


def test_a_file_gets_plain_lines() -> None:
    """A line is appended where it says something new, and nothing that moves a cursor."""
    stream = io.StringIO()
    progress = Progress(stream, total=5, clock=Clock())
    for status in get_args(Status)[:3]:
        progress.judged(judged(status))
        for _ in range(2):
            progress.write(progress.line())
    progress.finish(progress.line())
    text = stream.getvalue()
    assert text.count("\n") == 3
    assert not set(text) & set("\x1b\r")


@pytest.mark.asyncio
async def test_progress_is_shown_until_cancelled() -> None:
    """The last state is written even when the run ends before the first interval."""
    stream = io.StringIO()
    progress = Progress(stream, total=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(progress.show)
        await anyio.sleep(0.01)
        progress.judged(judged("passed"))
        tasks.cancel_scope.cancel()
    assert stream.getvalue().startswith("1/1")
