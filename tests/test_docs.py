"""The documentation: its examples run, its commands and flags exist, and no setting is left out."""

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import click
import pytest

from acceptance.command import EXECUTABLE
from mlbench_exec import Limits, Settings
from mlbench_exec.cli import main as execute
from mlbench_gen.cli import commands as generate
from reports.folders import write_run

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
DEMO = ROOT / "examples" / "demo"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md"])
EXAMPLES = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    if page.name not in {"README.md", "generating.md"}  # has its own test; needs a model
    for number, code in enumerate(
        re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL), start=1
    )
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the examples find: the demo, its environments, and a run of it."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    write_run(tmp_path / "runs" / "demo", {(9, 1): ["passed", "failed"], (2, 7): ["failed"]})
    content = (DEMO / "environments.toml.in").read_text()
    content = content.replace("@ROOT@", str(ROOT)).replace("@PYTHON@", sys.executable)
    (tmp_path / "runs" / "demo.environments.toml").write_text(content)
    return tmp_path


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """docs/hooks.py, which makes the page of commands and the navigation."""
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield name, command
        return
    for one, inner in command.commands.items():
        yield from commands(f"{name} {one}", inner)


ALL = {**dict(commands("mlbench-exec", execute)), **dict(commands("mlbench-gen", generate))}


def flags(command: click.Command) -> set[str]:
    return {
        flag
        for option in command.params
        if isinstance(option, click.Option)
        for flag in (*option.opts, *option.secondary_opts)
    }


@pytest.mark.slow
@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_runs(code: str, checkout: Path) -> None:
    """Every Python example of the pages ends well, prints something, and complains of nothing."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    complaints = [line for line in ended.stderr.splitlines() if "Warning" in line]
    assert (ended.returncode, complaints) == (0, []), ended.stderr
    assert ended.stdout


@pytest.mark.slow
def test_the_first_page_leads_to_a_report(checkout: Path) -> None:
    """An output of one's own, with the page's very lines: one passes, one fails, as it says."""
    page = (DOCS / "index.md").read_text(encoding="utf-8")
    (line,) = re.findall(r'^    (\{"github_id".*\})$', page, re.MULTILINE)
    (checkout / "mine.jsonl").write_text(line + "\n")
    (command,) = re.findall(
        r"^    \.venv/bin/mlbench-exec (run mine(?:.*\\\n)*.*)$", page, re.MULTILINE
    )
    ended = subprocess.run(
        [EXECUTABLE, *shlex.split(command.replace("\\\n", " "))],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"passed +│ +1 ", ended.stdout)
    assert re.search(r"failed +│ +1 ", ended.stdout)
    report = (checkout / "runs" / "mine" / "report.html").read_text()
    assert "unrecognized arguments: --fast" in report


@pytest.mark.parametrize("name", ALL)
def test_the_page_of_commands_has_every_flag(name: str, hooks: ModuleType) -> None:
    """Each command has its section there, with each flag that its parser takes."""
    sections = re.split(r"^## ", hooks.commands_page(), flags=re.MULTILINE)
    (section,) = (one for one in sections if one.partition("\n")[0] == name)
    told = set(re.findall(r"(?<![\w-])--?[a-z][a-z_-]*", section))
    assert flags(ALL[name]) <= told


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_names_no_flag_that_isnt_there(page: Path) -> None:
    """A line of shell that calls a command gives it flags that this command takes."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^ {4}(.*)$|`(mlbench-[^`]*)`", text, re.MULTILINE):
        for call in re.findall(r"(mlbench-(?:exec|gen) [^|#&→]*)", "".join(line)):
            words = call.split()
            for length in (3, 2):
                if command := ALL.get(" ".join(words[:length])):
                    used = {word.partition("=")[0] for word in words if word.startswith("--")}
                    assert used <= flags(command) | {"--help"}, call
                    break


def test_every_setting_is_on_the_library_page() -> None:
    """Each field of Settings and Limits is named in its table."""
    page = (DOCS / "library.md").read_text(encoding="utf-8")
    table = page.partition("## Settings")[2].partition("## Names")[0]
    named = set(re.findall(r"`\.?(?:limits\.)?(\w+)`", table))
    fields = {*Settings.__struct_fields__, *Limits.__struct_fields__} - {"limits", "environments"}
    assert fields <= named


def test_every_page_is_in_the_navigation(hooks: ModuleType) -> None:
    """Each page and each decision, once, in an order that somebody has chosen."""
    config = hooks.on_config(SimpleNamespace())
    *pages, decisions = config.nav
    assert sorted(pages) == sorted([*(path.name for path in DOCS.glob("*.md")), "commands.md"])
    assert {page.removesuffix(".md") for page in pages} == set(hooks.ORDER)
    assert decisions["Decisions"] == sorted(
        f"decisions/{path.name}" for path in (DOCS / "decisions").glob("*.md")
    )


def test_pictures_are_there_and_fetch_nothing() -> None:
    """Each picture that a page shows exists, and none of them is left unused."""
    shown = {
        name
        for page in DOCS.glob("*.md")
        for name in re.findall(r"!\[[^\]]+\]\(pictures/([^)]+)\)", page.read_text(encoding="utf-8"))
    }
    made = {path.name for path in (DOCS / "pictures").iterdir()}
    assert shown == made
    for path in (DOCS / "pictures").glob("*.svg"):
        assert "url(http" not in path.read_text(encoding="utf-8")
