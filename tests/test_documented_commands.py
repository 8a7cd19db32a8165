"""The command lines in the README and in docs/: each names a command and options that there are."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mlbench_exec.cli import main
from mlbench_gen.cli import commands

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS: dict[str, click.Group] = {"mlbench-exec": main, "mlbench-gen": commands}
LINE = re.compile(r"^(?:    |\$ |    \$ )(?P<line>mlbench-(?:exec|gen) .*)$")


def lines_of(text: str) -> Iterator[str]:
    """Command lines in blocks, each as one line, without what a pipe or a comment adds."""
    joined = text.replace("\\\n", " ")
    for found in map(LINE.match, joined.splitlines()):
        if found is not None:
            for part in found["line"].split(" | "):
                if part.startswith(tuple(PROGRAMS)):
                    yield part


def assert_known(line: str) -> None:
    """Raise `click.UsageError` unless the program has the command, with such options."""
    program, *words = [word for word in shlex.split(line, comments=True) if word != "…"]
    command: click.Command = PROGRAMS[program]
    context = click.Context(command, info_name=program)
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        context, command = click.Context(found, info_name=name, parent=context), found
    command.make_parser(context).parse_args(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_pages_commands_are_there(page: Path) -> None:
    """With every option that the page gives them."""
    for line in lines_of(page.read_text()):
        assert_known(line)


def test_what_isnt_there_is_found_out() -> None:
    """A wrong option, a wrong command; lines are found in blocks and through pipes."""
    text = "    mlbench-exec run - --gold \\\n    --frob | mlbench-gen prapare # no\nmlbench-exec x"
    first, second = lines_of(text)
    with pytest.raises(click.NoSuchOption, match="--frob"):
        assert_known(first)
    with pytest.raises(click.UsageError, match="prapare"):
        assert_known(second)
    assert sum(len(list(lines_of(page.read_text()))) for page in PAGES) > 30
