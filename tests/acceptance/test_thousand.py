"""A thousand snippets: as they should be, also when the run is interrupted or killed."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from acceptance.command import Command, Line, comparable, write_lines
from conftest import IMAGES

SNIPPETS = 1000
OUTPUTS = 5  # of each row
IN_THE_MIDDLE = 100  # verdicts
ENDS_WITHIN_S = 5.0
ENVIRONMENT = """\
[environments.tiny]
github_ids = [1]
workdir = "{workdir}"
python = "/usr/bin/python3"
image = "{image}"
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
Make = Callable[[Path], Command]


class Kind(NamedTuple):
    """What a snippet does, and what becomes of it."""

    code: str
    status: str = "passed"
    exit_code: int = 0
    error: str | None = None


WRITES = Kind('open("mark.txt", "w").write("here"); print("wrote")')
LOOKS = Kind('import os; assert not os.path.exists("mark.txt"); print("saw nothing")')
RAISES = Kind('raise KeyError("on purpose")', "failed", 1, "KeyError")
EXITS = Kind("raise SystemExit(3)", "failed", 3)
PRINTS = Kind('print("hello")')
KINDS = {0: WRITES, 5: RAISES, 10: LOOKS, 15: EXITS}  # by the number's remainder of 20


def kind_of(number: int) -> Kind:
    return KINDS.get(number % 20, PRINTS)


def code_of(number: int) -> str:
    return f"number = {number}\n{kind_of(number).code}\n"


def make_command(home: Path, environment: str, *options: str) -> Command:
    home.mkdir(exist_ok=True)
    (home / "environments.toml").write_text(environment)
    rows: list[dict[str, Any]] = []
    submissions = []
    for row_id in range(SNIPPETS // OUTPUTS):
        rows.append(
            {
                "github_id": 1,
                "id": row_id,
                "github": "https://example.org/tiny",
                "repo_id": 1,
                "path": "./",
                "arguments": "{'name': 'number'}",
                "instruction": "Do one thing.",
                "oracle": "",
                "type": "Python Code",
                "output": "number = 1",
                "prefix_code": "",
            }
        )
        numbers = range(row_id * OUTPUTS, (row_id + 1) * OUTPUTS)
        submissions.append(
            {"github_id": 1, "id": row_id, "output": [code_of(number) for number in numbers]}
        )
    return Command(
        home / "command",
        write_lines(home / "outputs.jsonl", submissions),
        *("--dataset", write_lines(home / "rows.jsonl", rows)),
        *("--environments", home / "environments.toml"),
        *("--memory", "512m"),
        *options,
    )


@pytest.fixture(scope="module")
def on_docker(conformance_image: str) -> Make:
    environment = ENVIRONMENT.format(workdir="/repos/tiny", image=conformance_image)
    options = ("--backend", "docker", "--concurrency", "32")
    return lambda home: make_command(home, environment, *options)


@pytest.fixture(scope="module")
def on_this_machine(tmp_path_factory: pytest.TempPathFactory) -> Make:
    workdir = tmp_path_factory.mktemp("repos") / "tiny"
    shutil.copytree(IMAGES / "conformance" / "repos" / "tiny", workdir)
    environment = ENVIRONMENT.format(workdir=workdir, image="none")
    options = ("--backend", "local", "--concurrency", "4")
    return lambda home: make_command(home, environment, *options)


@pytest.fixture(scope="module")
def undisturbed(on_docker: Make, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """One run from beginning to end, for all tests on Docker to compare with."""
    command = on_docker(tmp_path_factory.mktemp("undisturbed"))
    assert command.run(within_s=300) == 0, command.said()
    return command


def check_verdicts(verdicts: list[Line]) -> None:
    """Each snippet has one verdict, the one that it deserves."""
    outputs = [(line["id"], line["index"]) for line in verdicts]
    assert len(outputs) == len(set(outputs)) == SNIPPETS
    for line in verdicts:
        number = line["id"] * OUTPUTS + line["index"]
        kind = kind_of(number)
        found = (line["status"], line["exit_code"], line["error"])
        assert found == (kind.status, kind.exit_code, kind.error), (number, line)


@pytest.mark.docker
def test_a_thousand(undisturbed: Command) -> None:
    """1,000 snippets in warm containers never see each other, and no container stays.

    Of the 32 slots so many are used as the CPUs have time for.
    """
    verdicts = undisturbed.verdicts()
    check_verdicts(verdicts)
    assert sum(line["stdout"] == "wrote\n" for line in verdicts) == 50
    assert sum(line["stdout"] == "saw nothing\n" for line in verdicts) == 50
    assert {line["attempts"] for line in verdicts} == {1}
    assert 2 <= len({line["slot"] for line in verdicts}) <= 32
    assert sum(line["warm"] for line in verdicts) > SNIPPETS / 2
    assert undisturbed.unjudged() == []
    assert undisturbed.leftovers() == set()


@pytest.mark.docker
def test_interrupted(undisturbed: Command, on_docker: Make, tmp_path: Path) -> None:
    """Ctrl-C ends a run within 5 s and leaves nothing; the same command then finishes it."""
    command = on_docker(tmp_path)
    process = command.start()
    command.wait_for_verdicts(process, IN_THE_MIDDLE)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    exit_code = process.wait(60)
    took_s = time.monotonic() - began
    assert exit_code == 130, command.said()
    assert command.leftovers() == set()
    before = command.verdicts()
    assert IN_THE_MIDDLE <= len(before) < SNIPPETS
    assert took_s < ENDS_WITHIN_S
    finish(command, before)
    check_same(command, undisturbed)


@pytest.mark.docker
def test_killed_on_docker(undisturbed: Command, on_docker: Make, tmp_path: Path) -> None:
    """After kill -9 and a second start no container is left, and each output has one verdict."""
    command = on_docker(tmp_path)
    kill_in_the_middle(command)
    check_same(command, undisturbed)


def test_killed_on_this_machine(on_this_machine: Make, tmp_path: Path) -> None:
    """After kill -9 and a second start no process, folder, mount or cgroup is left."""
    command = on_this_machine(tmp_path)
    kill_in_the_middle(command)
    check_verdicts(command.verdicts())


def kill_in_the_middle(command: Command) -> None:
    process = command.start()
    command.wait_for_verdicts(process, IN_THE_MIDDLE)
    process.kill()
    process.wait(30)
    before = command.verdicts()
    assert IN_THE_MIDDLE <= len(before) < SNIPPETS
    finish(command, before)


def finish(command: Command, before: list[Line]) -> None:
    """The same command again: it keeps every verdict, adds the others, and leaves nothing."""
    assert command.run(within_s=300) == 0, command.said()
    assert f"{len(before)} outputs are judged already" in command.said()
    assert command.verdicts()[: len(before)] == before
    assert command.unjudged() == []
    assert command.leftovers() == set()


def check_same(command: Command, other: Command) -> None:
    """Everything but times and slots."""
    check_verdicts(command.verdicts())
    assert comparable(command.verdicts()) == comparable(other.verdicts())
    assert command.results() == other.results()
    assert command.summary() == other.summary()
