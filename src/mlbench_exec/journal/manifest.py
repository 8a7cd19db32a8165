"""Manifest: what a run was made of, and whether another may continue it."""

import math
import os
import platform
import sys
from collections.abc import Mapping, Set
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from mlbench_exec.errors import RunFolderBroken, RunFolderError
from mlbench_exec.journal.files import explained, sync_folder

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


class InputFile(msgspec.Struct, frozen=True, kw_only=True):
    """What the outputs were read from."""

    path: str  # "-" for standard input
    sha256: str | None = None  # null for standard input


class RepoFacts(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    rows: int  # in the split


class DatasetFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The dataset that the verdicts are about; `repos` are by github_id."""

    source: str
    split: str
    digest: str
    repos: Mapping[int, RepoFacts] = {}

    @property
    def split_rows(self) -> dict[int, int] | None:
        """Rows by github_id, as `scores.summarize` takes them; None where they aren't known."""
        return {i: repo.rows for i, repo in self.repos.items()} or None

    @property
    def names(self) -> dict[int, str]:
        """The repositories' names by github_id."""
        return {i: repo.name for i, repo in self.repos.items()}


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was made of: enough to tell whether another may continue it."""

    created_at: str  # ISO 8601, UTC; when the run was first started
    inputs: tuple[InputFile, ...]
    dataset: DatasetFacts
    settings: Mapping[str, Any]
    verdict_settings: Mapping[str, Any]  # the part of them that verdicts depend on
    versions: Mapping[str, str] = {}
    host: Mapping[str, Any] = {}
    images: Mapping[str, str] = {}  # digests by image
    not_warm: Mapping[str, tuple[str, ...]] = {}  # by environment: what can't be, and why
    until_pass: bool = False
    resumed_at: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the folder's manifest as a whole."""
    path = folder / MANIFEST
    partial = folder / f"{MANIFEST}.tmp"
    with explained(path, "write"):
        with partial.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(folder)


def read_manifest(folder: Path) -> Manifest | None:
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        version = msgspec.json.decode(content, type=_Versioned).schema_version
        if version != SCHEMA_VERSION:
            raise RunFolderError(
                f"{path}: schema version {version} is not {SCHEMA_VERSION}, which this version "
                "reads: use the mlbench-exec that wrote it, or name another folder with --out"
            )
        return msgspec.json.decode(content, type=Manifest)
    except msgspec.DecodeError as error:
        raise RunFolderBroken(
            f"{path} can't be read ({error}): name another folder with --out, or use --restart "
            "to judge anew"
        ) from None


class _Versioned(msgspec.Struct):
    schema_version: int


def check_same_run(folder: Path, old: Manifest, new: Manifest, executed: Set[int]) -> None:
    """Refuse settings and datasets that would give other verdicts, naming each difference.

    An environment may change as long as nothing of its `executed` github_ids was run in it.
    """
    changes = _changes(_used(old.verdict_settings, executed), _used(new.verdict_settings, executed))
    if old.dataset.digest != new.dataset.digest:
        before = f"{old.dataset.source} {old.dataset.split} {old.dataset.digest}"
        after = f"{new.dataset.source} {new.dataset.split} {new.dataset.digest}"
        changes.append(f"dataset: was {before}, now {after}")
    if changes:
        raise RunFolderError(
            f"{folder} holds verdicts that were reached with other settings:\n  "
            + "\n  ".join(changes)
            + "\nRun with the old ones to continue, name another folder with --out, or use "
            "--restart to judge anew."
        )


def _used(settings: Mapping[str, Any], executed: Set[int]) -> dict[str, Any]:
    """The settings with those environments alone that verdicts were reached in."""
    environments = {
        name: environment
        for name, environment in settings.get("environments", {}).items()
        if any(github_id in executed for github_id in environment["github_ids"])
    }
    return {**settings, "environments": environments}


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, after = _flat(old), _flat(new)
    return [
        f"{name}: was {before.get(name, 'not set')}, now {after.get(name, 'not set')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _flat(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as JSON texts by dotted names, so that tuples equal the lists they are read as."""
    flat: dict[str, str] = {}

    def walk(name: str, value: object) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                walk(f"{name}.{key}", item)
        elif isinstance(value, float) and math.isfinite(value) and value == int(value):
            flat[name] = str(int(value))
        else:
            flat[name] = msgspec.json.encode(value).decode()

    for name, item in msgspec.json.decode(msgspec.json.encode(settings)).items():
        walk(name, item)
    return flat


def now() -> str:
    """This moment, as the manifest and the verdicts write it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def versions() -> dict[str, str]:
    """What verdicts may depend on, for the manifest."""
    try:
        package = metadata.version("mlbench-exec")
    except metadata.PackageNotFoundError:
        package = "unknown"
    return {
        "mlbench-exec": package,
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def host() -> dict[str, Any]:
    """The machine, for the manifest; nothing that names its user."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "implementation": sys.implementation.name,
    }
