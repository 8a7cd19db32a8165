"""Options: the flags that say where and how outputs are judged, for every command that judges."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from mlbench_exec.sandbox import Limits
from mlbench_exec.settings import HUB_DATASET, Settings, parse_gpus, parse_mount, parse_size
from mlbench_exec.weights import default_folder

__all__ = ["dataset_option", "engine_options", "flags", "settings_from", "with_limits"]

C = TypeVar("C", bound=Callable[..., Any])
Option = Callable[[Any], Any]


def flags(options: Sequence[Option]) -> Callable[[C], C]:
    """A decorator that gives a click command these options, in their order."""

    def decorate(command: C) -> C:
        decorated: C = reduce(lambda inner, option: option(inner), reversed(options), command)
        return decorated

    return decorate


dataset_option: Option = click.option(
    "--dataset",
    default=HUB_DATASET,
    show_default=True,
    metavar="D",
    help="JSONL or Parquet file, save_to_disk folder, or Hub id.",
)
_OPTIONS: tuple[Option, ...] = (
    dataset_option,
    click.option("--split", default="full", show_default=True),
    click.option(
        "--environments",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Your own environments (TOML).",
    ),
    click.option(
        "--backend",
        type=click.Choice(["auto", "docker", "local"]),
        default="auto",
        show_default=True,
    ),
    click.option(
        "--concurrency",
        type=click.IntRange(min=1),
        metavar="N",
        help="Sandboxes at once. [default: as cores and memory allow]",
    ),
    click.option(
        "--until-pass", is_flag=True, help="Stop a row where no pass@k can change any more."
    ),
    click.option("--share-identical", is_flag=True, help="Execute equal outputs of a row once."),
    click.option(
        "--no-preload",
        is_flag=True,
        help="Start an interpreter for each snippet: fork none from a warm one.",
    ),
    click.option(
        "--preload-memory",
        metavar="SIZE",
        default="1g",
        show_default=True,
        help="What a sandbox's warm interpreters may hold, beyond --memory.",
    ),
    click.option(
        "--time-limit",
        type=click.FloatRange(min=0, min_open=True),
        metavar="S",
        help="Seconds for each snippet. [default: the environment's]",
    ),
    click.option(
        "--clock",
        type=click.Choice(["fair", "wall"]),
        help="What the time limit counts. [default: fair]",
    ),
    click.option("--memory", metavar="SIZE", help="Memory of a snippet. [default: 8g]"),
    click.option(
        "--cpus",
        type=click.FloatRange(min=0, min_open=True),
        metavar="N",
        help="CPUs of a snippet. [default: 2]",
    ),
    click.option(
        "--pids",
        type=click.IntRange(min=1),
        metavar="N",
        help="Processes and threads of a snippet. [default: 512]",
    ),
    click.option("--disk", metavar="SIZE", help="What a snippet may write. [default: 2g]"),
    click.option("--network", type=click.Choice(["none", "bridge"]), help="[default: none]"),
    click.option("--gpus", default="none", show_default=True, metavar="none|all|0,1"),
    click.option(
        "--mount",
        "mounts",
        multiple=True,
        metavar="SRC:DST[:rw]",
        help="Show a folder or file in every sandbox.",
    ),
    click.option(
        "--weights",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="The weights folder. [default: $MLBENCH_WEIGHTS, else in the user's cache]",
    ),
    click.option("--runtime", metavar="NAME", help="Docker's runtime, runsc for instance."),
    click.option(
        "--profile",
        type=click.Choice(["strict", "mlbench"]),
        default="strict",
        show_default=True,
        help="mlbench: network, wall clock, no limits on memory, CPU and processes.",
    ),
)


# Gives a command every flag from which `settings_from` makes settings.
engine_options = flags(_OPTIONS)


def settings_from(given: Mapping[str, Any]) -> Settings:
    """The settings that the values of `engine_options` ask for. Raises `InputError`."""
    settings = Settings(
        dataset=given["dataset"],
        split=given["split"],
        environments_file=given["environments"],
        backend=given["backend"],
        concurrency=given["concurrency"],
        time_limit_s=given["time_limit"],
        gpus=parse_gpus(given["gpus"]),
        runtime=given["runtime"],
        mounts=tuple(parse_mount(mount) for mount in given["mounts"]),
        until_pass=given["until_pass"],
        share_identical=given["share_identical"],
        preload=not given["no_preload"],
        preload_memory_bytes=parse_size(given["preload_memory"]),
        weights=Path(os.path.expanduser(given["weights"] or default_folder())).absolute(),
    ).with_profile(given["profile"])
    limits = ("clock", "memory", "cpus", "pids", "disk", "network")
    return with_limits(settings, *(given[name] for name in limits))


def with_limits(
    settings: Settings,
    clock: str | None,
    memory: str | None,
    cpus: float | None,
    pids: int | None,
    disk: str | None,
    network: str | None,
) -> Settings:
    """What was asked for by name goes before the profile."""
    asked = {
        "clock": clock,
        "memory_bytes": parse_size(memory) if memory else None,
        "cpus": cpus,
        "pids": pids,
        "disk_bytes": parse_size(disk) if disk else None,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    limits = msgspec.convert({**msgspec.structs.asdict(settings.limits), **given}, Limits)
    settings = msgspec.structs.replace(settings, limits=limits)
    if network is None:
        return settings
    return msgspec.structs.replace(settings, network="bridge" if network == "bridge" else "none")
