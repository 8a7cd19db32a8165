"""Repositories: which commits are meant, and how they come onto this machine."""

import os
import shutil
import subprocess
import tomllib
from importlib.resources import files
from pathlib import Path

import msgspec

from mlbench_exec import InputError

__all__ = ["Pin", "RepositoryMissing", "ensure", "load_pins"]


class Pin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One repository at one commit, whole or abbreviated."""

    github_ids: tuple[int, ...]
    url: str
    commit: str
    name: str = ""  # the folder's


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    repositories: dict[str, Pin]


class RepositoryMissing(Exception):
    """A repository can't be had as it is pinned; the message says what to do."""


def load_pins(path: Path | None = None) -> dict[int, Pin]:
    """Pins by github_id: ML-Bench's, or those of a TOML file. Raises `InputError`."""
    try:
        if path is None:
            text = (files("mlbench_gen.prepare") / "pins.toml").read_text(encoding="utf-8")
        else:
            text = path.read_text(encoding="utf-8")
        content = msgspec.convert(tomllib.loads(text), _File)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InputError(f"{path}: is no file of pinned repositories ({error})") from None
    pins = [msgspec.structs.replace(pin, name=name) for name, pin in content.repositories.items()]
    for pin in pins:
        if "/" in pin.name or pin.name in ("", ".", ".."):
            raise InputError(f"{path}: a repository's name is a folder's, not {pin.name!r}")
    return {github_id: pin for pin in pins for github_id in pin.github_ids}


def ensure(pin: Pin, repos: Path, *, as_is: bool = False) -> Path:
    """The folder of a repository at its pinned commit; cloned where it isn't there. Blocks.

    `as_is` takes a folder at whatever commit. Raises `RepositoryMissing`.
    """
    folder = repos / pin.name
    if not folder.exists():
        _clone(pin, folder)
    elif not as_is:
        _check(pin, folder)
    return folder


def _check(pin: Pin, folder: Path) -> None:
    if not (folder / ".git").exists():
        raise RepositoryMissing(
            f"{folder} is no git checkout, so its commit can't be told: "
            "pass --as-is to take it, or move it away to have it cloned"
        )
    commit = _git(pin, "-C", str(folder), "rev-parse", "HEAD").strip()
    if not commit.startswith(pin.commit):
        raise RepositoryMissing(
            f"{folder} is at {commit[:12]}, and {pin.name} is pinned at {pin.commit[:12]}: "
            f"git -C {folder} checkout {pin.commit}, or pass --as-is"
        )


def _clone(pin: Pin, folder: Path) -> None:
    """Whole or not at all: a clone that was broken off leaves nothing at its place."""
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lazily = ["--filter=blob:none"] if pin.url.startswith("https://") else []
    try:
        _git(pin, "clone", "--quiet", "--no-checkout", *lazily, "--", pin.url, str(partial))
        _git(pin, "-C", str(partial), "checkout", "--quiet", "--detach", pin.commit)
    except RepositoryMissing:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(folder)


def _git(pin: Pin, *arguments: str) -> str:
    try:
        ended = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"},
        )
    except OSError as error:
        raise RepositoryMissing(
            f"{pin.name}: git can't be started ({error}): install git"
        ) from None
    if ended.returncode != 0:
        said = ended.stderr.strip().splitlines()
        raise RepositoryMissing(
            f"{pin.name}: `git {arguments[0] if arguments[0] != '-C' else arguments[2]}` failed "
            f"({said[-1] if said else ended.returncode}): check {pin.url} and the network, or put "
            "a checkout there"
        )
    return ended.stdout
