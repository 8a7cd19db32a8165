"""Verdict: what is written about one output. Unjudged: why nothing could be."""

from typing import Literal

import msgspec

from mlbench_exec.samples import Key

Status = Literal[
    "passed",
    "passed_at_limit",
    "failed",
    "wrong_arguments",
    "wrong_type",
    "out_of_memory",
    "killed",
    "skipped",
]
PASSING: frozenset[Status] = frozenset({"passed", "passed_at_limit"})


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One line of verdicts.jsonl. Times are seconds, sizes bytes, `index` counts from 0.

    Outputs that were not executed have null in every field that only execution can fill.
    """

    github_id: int
    id: int
    index: int
    status: Status
    passed: bool
    arguments_ok: bool
    type_ok: bool
    exit_code: int | None = None
    signal: int | None = None
    limit: str | None = None
    wall_s: float | None = None
    counted_s: float | None = None
    cpu_s: float | None = None
    stalled_s: float | None = None
    peak_memory_bytes: int | None = None
    stdout: str = ""
    stderr: str = ""
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    error: str | None = None
    environment: str | None = None
    warm: bool = False
    attempts: int = 0
    contended: bool = False
    started_at: str | None = None  # ISO 8601, UTC
    slot: int | None = None
    output_hash: str  # see `output_hash()` in submissions

    @property
    def key(self) -> Key:
        return (self.github_id, self.id)


class Unjudged(msgspec.Struct, frozen=True, kw_only=True):
    """One line of unjudged.jsonl: an output without a verdict, or a rejected input row.

    The identifying fields are null where the input did not give them.
    """

    reason: str
    kind: Literal["infrastructure", "environment", "input"]
    github_id: int | None = None
    id: int | None = None
    index: int | None = None  # null: the whole row
    place: str | None = None  # file and line of the input
