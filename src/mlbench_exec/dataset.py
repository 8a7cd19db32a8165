"""Dataset: the benchmark's rows, from a JSONL or Parquet file, a saved folder, or the Hub."""

import hashlib
import importlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from mlbench_exec.errors import InputError
from mlbench_exec.samples import Key, Sample, parse_sample
from mlbench_exec.settings import HUB_DATASET
from mlbench_exec.submissions import decode_json

DEFAULT_SPLIT = "full"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_FILE_SUFFIXES = (".jsonl", ".json", ".parquet")

Row = tuple[str, object]  # (place, the row or the `ValueError` that reading it gave)


class RejectedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row that can't be judged against, and why. The ids are null where they can't be read."""

    place: str
    reason: str
    github_id: int | None = None
    id: int | None = None


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """The usable rows of one split, in the dataset's order.

    `digest` covers what verdicts depend on (keys, path, arguments, type), in any order of rows and
    from any kind of source. A file holds one split, so there `split` is only its name.
    """

    samples: Mapping[Key, Sample]
    rejected: tuple[RejectedRow, ...]
    digest: str
    source: str
    split: str


def load_dataset(source: str = HUB_DATASET, split: str = DEFAULT_SPLIT) -> Dataset:
    """Read a file, a folder made by `save_to_disk`, or a Hub id. Blocks while it reads.

    Bad rows and repeated keys (the first counts) are in `rejected`. Raises `InputError` when the
    source isn't there, or no row of it can be used.
    """
    samples: dict[Key, Sample] = {}
    rejected: list[RejectedRow] = []
    for place, row in _rows(source, split):
        sample = _sample(row, place)
        if isinstance(sample, RejectedRow):
            rejected.append(sample)
        elif sample.key in samples:
            rejected.append(_rejected(place, "its key was given before: the first row counts", row))
        else:
            samples[sample.key] = sample
    if not samples:
        why = f"; the first: {rejected[0].place}: {rejected[0].reason}" if rejected else ""
        raise InputError(
            f"{source}: none of its {len(rejected)} rows can be used{why}. "
            "Is it a dataset with ML-Bench's columns?"
        )
    return Dataset(
        samples=samples,
        rejected=tuple(rejected),
        digest=_digest(samples),
        source=source,
        split=split,
    )


def read_rows(source: str = HUB_DATASET, split: str = DEFAULT_SPLIT) -> Iterator[Mapping[str, Any]]:
    """The rows of a split with all their columns, in the dataset's order. Blocks while it reads.

    Rows that `load_dataset` could not use are left out. Raises `InputError` as `load_dataset` does.
    """
    seen: set[Key] = set()
    for place, row in _rows(source, split):
        sample = _sample(row, place)
        if isinstance(sample, Sample) and isinstance(row, Mapping) and sample.key not in seen:
            seen.add(sample.key)
            yield row


def _sample(row: object, place: str) -> Sample | RejectedRow:
    if isinstance(row, ValueError):
        return _rejected(place, str(row), None)
    if not isinstance(row, Mapping):
        return _rejected(place, "is not an object with ML-Bench's columns", None)
    try:
        return parse_sample(row, place=place)
    except InputError as error:
        return _rejected(place, str(error).removeprefix(f"{place}: "), row)
    except (TypeError, RecursionError) as error:  # a literal that Python parses but can't build
        return _rejected(place, f"arguments are not a literal dict ({error})", row)


def _rejected(place: str, reason: str, row: object) -> RejectedRow:
    ids = row if isinstance(row, Mapping) else {}
    return RejectedRow(
        place=place,
        reason=reason,
        github_id=_integer(ids.get("github_id")),
        id=_integer(ids.get("id")),
    )


def _integer(value: object) -> int | None:
    return value if type(value) is int else None


def _digest(samples: Mapping[Key, Sample]) -> str:
    content = [
        [*key, sample.path, sorted(sample.arguments.items()), sample.type]
        for key, sample in sorted(samples.items())
    ]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


# Where rows come from.


def _rows(source: str, split: str) -> Iterable[Row]:
    path = Path(os.path.expanduser(source))
    try:
        if path.is_dir():
            return _saved_rows(path, source, split)
        if path.exists():
            return _file_rows(path.read_bytes(), source)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{source}: can't be read ({error}): check --dataset") from None
    if _HUB_ID.fullmatch(source) and path.suffix not in _FILE_SUFFIXES:
        return _hub_rows(source, split)
    raise InputError(
        f"{source}: no such file or folder, and not a Hub id (owner/name): check --dataset"
    )


def _file_rows(content: bytes, source: str) -> Iterable[Row]:
    if content.startswith(b"PAR1"):
        return _parquet_rows(content, source)
    return _json_rows(content, source)


def _json_rows(content: bytes, source: str) -> Iterator[Row]:
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"{source}:{number}", decode_json(line)
        except ValueError as error:
            yield f"{source}:{number}", error


def _parquet_rows(content: bytes, source: str) -> Iterable[Row]:
    parquet = _extra("pyarrow.parquet", source)
    pyarrow = _extra("pyarrow", source)
    try:
        rows = parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{source}: is not a whole Parquet file: {error}") from None
    return _numbered(rows, source)


def _saved_rows(path: Path, source: str, split: str) -> Iterable[Row]:
    datasets = _extra("datasets", source)
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:
        raise InputError(f"{source}: is not a folder made by save_to_disk: {error}") from error
    if not isinstance(saved, datasets.DatasetDict):
        return _numbered(saved, source)
    if split not in saved:
        raise InputError(f"{source}: has no split {split!r}: pass --split {' or '.join(saved)}")
    return _numbered(saved[split], source)


def _hub_rows(source: str, split: str) -> Iterable[Row]:
    datasets = _extra("datasets", source)
    try:
        rows = datasets.load_dataset(source, split=split)
    except Exception as error:  # the Hub's client raises its own, its cache's and its transport's
        raise InputError(
            f"{source} (split {split}): can't be loaded from the Hub: {error}. "
            "Check the id, --split and the network, or pass --dataset FILE"
        ) from error
    return _numbered(rows, source)


def _numbered(rows: Iterable[Any], source: str) -> Iterator[Row]:
    return ((f"{source}: row {number}", row) for number, row in enumerate(rows, start=1))


def _extra(module: str, source: str) -> ModuleType:
    """Import what only some sources need: it is no part of the core."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(
            f"{source}: reading it needs the hub extra: "
            'pip install "mlbench-exec[hub]", or pass a JSONL file as --dataset'
        ) from None
