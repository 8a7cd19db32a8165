"""The record of a run: its folder, its manifest, and resuming it."""

from mlbench_exec.journal.manifest import (
    DatasetFacts,
    InputFile,
    Manifest,
    RepoFacts,
    host,
    now,
    versions,
)
from mlbench_exec.journal.record import Journal, LoadedRun, Recorded, load_run

__all__ = [
    "DatasetFacts",
    "InputFile",
    "Journal",
    "LoadedRun",
    "Manifest",
    "Recorded",
    "RepoFacts",
    "host",
    "load_run",
    "now",
    "versions",
]
