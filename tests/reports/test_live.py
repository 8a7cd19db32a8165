"""The live view: what it says, how it fits, and what it leaves on a terminal."""

import io
import json
import re
import signal
from pathlib import Path
from typing import Any

import anyio
import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acceptance.command import EXECUTABLE, write_lines
from mlbench_exec.pool import Running, Statistics
from mlbench_exec.report import progress as progress_module
from mlbench_exec.report.live import Screen, Sight, Slow, is_live, lines
from mlbench_exec.report.progress import LIVE_EVERY_S, Progress
from mlbench_exec.verdicts import Verdict
from reports.folders import verdict
from reports.terminal import Terminal

GIB = 1 << 30
LIST = "slowest so far"


def running(slot: int, since_s: float) -> Running:
    return Running(slot=slot, github_id=9, id=250 + slot, index=slot, since_s=since_s)


def a_sight(**other: Any) -> Sight:
    facts: dict[str, Any] = {
        "done": 811,
        "total": 1300,
        "rate": 62.44,
        "left_s": 83.0,
        "took_s": 13.2,
        "statuses": {"passed": 220, "passed_at_limit": 14, "failed": 310, "wrong_arguments": 256},
        "unjudged": 1,
        "earlier": 10,
        "now_s": 100.0,
        "slots": Statistics(3, 2, 0, 9, 1, 4, (running(0, 99.5), running(1, 87.7))),
        "size": 8,
        "slowest": (Slow(10.02, "9/255/0", "passed_at_limit"), Slow(3.5, "2/31/4", "failed")),
        "stalled": 0.123,
        "alone": 2,
        "retried": 1,
        "largest": (212 << 20, "102/4/1"),
        "machine": (3 * GIB, 24 * GIB),
    }
    return Sight(**{**facts, **other})


def texts(sight: Sight, width: int = 100, height: int = 40) -> list[str]:
    return [line.plain for line in lines(sight, width, height)]


def test_it_says_what_a_person_wants_to_know() -> None:
    """Rate, time left, statuses, slots, slowest snippets, contention and memory are there."""
    text = "\n".join(texts(a_sight()))
    for part in (
        "811 of 1,300 · 62 % · 62.4/s · 1 min 23 s left",
        "13 s so far",
        "● earlier 10   ● passed 220   ● at limit 14   ● failed 310   ● wrong args 256",
        "● unjudged 1",
        "■■□□□□□□ 2 of 8 busy · 1 starting · 2 ready",
        "12 % of the time waiting for a CPU · 4 held back until a CPU has time",
        "2 judged again alone · 1 on a fresh sandbox",
        "at most 212 MiB, by 102/4/1 · machine 3 GiB of 24 GiB",
        "10.0 s  9/255/0  at limit",
    ):
        assert part in text, part
    now = re.findall(r"^ +([\d.]+ s)  (\S+)  slot (\d)", text, re.MULTILINE)
    assert now == [("12.3 s", "9/251/1", "1"), ("0.5 s", "9/250/0", "0")]


def test_the_bar_gives_every_status_its_share() -> None:
    """Half of what is done passed: so did half of the coloured part; the rest isn't begun."""
    sight = a_sight(
        done=50, total=100, statuses={"passed": 25, "failed": 25}, unjudged=0, earlier=0
    )
    (bar,) = (line for line in lines(sight, 101, 40) if set(line.plain) <= set("━─") and line.plain)
    assert bar.plain == "━" * 50 + "─" * 50
    assert [(span.start, span.end, span.style) for span in bar.spans][:2] == [
        (0, 25, "green"),
        (25, 50, "red"),
    ]


def test_nothing_known_yet() -> None:
    """At the start, and without a total, it says only what is so."""
    empty = {"statuses": {}, "unjudged": 0, "earlier": 0, "slowest": (), "largest": None}
    more = {"rate": None, "left_s": None, "slots": Statistics(0, 0, 0, 0), "stalled": None}
    rest = {"machine": None, "alone": 0, "retried": 0}
    found = texts(a_sight(done=0, total=None, took_s=0.0, **empty, **more, **rest), 60)
    assert [line.strip() for line in found if line.strip()] == [
        "0" + " " * 48 + "0 s so far",
        "─" * 59,
        "slots       □□□□□□□□ 0 of 8 busy",
        "contention  nothing executed yet",
    ]
    assert texts(a_sight(done=0, total=0, statuses={}, unjudged=0, earlier=0), 60)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 60), st.integers(0, 40), st.text(), st.text())
def test_it_fits_any_window(width: int, height: int, busy: int, note: str, beside: str) -> None:
    """No line reaches the last column, and there are never more than fit; the count stays."""
    slots = Statistics(busy, 0, 0, 0, 0, 0, tuple(running(slot, slot) for slot in range(busy)))
    found = lines(a_sight(slots=slots, size=40, note=note, beside=beside), width, height)
    assert len(found) <= height
    assert all(line.cell_len < max(width, 2) for line in found)
    text = "".join(line.plain for line in found)
    assert all(character.isprintable() or character.isspace() for character in text)
    assert any(line.plain.startswith("811"[: max(width - 2, 0)]) for line in found)


def test_what_is_said_beside_it_is_no_markup() -> None:
    """Words from elsewhere can neither colour nor move anything."""
    text = "\n".join(texts(a_sight(note="[red]lost\x1b[2J\u202e", beside="asked\x9b31m")))
    assert "[red]lost\\x1b[2J\\u202e" in text
    assert "asked\\x9b31m" in text


def test_a_verdict_is_counted_where_it_is_told() -> None:
    """The slowest five, the largest, who waited, who was judged again: as the verdicts say."""
    progress = Progress(io.StringIO(), total=20, clock=lambda: 0.0)
    for index in range(10):
        progress.judged(executed(index, wall_s=1.0 + index, peak_memory_bytes=(20 - index) << 20))
    progress.judged(executed(10, wall_s=0.5, stalled_s=0.25, contended=True, attempts=2))
    progress.judged(executed(11, wall_s=0.5, stalled_s=0.25, attempts=2))
    progress.judged(verdict((9, 1), 12, "wrong_type"))
    sight = progress.sight()
    assert [one.name for one in sight.slowest] == [f"9/1/{index}" for index in (9, 8, 7, 6, 5)]
    assert sight.largest == (20 << 20, "9/1/0")
    assert (sight.alone, sight.retried, sight.done) == (1, 1, 13)
    assert sight.stalled == pytest.approx(0.5 / 56)


def executed(index: int, **fields: Any) -> Verdict:
    return verdict((9, 1), index, "failed", **{"attempts": 1, "stalled_s": 0.0, **fields})


class Tty(io.StringIO):
    """A terminal of 80 columns and 24 lines, as far as the view can tell."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.screen = pyte.Screen(80, 24)
        self._stream = pyte.Stream(self.screen)
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("TERM", "xterm-256color")
        self.size(80, 24)

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._stream.feed(text.replace("\n", "\r\n"))  # as a terminal's driver has it
        return super().write(text)

    def size(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        self._monkeypatch.setenv("COLUMNS", str(columns))
        self._monkeypatch.setenv("LINES", str(rows))

    def rows(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display if line.strip()]


def test_it_stays_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often and at whatever size it is drawn, it is there once, then gone."""
    tty = Tty(monkeypatch)
    tty.write("$ mlbench-exec run\n")
    screen = Screen(tty)
    for columns, rows in ((80, 24), (80, 24), (120, 40), (50, 20), (30, 12), (90, 30)):
        tty.size(columns, rows)
        for done in (811, 812):
            screen.draw(a_sight(done=done))
        shown = tty.rows()
        assert sum(line.startswith("812 of") for line in shown) == 1
        assert not any(line.startswith("811 of") for line in shown)
        assert not tty.screen.cursor.hidden
    screen.close()
    assert tty.rows() == []  # a narrower window had it start from nothing
    assert not tty.screen.cursor.hidden


def test_what_stands_above_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a narrower window, nothing but the view itself is taken away."""
    tty = Tty(monkeypatch)
    tty.write("$ mlbench-exec run\n")
    progress = Progress(tty, total=2)
    progress.draw(a_sight())
    assert len(tty.rows()) > 8
    progress.finish("2/2  passed 2")
    assert tty.rows() == ["$ mlbench-exec run", "2/2  passed 2"]


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR is heeded: the same words without a colour."""
    found = []
    for value in ("", "1"):
        monkeypatch.setenv("NO_COLOR", value)
        tty = Tty(monkeypatch)
        Screen(tty).draw(a_sight())
        found.append((tty.rows(), bool(re.search(r"\x1b\[[\d;]*3[1-6]m", tty.getvalue()))))
    assert [colours for _, colours in found] == [True, False]
    assert found[0][0] == found[1][0]


def test_who_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """What isn't a terminal, or can't move a cursor, gets no view, whatever FORCE_COLOR says."""
    assert is_live(Tty(monkeypatch))
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not is_live(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not is_live(tty) if (tty := io.StringIO()) else True


def test_a_terminal_without_such_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an encoding without them, lines and dots are drawn with ASCII's."""

    class Old(Tty):
        encoding = "ascii"

    tty = Old(monkeypatch)
    Screen(tty).draw(a_sight())
    assert "\n".join(tty.rows()).isascii()
    assert any(line.startswith("811 of 1,300 - 62 %") for line in tty.rows())


@pytest.mark.asyncio
async def test_it_is_drawn_seldom_however_many_verdicts_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At most four times a second; verdicts in between are counted only."""
    assert LIVE_EVERY_S >= 0.25
    monkeypatch.setattr(progress_module, "LIVE_EVERY_S", 0.01)
    drawn: list[int] = []
    progress = Progress(Tty(monkeypatch), total=5000)
    monkeypatch.setattr(progress, "draw", lambda sight: drawn.append(sight.done))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(progress.show)
        for _ in range(10):
            for index in range(500):
                progress.judged(executed(index, wall_s=0.01))
            await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert len(drawn) <= 20
    assert progress.done == 5000


@pytest.mark.asyncio
async def test_a_terminal_that_goes_away_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on when nobody can see it any more."""

    class Gone(Tty):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    progress = Progress(Gone(monkeypatch), total=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(progress.show)
        await anyio.sleep(0.05)
        progress.judged(executed(0, wall_s=1.0))
        tasks.cancel_scope.cancel()
    assert progress.done == 1


def a_command(home: Path, outputs: list[str]) -> list[str | Path]:
    """A run of these bash snippets, two at once."""
    key = {"github_id": 1, "id": 1}
    row = {
        **key,
        **{"github": "https://example.org/tiny", "repo_id": 1, "path": "./", "arguments": "{}"},
        **{"instruction": "", "oracle": "", "type": "Bash Script", "output": "", "prefix_code": ""},
    }
    (home / "environments.toml").write_text(
        f'[environments.tiny]\ngithub_ids = [1]\nworkdir = "{home}"\npython = "/usr/bin/python3"\n'
        "time_limit = { bash = 30 }\n"
    )
    return [
        *(EXECUTABLE, "run", write_lines(home / "outputs.jsonl", [{**key, "output": outputs}])),
        *("--dataset", write_lines(home / "rows.jsonl", [row])),
        *("--environments", home / "environments.toml", "--out", home / "run"),
        *("--backend", "local", "--concurrency", "2", "--memory", "128m"),
    ]


EVIL = "printf '\\033[2J\\033]0;evil\\007 EVIL EVIL\\n' # run.sh \n"


@pytest.mark.slow
def test_a_real_run_on_a_real_terminal(tmp_path: Path) -> None:
    """The view comes, tells what runs, says nothing that a program printed, and goes."""
    outputs = [EVIL, f"{EVIL} sleep 2; exit 3", f"{EVIL} kill -SEGV $$", f"{EVIL} sleep 2"]
    with Terminal(a_command(tmp_path, outputs), lines=60) as terminal:
        text = terminal.wait_for(lambda text: "running now" in text and LIST in text)
        assert re.search(r"^\d of 4 · \d+ % ", text, re.MULTILINE)
        assert re.search(r"\d of 2 busy", text)
        assert re.search(r"[\d.]+ s  1/1/[13]  slot \d", text)
        assert terminal.wait() == 0, terminal.text()
    assert b"EVIL" not in terminal.raw.partition(b"Results")[0]
    text = terminal.text()
    assert LIST not in text
    assert len(re.findall(r"^4/4 .* passed 2  failed 1  killed 1 ", text, re.MULTILINE)) == 1
    assert not terminal.screen.cursor.hidden
    assert len(terminal.raw) < 60_000


@pytest.mark.slow
def test_interrupted_in_a_resized_window(tmp_path: Path) -> None:
    """A smaller window has one view of its size; Ctrl-C leaves a clean terminal and code 130."""
    command = [*a_command(tmp_path, ["true # run.sh ", "sleep 20 # run.sh "])]
    with Terminal(command, env={"NO_COLOR": "1"}) as terminal:
        terminal.wait_for(lambda text: LIST in text)
        terminal.resize(44, 18)
        text = terminal.wait_for(lambda text: "\nrunning now\n" in text and LIST in text)
        assert text.count("of 2 · 50 %") == 1
        terminal.type(b"\x03")
        assert terminal.wait() == 128 + signal.SIGINT, terminal.text()
    text = terminal.text()
    assert "Interrupted: cleaning up." in text
    assert LIST not in text
    assert text.count("1/2") == 1
    assert not terminal.screen.cursor.hidden
    assert not re.search(rb"\x1b\[[\d;]*3[1-6]m", terminal.raw)
    assert len(json.loads((tmp_path / "outputs.jsonl").read_text())["output"]) == 2
