"""Store: the weights folder: what is in it, and what each pull got."""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from mlbench_exec.errors import InputError
from mlbench_exec.weights.manifest import HUB_CACHE, Item, Manifest

RECORDS = ".records"
PARTS = ".parts"
LOCK = ".lock"


def default_folder() -> Path:
    """MLBENCH_WEIGHTS, or a folder in the user's cache."""
    named = os.environ.get("MLBENCH_WEIGHTS")
    if named:
        return Path(os.path.expanduser(named))
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(cache)) / "mlbench-exec" / "weights"


class FileRecord(msgspec.Struct, frozen=True):
    size: int
    sha256: str


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What one pull got; `files` by path below the item's place (`""`: it is a file itself)."""

    source: str
    pulled_at: str
    files: Mapping[str, FileRecord]
    download: FileRecord | None = None  # of an archive, which isn't kept
    revision: str | None = None  # of a Hub repository

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())


class Store:
    """The folder; nothing in it is made before something is pulled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, item: Item) -> Path:
        return self.folder / item.name

    def part(self, item: Item) -> Path:
        """Where a download grows until it is whole."""
        return self.folder / PARTS / item.name.replace("/", "--")

    def present(self, manifest: Manifest) -> set[str]:
        """Names of what is here: pulled to its end, or put there by hand."""
        return {name for name, item in manifest.items() if self.is_present(item)}

    def is_present(self, item: Item) -> bool:
        if item.is_in_hub_cache:
            return self.record(item) is not None and (self.folder / HUB_CACHE).is_dir()
        return self.place(item).exists()

    def record(self, item: Item) -> Record | None:
        try:
            return msgspec.json.decode(self._record_path(item).read_bytes(), type=Record)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise InputError(
                f"{self._record_path(item)}: can't be read ({error}): remove it, and pull again"
            ) from None

    def write_record(self, item: Item, record: Record) -> None:
        path = self._record_path(item)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".tmp")
        partial.write_bytes(msgspec.json.encode(record))
        partial.replace(path)

    def damage(self, item: Item) -> list[str]:
        """What differs from what the pull got, in words; empty: nothing. Reads every byte."""
        record = self.record(item)
        if record is None:
            return []
        found = self.hashes(item, tuple(record.files))
        problems = []
        for path, was in record.files.items():
            now, name = found.get(path), path or item.name
            if now is None:
                problems.append(f"{name}: is gone")
            elif now != was:
                problems.append(
                    f"{name}: is {now.size} bytes of sha256 {now.sha256[:12]}…, "
                    f"the pull got {was.size} of {was.sha256[:12]}…"
                )
        problems += [f"{path}: wasn't there" for path in found.keys() - record.files.keys()]
        return problems

    def hashes(self, item: Item, known: tuple[str, ...] = ()) -> dict[str, FileRecord]:
        """Every file of an item, hashed. In the Hub's cache: the `known` ones that are there."""
        if item.is_in_hub_cache:
            root = self.folder / HUB_CACHE
            return {p: hash_file(root / p) for p in known if (root / p).is_file()}
        return hash_tree(self.place(item))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One pull at a time. Raises `InputError` where the folder can't be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / LOCK).open("w")
        except OSError as error:
            raise InputError(
                f"{self.folder}: can't be written ({error.strerror}): choose another with --dir"
            ) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(
                    f"{self.folder}: another pull is at work there: wait for its end"
                ) from None
            yield

    def _record_path(self, item: Item) -> Path:
        return self.folder / RECORDS / f"{item.name.replace('/', '--')}.json"


def hash_tree(place: Path) -> dict[str, FileRecord]:
    """Regular files at or below `place`, by relative path."""
    if place.is_file():
        return {"": hash_file(place)}
    return {
        str(path.relative_to(place)): hash_file(path)
        for path in sorted(place.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def hash_file(path: Path) -> FileRecord:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileRecord(os.fstat(file.fileno()).st_size, digest)
