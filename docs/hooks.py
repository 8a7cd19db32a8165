"""Hooks of the documentation's build: the order of its pages, and a page of every command.

Pages that are here come in the order of ORDER; others are added behind them, so that a new page is
never left out. Links to files outside of docs/ become plain text: the site can't serve them.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

DOCS = Path(__file__).parent
ORDER = (
    *("index", "environments", "remote-docker", "weights", "gpus", "doctor", "generating"),
    *("report", "verdicts", "fair-clock", "library", "commands"),
    *("performance", "warm", "security"),
)
COMMANDS = "commands.md"
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|mailto:|#)([^)\s#]+)[^)]*\)")


def on_config(config: Any) -> Any:
    """The navigation: what is there, in order, then what nobody has put into an order yet."""
    present = {path.stem for path in DOCS.glob("*.md")} | {"commands"}
    pages = [name for name in ORDER if name in present] + sorted(present - set(ORDER))
    decisions = sorted(path.name for path in (DOCS / "decisions").glob("*.md"))
    config.nav = [
        *(f"{name}.md" for name in pages),
        {"Decisions": [f"decisions/{name}" for name in decisions]},
    ]
    return config


def on_files(files: "Files", config: Any) -> "Files":
    from mkdocs.structure.files import File

    files.append(File.generated(config, COMMANDS, content=commands_page()))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: "Files") -> str:
    """Unlink what lies outside of docs/."""
    folder = (DOCS / page.file.src_uri).parent

    def replace(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / match[2]))
        return match[0] if target.is_relative_to(DOCS) else match[1]

    return LINK.sub(replace, markdown)


def commands_page() -> str:
    """Every command with all its options, as `--help` tells them."""
    from mlbench_exec.cli import main as execute
    from mlbench_gen.cli import commands as generate

    parts = ["# Commands\n\nThis page is made from the commands' own `--help`.\n"]
    for name, command in (("mlbench-exec", execute), ("mlbench-gen", generate)):
        parts += _commands(name, command)
    return "\n".join(parts)


def _commands(name: str, command: click.Command) -> list[str]:
    context = click.Context(command, info_name=name, max_content_width=100)
    if not isinstance(command, click.Group):
        return [f"## {name}\n\n```text\n{command.get_help(context)}\n```\n"]
    parts = []
    for one in command.list_commands(context):
        found = command.get_command(context, one)
        if found is not None and not found.hidden:
            parts += _commands(f"{name} {one}", found)
    return parts
