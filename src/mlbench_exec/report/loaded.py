"""Loaded: a run read back from its folder, as plain frozen data for notebooks and scripts."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mlbench_exec import journal
from mlbench_exec.errors import InputError
from mlbench_exec.journal import Manifest
from mlbench_exec.scores import summarize
from mlbench_exec.summary import RowScore, Summary
from mlbench_exec.verdicts import Unjudged, Verdict

if TYPE_CHECKING:
    import pandas

__all__ = ["Run", "load_run"]


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run as its folder tells it. Tuples are in the order of github_id, id and index."""

    folder: str
    manifest: Manifest
    summary: Summary  # as summary.json; computed from the verdicts, never read from that file
    rows: tuple[RowScore, ...]  # as results.jsonl
    verdicts: tuple[Verdict, ...]
    unjudged: tuple[Unjudged, ...]

    def __repr__(self) -> str:
        return f"<Run {self.folder!r} rows={len(self.rows)} verdicts={len(self.verdicts)}>"

    def repo(self, github_id: int) -> str:
        """The repository's name in reports."""
        return self.manifest.dataset.names.get(github_id, f"github_id {github_id}")

    def records(self) -> list[dict[str, Any]]:
        """One dict for each verdict: its fields in verdicts.jsonl, and `repo`."""
        return [
            {"repo": self.repo(verdict.github_id), **msgspec.structs.asdict(verdict)}
            for verdict in self.verdicts
        ]

    def to_pandas(self) -> "pandas.DataFrame":
        """A frame of `records()`. Raises `InputError` where pandas isn't installed."""
        try:
            frames: Any = importlib.import_module("pandas")
        except ImportError:
            raise InputError("a frame needs pandas: pip install pandas") from None
        columns = ["repo", *Verdict.__struct_fields__]
        frame: pandas.DataFrame = frames.DataFrame(self.records(), columns=columns)
        frame["started_at"] = frames.to_datetime(frame["started_at"], utc=True, format="ISO8601")
        return frame


def load_run(folder: str | Path) -> Run:
    """Read a run folder, also while the run goes on. Blocks, and changes nothing.

    Keeps everything that programs printed (as far as verdicts.jsonl does) in memory. Raises
    `RunFolderError` where there is no run, or a damaged one.
    """
    folder = Path(folder)
    loaded = journal.load_run(folder)
    facts = loaded.manifest.dataset
    verdicts = sorted(
        journal.read_verdicts(folder), key=lambda one: (one.github_id, one.id, one.index)
    )
    return Run(
        folder=str(folder),
        manifest=loaded.manifest,
        summary=summarize(loaded.tally, split_rows=facts.split_rows, names=facts.names),
        rows=tuple(loaded.tally.row_score(key) for key in sorted(loaded.tally.keys())),
        verdicts=tuple(verdicts),
        unjudged=tuple(journal.read_unjudged(folder)),
    )
