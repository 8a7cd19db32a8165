"""Sources: the programs and instructions of a run, read again where its inputs still are.

The journal holds neither. What is read again is checked: a program by its verdict's hash, the
dataset by the manifest's digest. What doesn't match isn't shown.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path

import msgspec

from mlbench_exec.dataset import load_dataset
from mlbench_exec.environments import OFFLINE
from mlbench_exec.errors import InputError
from mlbench_exec.journal import KEPT, Manifest
from mlbench_exec.samples import Key, Sample
from mlbench_exec.submissions import STDIN, Submission, output_hash, parse_line

__all__ = ["FoundSamples", "Programs", "Samples", "read_programs", "read_samples"]

Samples = Mapping[Key, Sample]


class Programs(msgspec.Struct, frozen=True, kw_only=True):
    """Programs by their hash; `problem` says why some are missing."""

    found: Mapping[str, str]
    problem: str | None = None


class FoundSamples(msgspec.Struct, frozen=True, kw_only=True):
    """The dataset's rows; `problem` says why there are none."""

    found: Samples
    problem: str | None = None


def read_programs(folder: Path, manifest: Manifest, wanted: Set[str], samples: Samples) -> Programs:
    """The wanted programs: from the outputs file, from what the run kept of standard input, or
    from the dataset's own answers.
    """
    own = ((output_hash(sample.gold), sample.gold) for sample in samples.values())
    found = {name: gold for name, gold in own if name in wanted}
    problem: str | None = None
    for source in manifest.inputs:
        if wanted <= found.keys():
            break
        path = folder / KEPT if source.path == STDIN else Path(source.path)
        try:
            for line in _lines(path):
                _collect(line, wanted, found)
        except OSError as error:
            problem = f"{path} can't be read any more ({error.strerror or error})"
    missing = wanted - found.keys()
    if missing and problem is None:
        inputs = ", ".join(one.path for one in manifest.inputs)
        problem = f"{len(missing)} programs are not in {inputs} any more"
    return Programs(found=found, problem=problem if missing else None)


def _lines(path: Path) -> Iterable[bytes]:
    if not path.is_file():
        raise FileNotFoundError(2, "there is no such file")
    with path.open("rb") as file:
        yield from file


def _collect(line: bytes, wanted: Set[str], found: dict[str, str]) -> None:
    row = parse_line(line, "")
    if isinstance(row, Submission):
        for code in row.outputs:
            if code is not None and (name := output_hash(code)) in wanted:
                found[name] = code


def read_samples(manifest: Manifest) -> FoundSamples:
    """The rows that the verdicts are about; never over the network: a Hub id's are taken
    from Hugging Face's cache.
    """
    facts = manifest.dataset
    try:
        with _offline():
            dataset = load_dataset(facts.source, facts.split)
    except InputError as error:
        return FoundSamples(found={}, problem=str(error))
    if dataset.digest != facts.digest:
        return FoundSamples(
            found={}, problem=f"{facts.source} holds other rows now than the run judged against"
        )
    return FoundSamples(found=dataset.samples)


@contextmanager
def _offline() -> Iterator[None]:
    """Read by Hugging Face's libraries when they are first imported, and by child processes."""
    added = OFFLINE.keys() - os.environ.keys()
    os.environ.update({name: OFFLINE[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
