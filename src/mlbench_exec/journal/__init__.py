"""The record of a run: its folder, its manifest, and resuming it."""

from mlbench_exec.journal.known import Known
from mlbench_exec.journal.manifest import (
    DatasetFacts,
    InputFile,
    Manifest,
    RepoFacts,
    host,
    now,
    versions,
)
from mlbench_exec.journal.record import (
    KEPT,
    Journal,
    LoadedRun,
    Recorded,
    load_run,
    read_unjudged,
    read_verdicts,
)

__all__ = [
    "KEPT",
    "DatasetFacts",
    "InputFile",
    "Journal",
    "Known",
    "LoadedRun",
    "Manifest",
    "Recorded",
    "RepoFacts",
    "host",
    "load_run",
    "now",
    "read_unjudged",
    "read_verdicts",
    "versions",
]
