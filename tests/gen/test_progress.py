"""Progress: a bar on a terminal, plain lines elsewhere, and nothing that breaks a run."""

import errno
import io
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import anyio
import pytest

from mlbench_gen.progress import Preparing, shown
from mlbench_gen.tally import Tally

ANSWERED = {"model": "m", "usage": [10, 500], "details": [{"kind": "answered"}]}


class Terminal:
    """A pseudo-terminal; `stream` is its writing end, `text` all that was written to it."""

    def __init__(self) -> None:
        self._reader, writer = os.openpty()
        self.stream = os.fdopen(writer, "w")
        self._pieces: list[bytes] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._reader, 1 << 16)
            except OSError:  # how Linux says that the writing end has been closed
                return
            if not piece:
                return
            self._pieces.append(piece)

    async def shows(self, text: str) -> None:
        with anyio.fail_after(10):
            while text not in self.text():  # noqa: ASYNC110 - a thread reads
                await anyio.sleep(0.01)

    def close(self) -> str:
        """What a person saw until the end."""
        self.stream.close()
        self._thread.join(10)
        os.close(self._reader)
        return self.text()

    def text(self) -> str:
        """What a person saw so far, without colours."""
        return re.sub(
            r"\x1b\[[0-9;?]*[a-zA-Z]", "", b"".join(self._pieces).decode(errors="replace")
        )


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


def tally_at(seconds: list[float]) -> Tally:
    return Tally(lambda: seconds[0])


@pytest.mark.asyncio
async def test_a_terminal_gets_a_bar_with_tokens_by_the_second(terminal: Terminal) -> None:
    """The bar tells rows done of all and tokens by the second, and its last state is the end."""
    now = [0.0]
    tally = tally_at(now)
    tally.rows, tally.under_way = 8, 2
    async with shown(tally, terminal.stream):
        await terminal.shows("0/8")
        now[0], tally.done = 2.0, 3
        tally.replied(ANSWERED)
        await terminal.shows("3/8")
        tally.done, tally.under_way = 8, 0
    seen = terminal.close()
    assert "\n" not in seen.rstrip("\r\n")  # one line, written again and again
    states = [part for part in seen.split("\r") if part.strip()]
    assert any("0/8" in part for part in states)
    assert any("3/8" in part and "2 asked" in part and "250 tokens/s" in part for part in states)
    assert "8/8" in states[-1]


@pytest.mark.asyncio
async def test_elsewhere_lines_are_plain_and_rare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file gets a line now and then, without a single control character."""
    monkeypatch.setattr("mlbench_gen.progress.LINE_EVERY_S", 0.1)
    tally = Tally()
    tally.rows = 8
    log = anyio.Path(tmp_path, "log")
    started = anyio.current_time()
    with (tmp_path / "log").open("w") as stream:
        async with shown(tally, stream):
            with anyio.fail_after(10):
                # The file system sends no event.
                while (await log.read_text()).count("\n") < 3:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
    lines = (await log.read_text()).splitlines()
    assert set(lines) == {"answered 0/8"}
    assert len(lines) <= (anyio.current_time() - started) / 0.1


class Gone(io.StringIO):
    """A stream whose reader has left."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: is_terminal  # type: ignore[method-assign]

    def write(self, text: str, /) -> int:
        raise OSError(errno.EIO if self.isatty() else errno.EPIPE, "gone")


@pytest.mark.asyncio
@pytest.mark.parametrize("is_terminal", [True, False])
async def test_a_reader_that_left_ends_nothing(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where stderr can't be written any more, the work goes on without being shown."""
    monkeypatch.setattr("mlbench_gen.progress.LINE_EVERY_S", 0.02)
    went_on = False
    async with shown(Tally(), Gone(is_terminal)):
        await anyio.sleep(0.1)
        went_on = True
    assert went_on


def test_a_preparation_shows_how_much_is_left(terminal: Terminal) -> None:
    """On a terminal a bar counts repositories and splits of all, below a line for each."""
    with Preparing(terminal.stream) as progress:
        progress.expect(3)
        progress.tell("alpha", "prepared")
        progress.tell("[red]beta", "unchanged")
    seen = terminal.close()
    assert "alpha: prepared" in seen
    assert "[red]beta: unchanged" in seen
    assert "2/3" in seen


@pytest.mark.slow
def test_a_preparation_is_plain_elsewhere() -> None:
    """Into a pipe, a line for each repository and split is all there is."""
    code = (
        "import sys; from mlbench_gen.progress import Preparing\n"
        "with Preparing(sys.stderr) as progress:\n"
        "    progress.expect(1); progress.tell('alpha', 'prepared')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == "alpha: prepared\n"
