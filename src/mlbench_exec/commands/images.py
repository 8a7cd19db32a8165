"""The `images` commands: what is here, getting it, whether it answers, building one's own."""

import sys
from pathlib import Path

import anyio.to_thread
import click
import msgspec
from rich.console import Console
from rich.progress import Progress as Bars
from rich.table import Table

from mlbench_exec.backends.image_store import Daemon, ImageHere
from mlbench_exec.command import INCOMPLETE, OK, Failures, console, interruptible, say
from mlbench_exec.dataset import load_dataset
from mlbench_exec.engine import Engine
from mlbench_exec.environments import Environments, load_environments
from mlbench_exec.errors import InputError
from mlbench_exec.images import (
    Answer,
    Recipe,
    build,
    check_environment,
    find_recipe,
    load_recipes,
    rows_to_try,
    smoke_rows,
)
from mlbench_exec.images.check import chosen
from mlbench_exec.options import engine_options, settings_from
from mlbench_exec.report import plain
from mlbench_exec.samples import Key, Sample

_environments = click.option(
    "--environments",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Your own environments (TOML).",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `list`."""

    image: str
    serves: tuple[str, ...]  # environments, or what a Dockerfile is about
    here: ImageHere | None
    recipe: str | None = None  # the name for `images build`
    unbuilt: bool = False


@click.group()
def images() -> None:
    """See, get, check and build the images that environments run in."""


@images.command("list")
@_environments
@_json
def list_(environments: Path | None, as_json: bool) -> None:
    """Say which images environments name and which can be built; what is here, size and digest."""
    with Failures():
        known, recipes = load_environments(environments), tuple(load_recipes().values())
        found = interruptible(lambda: _list(known, recipes))
        if as_json:
            click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
            return
        table = Table("image", "serves", "here", "size", "digest")
        for one in found:
            here, size, digest = "no", "-", "-"
            if one.here is not None:
                here, size = "yes", f"{one.here.size / 2**30:.2f} GiB"
                digest = one.here.digest.rpartition("@")[2][:19]
            elif one.recipe:
                here = "no: unbuilt as yet" if one.unbuilt else f"no: images build {one.recipe}"
            serves = plain(", ".join(one.serves), limit=1000)
            table.add_row(plain(one.image), serves, plain(here), size, plain(digest))
        console().print(table)


async def _list(environments: Environments, recipes: tuple[Recipe, ...]) -> list[Listed]:
    users: dict[str, list[str]] = {}
    for environment in environments:
        if environment.image:
            users.setdefault(environment.image, []).append(environment.name)
    async with Daemon() as daemon:
        found = [
            Listed(image=name, serves=tuple(names), here=await daemon.image(name))
            for name, names in users.items()
        ]
        for recipe in recipes:
            here = await daemon.image(recipe.tag)
            found.append(
                Listed(
                    image=recipe.tag,
                    serves=(recipe.about,),
                    here=here,
                    recipe=recipe.name,
                    unbuilt=recipe.unbuilt and here is None,
                )
            )
    return found


@images.command("pull")
@click.argument("names", nargs=-1)
@_environments
def pull_(names: tuple[str, ...], environments: Path | None) -> None:
    """Pull the images that environments name, or those of the environments or images NAMES."""
    with Failures():
        known = load_environments(environments)
        wanted = [one.image for one in chosen(known, names) if one.image]
        wanted += [name for name in names if name not in {one.name for one in known}]
        if not wanted:
            raise InputError("none of the environments names an image: nothing to pull")
        interruptible(lambda: _pull(list(dict.fromkeys(wanted))))


async def _pull(wanted: list[str]) -> bool:
    terminal = Console(stderr=True)
    async with Daemon() as daemon:
        with Bars(console=terminal, disable=not terminal.is_terminal) as bars:
            for name in wanted:
                task, layers = bars.add_task(name, total=None), Layers()
                async for step in daemon.pull(name):
                    layers.take(step)
                    bars.update(task, completed=layers.done, total=layers.total or None)
                here = await daemon.image(name)
                digest = here.digest if here else "gone again"
                say(f"{name}: {layers.last or 'pulled'}; {digest}")
    return True


class Layers:
    """How far a pull is, from the daemon's words about its layers."""

    def __init__(self) -> None:
        self._layers: dict[str, tuple[int, int]] = {}
        self.last = ""

    def take(self, step: dict[str, object]) -> None:
        detail, layer = step.get("progressDetail"), step.get("id")
        if isinstance(detail, dict) and isinstance(layer, str) and detail.get("total"):
            self._layers[layer] = (int(detail.get("current", 0)), int(detail["total"]))
        status = str(step.get("status", ""))
        if status.startswith("Status: "):
            self.last = status.removeprefix("Status: ")

    @property
    def done(self) -> int:
        return sum(done for done, _ in self._layers.values())

    @property
    def total(self) -> int:
        return sum(total for _, total in self._layers.values())


@images.command()
@click.argument("names", nargs=-1)
@click.option("--every-row", is_flag=True, help="Try all rows' answers, not one.")
@engine_options
@_json
def check(names: tuple[str, ...], every_row: bool, as_json: bool, **given: object) -> None:
    """Ask each environment, or those NAMED: folder, activation, interpreter, preload, a smoke row.

    Also for environments without an image, with --backend local.
    """
    with Failures():
        settings = settings_from(given)
        known = load_environments(settings.environments_file)
        if unknown := set(names) - {one.name for one in known}:
            raise InputError(f"no environment is named {', '.join(sorted(unknown))}")

        async def work() -> list[Answer]:
            samples, why = await anyio.to_thread.run_sync(
                _samples, settings.dataset, settings.split
            )
            answers: list[Answer] = []
            quick = await anyio.to_thread.run_sync(smoke_rows)
            async with Engine(settings, samples={}, environments=known) as engine:
                say(f"Asking by the backend {engine.backend.name} ({engine.why_backend}).")
                for environment in chosen(engine.environments, names):
                    smoke = why or rows_to_try(environment, samples, quick, every=every_row)
                    answers += await check_environment(
                        engine.backend, environment, settings.limits, smoke, settings.time_limit_s
                    )
            return answers

        answers = interruptible(work)
        if as_json:
            click.echo(msgspec.json.format(msgspec.json.encode(answers)).decode())
        else:
            _show(answers)
        sys.exit(INCOMPLETE if any(one.ok is False for one in answers) else OK)


def _samples(source: str, split: str) -> tuple[dict[Key, Sample], str]:
    """The dataset's rows, or why there is no smoke row to try."""
    try:
        return dict(load_dataset(source, split).samples), ""
    except InputError as error:
        return {}, f"not tried: {error}"


def _show(answers: list[Answer]) -> None:
    table = Table("environment", "asked for", "", "answer")
    before = ""
    for one in answers:
        name = "" if one.environment == before else one.environment
        mark = {True: "ok", False: "NO", None: "-"}[one.ok]
        table.add_row(plain(name), one.about, mark, plain(one.text, limit=500))
        before = one.environment
    console().print(table)


@images.command("build")
@click.argument("name")
@click.option("--base", metavar="IMAGE", help="What it starts from. [default: the recipe's]")
@click.option("--tag", metavar="TAG", help="Its name. [default: mlbench-exec/NAME]")
@click.option("--network", metavar="MODE", help="Of the build: host or none, say. [Docker's own]")
def build_(name: str, base: str | None, tag: str | None, network: str | None) -> None:
    """Build the image NAME from a Dockerfile that comes with mlbench-exec."""
    with Failures():
        recipe = find_recipe(name)
        built = build(recipe, base=base, tag=tag, network=network)
        say(f"{built} is built.")
        if recipe.environment:
            say("To use it, save this as environments.toml and pass --environments:")
            click.echo(
                f"[environments.{recipe.environment}]\n"
                f'image = "{built}"\nworkdir = "{recipe.workdir}"\npython = "{recipe.python}"'
            )
