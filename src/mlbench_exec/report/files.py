"""The result files: written whole under another name, then renamed, so never seen half done."""

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from mlbench_exec.errors import RunFolderBroken
from mlbench_exec.samples import Key
from mlbench_exec.scores import Tally
from mlbench_exec.summary import Summary

__all__ = ["write_results", "write_summary"]


def write_results(folder: Path, tally: Tally, order: Iterable[Key] | None = None) -> None:
    """Write results.jsonl: a line for each submitted row, in the dataset's order where given.

    Rows that the order leaves out come last. Blocks; raises `RunFolderBroken`.
    """
    submitted = set(tally.keys())
    ordered = [key for key in dict.fromkeys(order or ()) if key in submitted]
    rest = sorted(submitted.difference(ordered))
    scores = (tally.row_score(key) for key in (*ordered, *rest))
    _write(folder / "results.jsonl", msgspec.json.Encoder().encode_lines(scores))


def write_summary(folder: Path, summary: Summary) -> None:
    """Write summary.json. Blocks; raises `RunFolderBroken`."""
    _write(folder / "summary.json", msgspec.json.format(msgspec.json.encode(summary)) + b"\n")


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".tmp")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise RunFolderBroken(
            f"can't write {path}: {error.strerror or error}; the verdicts are safe, and "
            "`mlbench-exec report` gives the same figures from them"
        ) from error
