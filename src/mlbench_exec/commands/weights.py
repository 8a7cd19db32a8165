"""The `weights` commands: what rows need, what of it is here, getting the rest, checking it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table

from mlbench_exec.command import INCOMPLETE, OK, Failures, console, interruptible, say
from mlbench_exec.errors import InputError
from mlbench_exec.report import plain
from mlbench_exec.weights import Item, Manifest, Store, default_folder, load_manifest
from mlbench_exec.weights.download import ProgressFactory, make_client
from mlbench_exec.weights.pull import AT_ONCE, pull

_folder = click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The weights folder. [default: $MLBENCH_WEIGHTS, else in the user's cache]",
)
_only = click.option(
    "--only", metavar="GITHUB_ID,…", help="What the rows of these repositories need."
)
_names = click.argument("names", nargs=-1)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")


class State(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `list` and `verify`."""

    name: str
    github_ids: tuple[int, ...]
    source: str
    state: str
    size: int | None  # bytes in the folder, as pulled
    problems: tuple[str, ...] = ()


@click.group()
def weights() -> None:
    """Get what rows need and images lack: models, pictures, archives."""


@weights.command("list")
@_names
@_only
@_folder
@_json
def list_(names: tuple[str, ...], only: str | None, folder: Path | None, as_json: bool) -> None:
    """Say what there is, for which repositories, and what of it is here."""
    with Failures():
        store, items = _chosen(names, only, folder)
        _show(store, [_state(store, item) for item in items.values()], as_json)


@weights.command("pull")
@_names
@_only
@_folder
@click.option("--at-once", type=click.IntRange(min=1), default=AT_ONCE, show_default=True)
def pull_(names: tuple[str, ...], only: str | None, folder: Path | None, at_once: int) -> None:
    """Get what isn't here yet: what is NAMED, or everything that has an address."""
    with Failures():
        store, items = _chosen(names, only, folder)
        if not names:
            items = {n: i for n, i in items.items() if i.url or i.hub or store.is_present(i)}
        before = store.present(items)

        async def work() -> dict[str, str]:
            with _bars() as make_bar:
                async with make_client() as client:
                    return await pull(store, items.values(), client, make_bar, at_once=at_once)

        failures = interruptible(work)
        for name, why in failures.items():
            say(f"{name}: {plain(why, limit=1000)}")
        got = len(items) - len(before) - len(failures)
        say(f"{got} pulled, {len(before)} were here, {len(failures)} failed: {store.folder}")
        sys.exit(INCOMPLETE if failures else OK)


@weights.command()
@_names
@_only
@_folder
@_json
def verify(names: tuple[str, ...], only: str | None, folder: Path | None, as_json: bool) -> None:
    """Read every byte of what is here, and compare it with what its pull got."""
    with Failures():
        store, items = _chosen(names, only, folder)
        here = [item for item in items.values() if store.is_present(item)]
        states = [_verified(store, item) for item in here]
        _show(store, states, as_json)
        sys.exit(INCOMPLETE if any(one.problems for one in states) else OK)


def _chosen(
    names: tuple[str, ...], only: str | None, folder: Path | None
) -> tuple[Store, Manifest]:
    store = Store(Path(os.path.expanduser(folder or default_folder())).absolute())
    manifest = load_manifest(store.folder)
    unknown = [name for name in names if not any(_is_named(item, name) for item in manifest)]
    if unknown:
        raise InputError(
            f"{', '.join(unknown)}: nothing of that name: `mlbench-exec weights list` names them"
        )
    if names:
        manifest = {
            name: item
            for name, item in manifest.items()
            if any(_is_named(name, given) for given in names)
        }
    if only is not None:
        try:
            wanted = {int(part) for part in only.split(",")}
        except ValueError:
            raise InputError(f"--only {only!r}: write GITHUB_IDs, such as 2 or 2,7") from None
        manifest = {n: item for n, item in manifest.items() if wanted & set(item.github_ids)}
    return store, manifest


def _is_named(name: str, given: str) -> bool:
    """By its whole name, or by its first part: `bert`."""
    return name == given or name.startswith(given.rstrip("/") + "/")


def _state(store: Store, item: Item) -> State:
    record = store.record(item)
    state = "missing"
    if store.is_present(item):
        state = f"pulled {record.pulled_at[:10]}" if record else "put here by hand"
    elif not (item.url or item.hub):
        state = "missing, no address"
    return State(
        name=item.name,
        github_ids=item.github_ids,
        source=item.source,
        state=state,
        size=record.size if record else None,
    )


def _verified(store: Store, item: Item) -> State:
    state, problems = _state(store, item), tuple(store.damage(item))
    if problems:
        words = "damaged"
    elif store.record(item) is None:
        words = "not checked: put here by hand"
    elif item.sha256:
        words = "as published"
    else:
        words = "as first pulled: no hash is published"
    return msgspec.structs.replace(state, state=words, problems=problems)


def _show(store: Store, states: list[State], as_json: bool) -> None:
    if as_json:
        shown = {"folder": str(store.folder), "weights": states}
        click.echo(msgspec.json.format(msgspec.json.encode(shown)).decode())
        return
    table = Table("weights", "github_id", "state", "size", "from")
    for one in states:
        ids, size = ", ".join(map(str, one.github_ids)), _size(one.size)
        table.add_row(plain(one.name), ids, plain(one.state), size, plain(one.source))
        for problem in one.problems:
            table.add_row("", "", plain(problem, limit=500), "", "")
    console().print(table)
    say(f"The weights folder is {store.folder}")


def _size(size: int | None) -> str:
    if size is None:
        return "-"
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


@contextmanager
def _bars() -> Iterator[ProgressFactory]:
    """A bar for each download on a terminal, a line for each event elsewhere; on stderr."""
    terminal = Console(stderr=True)
    if not terminal.is_terminal:
        yield _Lines
        return
    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    with Bars(*columns, console=terminal) as bars:
        yield lambda name: _Bar(bars, bars.add_task(name, total=None, note=""))


class _Bar:
    def __init__(self, bars: Bars, task: TaskID) -> None:
        self._bars = bars
        self._task = task

    def total(self, size: int | None) -> None:
        self._bars.update(self._task, total=size)

    def at(self, position: int) -> None:
        self._bars.update(self._task, completed=position)

    def note(self, text: str) -> None:
        self._bars.update(self._task, note=str(plain(text)))


class _Lines:
    def __init__(self, name: str) -> None:
        self._name = name

    def total(self, size: int | None) -> None:
        if size is not None:
            say(f"{self._name}: {size} bytes")

    def at(self, position: int) -> None: ...

    def note(self, text: str) -> None:
        say(f"{self._name}: {plain(text)}")
