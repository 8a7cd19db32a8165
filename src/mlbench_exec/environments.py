"""Environments: where each repository's snippets run. Built-in catalogue plus a user's TOML."""

import difflib
import itertools
import math
import os.path
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Set
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec

from mlbench_exec.errors import InputError
from mlbench_exec.samples import Language

_DEFAULT_TIME_LIMIT_S: Mapping[Language, float] = {"python": 10.0, "bash": 10.0}
# Where Hugging Face's libraries keep what they have downloaded, and how they are told to use it.
CACHE_VARIABLES = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "TRANSFORMERS_CACHE",
    "HF_DATASETS_CACHE",
)
CACHE_PLACE = (".cache", "huggingface")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Mount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    source: str
    target: str
    mode: Literal["ro", "rw"] = "ro"


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """One repository's surroundings. At most one of `python` and `conda_env` is set."""

    name: str
    github_ids: tuple[int, ...]
    repo: str
    workdir: str  # absolute, in the sandbox
    python: str | None = None
    conda_env: str | None = None
    image: str | None = None
    preload: tuple[str, ...] = ()
    time_limit_s: Mapping[Language, float] = msgspec.field(
        default_factory=lambda: dict(_DEFAULT_TIME_LIMIT_S)
    )
    env: Mapping[str, str] = {}
    mounts: tuple[Mount, ...] = ()


class Environments(msgspec.Struct, frozen=True):
    """Every environment of a run; each github_id belongs to at most one of them."""

    all: tuple[Environment, ...]

    def for_github_id(self, github_id: int) -> Environment | None:
        return next((one for one in self.all if github_id in one.github_ids), None)

    def __iter__(self) -> Iterator[Environment]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)


def offline(environment: Environment, mounts: Iterable[Mount] = ()) -> Environment:
    """The environment where there is no network: with a cache of Hugging Face's, its libraries
    are told to use that and not to ask the Hub first.

    It has a cache where a variable of its names one, or where it or the run mounts something at
    or below a `.cache/huggingface`. Its own variables go before.
    """
    has_cache = any(environment.env.get(name) for name in CACHE_VARIABLES) or any(
        CACHE_PLACE in itertools.pairwise(PurePosixPath(mount.target).parts)
        for mount in (*environment.mounts, *mounts)
    )
    if not has_cache:
        return environment
    return msgspec.structs.replace(environment, env={**OFFLINE, **environment.env})


def load_catalogue() -> dict[str, Environment]:
    """ML-Bench's own 14 environments, by name."""
    text = resources.files("mlbench_exec").joinpath("catalogue.toml").read_text(encoding="utf-8")
    content = tomllib.loads(text)
    common = content["common"]
    return {
        name: Environment(
            name=name,
            github_ids=tuple(table["github_ids"]),
            repo=table["repo"],
            workdir=f"{common['repos']}/{table['repo']}",
            conda_env=name,
            image=common["image"],
            time_limit_s=_seconds(table.get("time_limit", common["time_limit"])),
        )
        for name, table in content["environments"].items()
    }


def load_environments(file: Path | None = None) -> Environments:
    """The catalogue with the user's file laid over it; `None` gives the catalogue alone.

    A table named like a catalogue environment changes only the fields it gives. A github_id that
    the file claims is taken from the catalogue environment that had it. Raises `InputError`,
    naming the file, the environment and the field.
    """
    catalogue = load_catalogue()
    if file is None:
        return Environments(tuple(catalogue.values()))
    given: dict[str, Environment] = {}
    for name, content in _read_tables(file).items():
        where = f"{file}: [environments.{name}]"
        table, base = _decode(content, where), catalogue.get(name)
        problem = next(_problems(name, table, is_new=base is None), None)
        if problem is not None:
            raise InputError(f"{where}: {problem}")
        given[name] = _build(name, table, base)
    claimed = _claims(given.values(), file)
    kept = [_without(claimed, one) for name, one in catalogue.items() if name not in given]
    return Environments((*(one for one in kept if one.github_ids), *given.values()))


# What a user's file may say.


class _TimeLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    python: float | None = None
    bash: float | None = None


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One [environments.NAME]; `None` is what the file does not give (TOML has no null)."""

    github_ids: tuple[int, ...] | None = None
    repo: str | None = None
    workdir: str | None = None
    python: str | None = None
    conda_env: str | None = None
    image: str | None = None
    preload: tuple[str, ...] | None = None
    time_limit: _TimeLimit | None = None
    env: dict[str, str] | None = None
    mounts: tuple[Mount, ...] | None = None


def _read_tables(file: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(
            f"{file}: can't be read ({error.strerror}): check the path given to --environments"
        ) from None
    except RecursionError:
        raise InputError(f"{file}: is nested too deeply to be an environments file") from None
    except ValueError as error:  # not UTF-8, not TOML, or a number beyond Python's limit
        raise InputError(f"{file}: is not valid TOML: {error}") from None
    for key in content:
        if key != "environments":
            raise InputError(
                f"{file}: unknown key {key!r} at the top: tables are named [environments.NAME]"
            )
    tables = content.get("environments")
    if not isinstance(tables, dict) or not tables:
        raise InputError(f"{file}: holds no environment: add a table [environments.NAME]")
    return tables


def _decode(content: object, where: str) -> _Table:
    try:
        return msgspec.convert(content, _Table)
    except (msgspec.ValidationError, OverflowError) as error:
        raise InputError(f"{where}: {_explain(str(error), content)}") from None


def _explain(message: str, content: object) -> str:
    """Say a decoding error in the file's own terms, with a guess where a key is misspelt."""
    text, _, place = message.partition(" - at `$")
    text = text.replace(" | null", "").replace("`object`", "`table`")
    field = place.rstrip("`").replace("[...]", "").lstrip(".")
    prefix = f"{field}: " if field else ""
    unknown = re.search(r"unknown field `(.*)`", text, re.DOTALL)
    if unknown is None:
        hint = _misfit(field, content)
        return f"{prefix}{text[:1].lower()}{text[1:]}{hint}"
    shape: type[msgspec.Struct] = _Table
    if field:
        shape = Mount if field.startswith("mounts") else _TimeLimit
    known = shape.__struct_fields__
    near = difflib.get_close_matches(unknown[1], known, n=1)
    step = f"did you mean {near[0]}?" if near else f"the known keys are {', '.join(known)}"
    return f"{prefix}unknown key {unknown[1]!r}: {step}"


def _misfit(field: str, content: object) -> str:
    """Name the variable when a value of `env` is not a string: the decoder can't."""
    env = content.get("env") if isinstance(content, dict) else None
    if field != "env" or not isinstance(env, dict):
        return ""
    wrong = [name for name, value in env.items() if not isinstance(value, str)]
    return f" (write the value of {wrong[0]} in quotes)" if wrong else ""


# From a table to an environment.


def _problems(name: str, table: _Table, *, is_new: bool) -> Iterator[str]:
    """What is wrong with a table whose types are right, the first thing first."""
    if not _NAME.fullmatch(name):
        yield "name: use letters, digits, '.', '_' and '-', and start with a letter or digit"
    for field in ("github_ids", "workdir"):
        if is_new and getattr(table, field) is None:
            yield f"{field}: is missing, and no built-in environment is named {name}"
    if table.github_ids == ():
        yield "github_ids: is empty: list the github_ids that run here"
    for field in ("repo", "python", "conda_env", "image"):
        value = getattr(table, field)
        if value is not None and (not value.strip() or "\0" in value):
            yield f"{field}: is empty or holds a NUL byte: give a value, or remove the line"
    if table.python is not None and table.conda_env is not None:
        yield "python: conda_env is given too: keep the one whose interpreter is meant"
    if table.python is not None and not table.python.startswith("/"):
        yield f"python: {table.python!r} is not absolute: write the full path in the sandbox"
    if table.workdir is not None and not _is_folder(table.workdir):
        yield f"workdir: {table.workdir!r} is not an absolute path below /, without '..'"
    for module in table.preload or ():
        if not all(part.isidentifier() for part in module.split(".")):
            yield f"preload: {module!r} is not a module's name"
    for language, limit_s in _limits(table).items():
        if not (limit_s > 0 and math.isfinite(limit_s)):
            yield f"time_limit: {language} = {limit_s} is no limit: give seconds above 0"
    for variable, value in (table.env or {}).items():
        if not _VARIABLE.fullmatch(variable):
            yield f"env: {variable!r} is not a variable's name: use letters, digits and '_'"
        if "\0" in value:
            yield f"env: {variable} holds a NUL byte"
    yield from _mount_problems(table.mounts or ())


def _mount_problems(mounts: Iterable[Mount]) -> Iterator[str]:
    targets: set[PurePosixPath] = set()
    for index, mount in enumerate(mounts):
        where, target = f"mounts[{index}]", PurePosixPath(mount.target)
        if "\0" in mount.source or not os.path.isabs(os.path.expanduser(mount.source)):
            yield f"{where}.source: {mount.source!r} is not absolute: write the full path, or ~/…"
        if not _is_folder(mount.target):
            yield f"{where}.target: {mount.target!r} is not an absolute path below /, without '..'"
        if target in targets:
            yield f"{where}.target: {mount.target!r} is mounted twice: keep one"
        targets.add(target)


def _build(name: str, table: _Table, base: Environment | None) -> Environment:
    """Lay a sound table over `base`; naming one kind of interpreter clears the other."""
    changes: dict[str, Any] = {
        field: value
        for field in ("image", "preload", "env", "repo")
        if (value := getattr(table, field)) is not None
    }
    if table.github_ids is not None:
        changes["github_ids"] = tuple(dict.fromkeys(table.github_ids))
    if table.workdir is not None:
        changes["workdir"] = _plain(table.workdir)
    if table.python is not None or table.conda_env is not None:
        changes |= {"python": table.python, "conda_env": table.conda_env}
    if table.mounts is not None:
        changes["mounts"] = tuple(_mount(one) for one in table.mounts)
    if base is not None:
        changes["time_limit_s"] = {**base.time_limit_s, **_limits(table)}
        return msgspec.structs.replace(base, **changes)
    changes["time_limit_s"] = {**_DEFAULT_TIME_LIMIT_S, **_limits(table)}
    changes.setdefault("repo", PurePosixPath(changes["workdir"]).name)
    return Environment(name=name, **changes)


def _claims(environments: Iterable[Environment], file: Path) -> frozenset[int]:
    """The github_ids the file's environments own; two owners of one are refused."""
    owners: dict[int, str] = {}
    for environment in environments:
        for github_id in environment.github_ids:
            other = owners.setdefault(github_id, environment.name)
            if other != environment.name:
                raise InputError(
                    f"{file}: [environments.{environment.name}]: github_ids: {github_id} belongs "
                    f"to [environments.{other}] too: keep it in one of them"
                )
    return frozenset(owners)


def _without(claimed: Set[int], environment: Environment) -> Environment:
    left = tuple(one for one in environment.github_ids if one not in claimed)
    return msgspec.structs.replace(environment, github_ids=left)


def _mount(mount: Mount) -> Mount:
    source = os.path.expanduser(mount.source)
    return Mount(source=source, target=_plain(mount.target), mode=mount.mode)


def _limits(table: _Table) -> dict[Language, float]:
    given = table.time_limit or _TimeLimit()
    limits: dict[Language, float | None] = {"python": given.python, "bash": given.bash}
    return {language: limit_s for language, limit_s in limits.items() if limit_s is not None}


def _seconds(table: Mapping[Language, float]) -> dict[Language, float]:
    return {language: float(limit_s) for language, limit_s in table.items()}


def _is_folder(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return path.startswith("/") and len(parts) > 1 and ".." not in parts and "\0" not in path


def _plain(path: str) -> str:
    """The same absolute path without doubled or closing slashes."""
    return "/" + "/".join(PurePosixPath(path).parts[1:])
