"""Makes the documentation's pictures, from real runs of the demo: `make pictures`.

Terminals are run on a pseudo-terminal and drawn as SVG by rich; reports are photographed in a
headless Chromium. Nothing is drawn by hand, and nothing is fetched.
"""

import io
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text
from selenium import webdriver

from reports.browser import chromium, skip_without_chromium
from reports.terminal import Terminal

ROOT = Path(__file__).parent.parent
PICTURES = Path(__file__).parent / "pictures"
DEMO = ROOT / "examples" / "demo"
EXECUTABLE = Path(sys.executable).parent / "mlbench-exec"
COLUMNS = 92
THEME = TerminalTheme(
    (20, 24, 28),
    (226, 230, 230),
    [
        *((70, 82, 93), (224, 112, 94), (79, 174, 132), (229, 177, 92)),
        *((127, 187, 227), (167, 134, 208), (104, 196, 196), (226, 230, 230)),
    ],
    [
        *((135, 149, 161), (240, 140, 122), (147, 208, 177), (240, 200, 120)),
        *((160, 208, 240), (200, 127, 155), (140, 220, 220), (255, 255, 255)),
    ],
)
# name, width, height (None: all of it), scheme, what is opened and shown
SHOTS = (
    ("report-light", 1200, 1700, "light", None),
    ("report-dark", 1200, 1700, "dark", None),
    ("report-narrow", 420, 1500, "light", None),
    ("report-output", 1200, 900, "light", "102/6/1"),
)


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    skip_without_chromium()
    with tempfile.TemporaryDirectory(prefix="demo-") as home:
        shutil.copytree(DEMO, Path(home, "demo"))  # so that no picture shows where we are
        names = (Path("runs", "first"), Path("runs", "second"))
        first = Path(home, names[0])
        live, said = judge(Path(home), "demo/outputs.jsonl", names[0])
        revise(Path(home, "revised.jsonl"))
        judge(Path(home), "revised.jsonl", names[1])
        compared = told(["report", *names], cwd=Path(home))
        save_terminal("live", "mlbench-exec run outputs.jsonl", live)
        save_terminal("summary", "mlbench-exec run outputs.jsonl", said)
        save_terminal("compare", "mlbench-exec report runs/first runs/second", compared)
        page = Path(home, "compare.html")
        html = told(["report", *names, "--format", "html"], cwd=Path(home), pipe=page)
        assert not html, html
        photograph(Path(home), first / "report.html", page)


def judge(home: Path, outputs: str, folder: Path) -> tuple[list[Text], list[Text]]:
    """Judge on a terminal: its screen in the midst of the run, and at the end."""
    text = (DEMO / "environments.toml.in").read_text().replace("@PYTHON@", sys.executable)
    text = text.replace("@ROOT@/examples", str(home))
    (home / "environments.toml").write_text(text)
    command = [
        *("run", outputs, "--dataset", "demo/rows.jsonl", "--environments", "environments.toml"),
        *("--backend", "local", "--memory", "256m", "--concurrency", "2", "--out", folder),
    ]
    with Terminal([EXECUTABLE, *command], columns=COLUMNS, lines=80, cwd=home) as terminal:
        terminal.wait_for(lambda text: has_judged(text, 33))
        time.sleep(1)
        live = seen(terminal)
        assert terminal.wait(within_s=200) == 0, terminal.text()
        return live, seen(terminal)


def has_judged(text: str, count: int) -> bool:
    found = re.search(r"^(\d+) of 60", text, re.MULTILINE)
    return found is not None and int(found[1]) >= count


def revise(path: Path) -> None:
    """The demo's outputs as a somewhat better model would have given them."""
    rows = [json.loads(line) for line in (DEMO / "rows.jsonl").read_text().splitlines()]
    gold = {(row["github_id"], row["id"]): row["output"] for row in rows}
    lines = []
    for place, line in enumerate((DEMO / "outputs.jsonl").read_text().splitlines()):
        row = json.loads(line)
        better = gold[row["github_id"], row["id"]]
        row["output"][place % 3] = better
        row["output"].insert(0, row["output"].pop(1 + place % 4))
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))


def told(arguments: Sequence[str | Path], *, cwd: Path, pipe: Path | None = None) -> list[Text]:
    """What a command says on a terminal; with `pipe`, its stdout goes into that file."""
    command: list[str | Path] = [EXECUTABLE, *arguments]
    if pipe is not None:
        command = ["sh", "-c", 'out=$1; shift; exec "$@" > "$out"', "sh", pipe, *command]
    with Terminal(command, columns=COLUMNS, lines=120, cwd=cwd) as terminal:
        assert terminal.wait() == 0, terminal.text()
        return seen(terminal)


def seen(terminal: Terminal) -> list[Text]:
    """The screen with its colours; nothing below the last line."""
    found = []
    screen = terminal.screen
    for row in range(screen.lines):
        cells = (screen.buffer[row][column] for column in range(screen.columns))
        line = Text()
        for style, group in groupby(cells, styled):
            line.append("".join(cell.data for cell in group), style)
        line.rstrip()
        found.append(line)
    while found and not found[-1].plain:
        found.pop()
    return found


def styled(cell: pyte.screens.Char) -> Style:
    """What pyte names its own way, as rich has it."""
    name = cell.fg.replace("bright", "bright_").replace("brown", "yellow")
    if re.fullmatch("[0-9a-f]{6}", name):
        name = f"#{name}"
    return Style(color=None if name == "default" else name, bold=cell.bold, italic=cell.italics)


def save_terminal(name: str, title: str, lines: Sequence[Text]) -> None:
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for line in lines:
        console.print(line, no_wrap=True, crop=False)
    svg = console.export_svg(title=title, theme=THEME, unique_id=name)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # it would be fetched
    svg = svg.replace("Fira Code,", "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono',")
    (PICTURES / f"{name}.svg").write_text(svg)


def photograph(home: Path, report: Path, compared: Path) -> None:
    with chromium(home / "profile") as driver:
        for name, width, height, scheme, output in SHOTS:
            shoot(driver, report, name, width, height, scheme, output)
        shoot(driver, compared, "compare-light", 1200, 1500, "light", None)


def shoot(
    driver: webdriver.Chrome,
    page: Path,
    name: str,
    width: int,
    height: int,
    scheme: str,
    output: str | None,
) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    driver.get("about:blank")
    driver.get(page.as_uri() + (f"#{output}" if output else ""))
    driver.save_screenshot(str(PICTURES / f"{name}.png"))


if __name__ == "__main__":
    main()
