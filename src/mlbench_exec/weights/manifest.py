"""Manifest: which files rows need, from where, and where the repositories look for them. Pure."""

import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from mlbench_exec.environments import Environment, Environments, Mount
from mlbench_exec.errors import InputError
from mlbench_exec.samples import Key, Sample

OWN_MANIFEST = "manifest.toml"  # in the weights folder: lies over the built-in one
HUB_CACHE = "hub"  # in the weights folder, in the layout of the Hub's own cache
HUB_HOME = "/deep_data/huggingface"  # where a sandbox finds it

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


class Item(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing to have: a file, an unpacked archive, or a repository of the Hub.

    Without `url` and `hub` nobody knows an address, and the user has to put it there. `targets` of
    a Hub repository are left out where its code reads the Hub's cache.
    """

    name: str = ""  # also its place in the weights folder
    github_ids: tuple[int, ...]
    mentions: tuple[str, ...] = ()
    url: str | None = None
    unpack: Literal["zip", "tar"] | None = None
    hub: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    size: int | None = None  # bytes of the download
    sha256: str | None = None

    @property
    def is_in_hub_cache(self) -> bool:
        return self.hub is not None and not self.targets

    @property
    def source(self) -> str:
        """Where it comes from, in words."""
        return self.url or (f"Hub: {self.hub}" if self.hub else "no address is known")

    def is_needed_by(self, sample: Sample) -> bool:
        if sample.github_id not in self.github_ids:
            return False
        text = "\n".join([sample.gold, *sample.arguments.values()]).lower()
        return not self.mentions or any(one.lower() in text for one in self.mentions)

    def places(self, environment: Environment) -> tuple[str, ...]:
        """Absolute paths in this environment's sandbox."""
        if self.is_in_hub_cache:
            return (f"{HUB_HOME}/{HUB_CACHE}",)
        return tuple(str(PurePosixPath(environment.workdir) / target) for target in self.targets)


Manifest = Mapping[str, Item]


class Missing(msgspec.Struct, frozen=True):
    """Something that a run's rows need and that isn't there."""

    name: str
    outputs: int  # so many it concerns


def load_manifest(folder: Path | None = None) -> Manifest:
    """The built-in manifest, with the weights folder's own manifest.toml laid over it.

    A table of the same name replaces the built-in one as a whole. Raises `InputError`.
    """
    text = resources.files("mlbench_exec.weights").joinpath(OWN_MANIFEST).read_text("utf-8")
    items = dict(parse_manifest(text, OWN_MANIFEST))
    own = folder / OWN_MANIFEST if folder else None
    if own is not None and own.exists():
        try:
            items |= parse_manifest(own.read_text("utf-8"), str(own))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{own}: can't be read: {error}") from None
    return items


def parse_manifest(text: str, place: str) -> Manifest:
    """Tables `[weights.NAME]`. Raises `InputError`, naming the file, the table and the field."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{place}: is not valid TOML: {error}") from None
    tables = content.get("weights")
    if set(content) != {"weights"} or not isinstance(tables, dict):
        raise InputError(f"{place}: tables are named [weights.NAME], and nothing else stands there")
    items: dict[str, Item] = {}
    for name, table in tables.items():
        where = f"{place}: [weights.{name!r}]"
        try:
            item = msgspec.convert(table, Item)
        except msgspec.ValidationError as error:
            raise InputError(f"{where}: {error}") from None
        item = msgspec.structs.replace(item, name=name)
        problem = next(iter(_problems(item)), None)
        if problem:
            raise InputError(f"{where}: {problem}")
        items[name] = item
    return items


def _problems(item: Item) -> Iterable[str]:
    parts = item.name.split("/")
    if not _NAME.fullmatch(item.name) or parts[0] in {HUB_CACHE, OWN_MANIFEST}:
        yield "a name is made of letters, digits, '.', '_' and '-', with '/' between its parts"
    if item.url and item.hub:
        yield "give url or hub, not both"
    if item.url and not item.url.startswith(("http://", "https://")):
        yield f"url {item.url!r}: write https://…"
    if item.hub and not _HUB_ID.fullmatch(item.hub):
        yield f"hub {item.hub!r}: write owner/name"
    if item.unpack and not item.url:
        yield "unpack is for a url"
    if not item.hub and not item.targets:
        yield "targets: say where the repository looks for it"
    if item.sha256 is not None and not _SHA256.fullmatch(item.sha256):
        yield "sha256: write its 64 hexadecimal digits in small letters"
    if item.hub and (item.sha256 or item.size):
        yield "sha256 and size are for a url: the Hub's client checks what it gets by itself"
    for target in item.targets:
        path = PurePosixPath(target)
        if ".." in path.parts or len(path.parts) < 1 or "\0" in target or target == "/":
            yield f"targets: {target!r} is not a path below the workdir, or an absolute one"


def missing(
    manifest: Manifest,
    present: Collection[str],
    outputs: Mapping[Key, int],
    samples: Mapping[Key, Sample],
    environments: Environments,
    *,
    is_there: Callable[[str], bool] = lambda place: False,
) -> list[Missing]:
    """What isn't in the store and concerns outputs (counted by row), most concerned first.

    What an environment's own mounts bring, and places that `is_there` knows, are not missing.
    """
    found = []
    for item in manifest.values():
        if item.name in present:
            continue
        count = 0
        for key, number in outputs.items():
            sample, environment = samples.get(key), environments.for_github_id(key[0])
            if sample is None or environment is None or not item.is_needed_by(sample):
                continue
            places = item.places(environment)
            if not all(_is_mounted(place, environment) or is_there(place) for place in places):
                count += number
        if count:
            found.append(Missing(item.name, count))
    return sorted(found, key=lambda one: -one.outputs)


def _is_mounted(place: str, environment: Environment) -> bool:
    return any(PurePosixPath(place).is_relative_to(mount.target) for mount in environment.mounts)


def mounted(
    manifest: Manifest, present: Collection[str], folder: Path, environments: Environments
) -> Environments:
    """The environments with everything present mounted read-only where it is looked for.

    A place that an environment's own mounts bring stays as it is. The Hub's cache, where it is
    mounted, is named by HF_HOME unless the environment names one.
    """
    return Environments(tuple(_with_mounts(manifest, present, folder, e) for e in environments))


def _with_mounts(
    manifest: Manifest, present: Collection[str], folder: Path, environment: Environment
) -> Environment:
    added: dict[str, Mount] = {}
    env = dict(environment.env)
    for item in manifest.values():
        if item.name not in present or not set(item.github_ids) & set(environment.github_ids):
            continue
        source = str(folder / (HUB_CACHE if item.is_in_hub_cache else item.name))
        for place in item.places(environment):
            if not _is_mounted(place, environment):
                added[place] = Mount(source=source, target=place)
                if item.is_in_hub_cache:
                    env.setdefault("HF_HOME", HUB_HOME)
    if not added:
        return environment
    mounts = (*environment.mounts, *added.values())
    return msgspec.structs.replace(environment, mounts=mounts, env=env)
