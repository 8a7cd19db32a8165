"""Scene: a small run whose every verdict follows from its source, and how to disturb its agents."""

import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from acceptance.command import EXECUTABLE, MEASURED, Command, Line, write_lines
from conftest import IMAGES

FAULTS = Path(__file__).parent
OUTPUTS = 5  # of each row
ENVIRONMENT = """\
[environments.tiny]
github_ids = [1]
workdir = "{workdir}"
python = "{python}"
image = "{image}"
"""
# Beside what is measured: how often infrastructure was to blame, and the length of a folder's name.
IRRELEVANT = MEASURED | {"attempts", "contended", "stderr_bytes"}


class Kind(NamedTuple):
    """What a snippet does, and what becomes of it."""

    code: str
    status: str = "passed"
    exit_code: int | None = 0
    signal: int | None = None
    error: str | None = None
    stdout: str = ""


KINDS = (
    Kind('open("mark.txt", "w").write("x"); print("wrote")', stdout="wrote\n"),
    Kind('import os; assert not os.path.exists("mark.txt"); print("none")', stdout="none\n"),
    Kind('raise KeyError("on purpose")', "failed", 1, error="KeyError"),
    Kind("raise SystemExit(3)", "failed", 3),
    Kind('print("x" * 100_000)', stdout="x"),
    Kind("import os; os.kill(os.getpid(), 11)", "killed", None, 11),
    Kind("", "wrong_arguments", None),
    Kind('import time; time.sleep(0.2); print("slept")', stdout="slept\n"),
)
LAST_OF_A_FEW = 19  # one of these takes long enough
ENDLESS = Kind("while True: pass", "passed_at_limit", None)


def kind_of(number: int) -> Kind:
    return ENDLESS if number == LAST_OF_A_FEW else KINDS[number % len(KINDS)]


def code_of(number: int, nap_s: float) -> str:
    kind = kind_of(number)
    if kind.status == "wrong_arguments":
        return "print(1)"
    return f"number = {number}\nimport time; time.sleep({nap_s})\n{kind.code}\n"


class Scene:
    """`count` snippets on either backend; `rogue` agents misbehave as the plan's tokens say."""

    def __init__(
        self,
        home: Path,
        *options: str | Path,
        count: int = 60,
        nap_s: float = 0.05,
        image: str | None = None,
        python: str = "/usr/bin/python3",
        program: Sequence[str | Path] = (EXECUTABLE, "run"),
    ) -> None:
        self.count = count
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o755)
        workdir = home / "repo" if image is None else Path("/repos/tiny")
        if image is None:
            shutil.copytree(IMAGES / "conformance" / "repos" / "tiny", workdir)
        self.environments = home / "environments.toml"
        self.environments.write_text(
            ENVIRONMENT.format(workdir=workdir, image=image or "none", python=python)
        )
        rows: list[dict[str, Any]] = []
        submissions = []
        for row_id in range(count // OUTPUTS):
            rows.append(
                {
                    "github_id": 1,
                    "id": row_id,
                    "github": "https://example.org/tiny",
                    "path": "./",
                    "arguments": "{'name': 'number'}",
                    "type": "Python Code",
                }
            )
            numbers = range(row_id * OUTPUTS, (row_id + 1) * OUTPUTS)
            submissions.append(
                {"github_id": 1, "id": row_id, "output": [code_of(n, nap_s) for n in numbers]}
            )
        self.rows = write_lines(home / "rows.jsonl", rows)
        self.outputs = write_lines(home / "outputs.jsonl", submissions)
        self.command = Command(
            home / "command",
            self.outputs,
            *("--dataset", self.rows, "--environments", self.environments),
            *("--memory", "256m", "--time-limit", "2"),
            *("--backend", "local" if image is None else "docker"),
            *options,
            program=program,
        )

    def check(self, verdicts: list[Line]) -> None:
        """Each output has exactly one verdict, the one that its source deserves."""
        counts = Counter((line["id"], line["index"]) for line in verdicts)
        assert len(counts) == self.count, f"{self.count - len(counts)} lost"
        assert set(counts.values()) == {1}, f"twice: {counts.most_common(3)}"
        self.check_known(verdicts)

    def check_known(self, verdicts: list[Line]) -> None:
        """No verdict is wrong, however many there are yet."""
        for line in verdicts:
            number = line["id"] * OUTPUTS + line["index"]
            kind = kind_of(number)
            found = (line["status"], line["exit_code"], line["signal"], line["error"])
            wanted = (kind.status, kind.exit_code, kind.signal, kind.error)
            assert found == wanted, (number, line)
            assert line["stdout"].startswith(kind.stdout), (number, line)

    def comparable(self) -> list[Line]:
        """What a disturbed and an undisturbed run must agree on, in one order."""
        kept = [
            {k: v for k, v in line.items() if k not in IRRELEVANT}
            | {"stderr": line["stderr"].replace(str(self.home), "")}
            for line in self.command.verdicts()
        ]
        return sorted(kept, key=lambda line: (line["id"], line["index"]))

    def finish(self, *, starts: int = 1, within_s: float = 300.0) -> None:
        """Start the same command until it says that all is done; then nothing is lost or left."""
        for _ in range(starts):
            before = self.command.verdicts()
            code = self.command.run(within_s=within_s)
            assert code in {0, 1}, (code, self.command.said())
            assert self.command.verdicts()[: len(before)] == before
            if code == 0:
                break
        assert code == 0, self.command.said()
        self.check(self.command.verdicts())
        assert self.command.unjudged() == []
        assert self.command.leftovers() == set()


def driver(*options: str | Path) -> tuple[str | Path, ...]:
    """A program that takes the run command's options, and these besides."""
    return (sys.executable, FAULTS / "driver.py", *options)


def make_rogue(folder: Path) -> Path:
    """An agent's interpreter that looks for a token of `folder/plan` before each start."""
    (folder / "plan").mkdir(parents=True)
    path = folder / "rogue"
    path.write_text(f"#!/usr/bin/python3 -I\n{(FAULTS / 'rogue.py').read_text()}")
    path.chmod(0o755)
    return path


def plan(rogue: Path, *modes: str) -> None:
    """Let the next agents misbehave so, one mode each; `always-MODE` is not used up."""
    for number, mode in enumerate(modes):
        (rogue.parent / "plan" / f"{number:03}-{mode}").write_text("")
