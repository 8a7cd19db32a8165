"""Recipes: the Dockerfiles that come with mlbench-exec, and building one."""

import os
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from mlbench_exec.errors import InputError, MLBenchExecError

PREPARE = "prepare.sh"  # in a recipe: fills the build's context with what can't be fetched inside
SMOKE = "smoke.py"


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One Dockerfile of the catalogue's; its image is mlbench-exec/NAME."""

    name: str = ""
    about: str
    base: str  # the default of its build argument BASE
    environment: str | None = None  # what it can serve, with where things stand in it
    workdir: str | None = None
    python: str | None = None
    unbuilt: bool = False  # nobody has built it yet

    @property
    def tag(self) -> str:
        return f"mlbench-exec/{self.name}:latest"


class BuildFailed(MLBenchExecError):
    """An image could not be built; the tool's own words stand above."""


def load_recipes() -> dict[str, Recipe]:
    """By name, in the catalogue's order."""
    tables = _catalogue()["recipes"]
    return {
        name: msgspec.structs.replace(msgspec.convert(table, Recipe), name=name)
        for name, table in tables.items()
    }


def smoke_rows() -> Mapping[int, int]:
    """By github_id, the id of a row that is known to run quickly."""
    return {int(github_id): row for github_id, row in _catalogue()["smoke"].items()}


def find_recipe(name: str) -> Recipe:
    """Raises `InputError` where there is none of that name."""
    recipes = load_recipes()
    if name not in recipes:
        raise InputError(f"{name}: no such Dockerfile: there are {', '.join(recipes)}")
    return recipes[name]


def folder_of(recipe: Recipe) -> Path:
    """Its files: package data where it was installed, else the checkout's own."""
    packaged = Path(str(resources.files("mlbench_exec"))) / "recipes" / recipe.name
    checkout = Path(__file__).parents[3] / "images" / recipe.name
    for folder in (packaged, checkout):
        if (folder / "Dockerfile").is_file():
            return folder
    raise InputError(
        f"{recipe.name}: its Dockerfile is neither in the package nor at {checkout}: install "
        "mlbench-exec again"
    )


def build(recipe: Recipe, *, base: str | None, tag: str | None, network: str | None = None) -> str:
    """Build the image, by the docker command, in a context of its own; its tag. Blocks.

    What docker and a recipe's prepare.sh print goes to stderr. Raises `BuildFailed`, and
    `InputError` where there is no docker command.
    """
    if shutil.which("docker") is None:
        raise InputError("there is no docker command here: images are built by it")
    tag = tag or recipe.tag
    with tempfile.TemporaryDirectory(prefix="mlbench-exec-build-") as temporary:
        context = Path(temporary) / "context"
        shutil.copytree(folder_of(recipe), context)
        if (context / PREPARE).exists():
            _run(["bash", str(context / PREPARE), str(context)])
        command = ["docker", "build", "--build-arg", f"BASE={base or recipe.base}"]
        command += ["--network", network] if network else []
        _run([*command, "--tag", tag, str(context)])
    if (folder_of(recipe) / SMOKE).exists():
        smoke = ["docker", "run", "--rm", "--network", "none", tag, "python", f"/opt/{SMOKE}"]
        _run(smoke)
    return tag


def _run(command: list[str]) -> None:
    """With its stdout on our stderr: stdout is for the result."""
    try:
        subprocess.run(command, stdout=os.dup(2), check=True)
    except subprocess.CalledProcessError as error:
        how = f"ended with exit code {error.returncode}: its own words stand above"
        raise BuildFailed(f"{' '.join(command)} {how}") from None
    except OSError as error:
        raise BuildFailed(f"{' '.join(command)}: {error}") from None


def _catalogue() -> dict[str, Any]:
    text = resources.files("mlbench_exec").joinpath("catalogue.toml").read_text("utf-8")
    return tomllib.loads(text)
