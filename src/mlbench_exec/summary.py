"""Summary: what a run adds up to, as summary.json and results.jsonl hold it. `scores` counts it."""

from collections.abc import Mapping
from typing import get_args

import msgspec

from mlbench_exec.verdicts import Status

STATUSES: tuple[Status, ...] = get_args(Status)


class RowScore(msgspec.Struct, frozen=True, kw_only=True):
    """One line of results.jsonl."""

    id: int
    github_id: int
    pass1: int | None
    pass2: int | None
    pass5: int | None


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """One pass@k over many rows; `rate` is null where no row's is known."""

    rate: float | None
    passed: int
    rows: int  # that the rate is a mean of
    unknown: int = 0  # left out: an output without a verdict
    short: int = 0  # fewer than k outputs


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """The unbiased pass@k (Chen et al. 2021), a mean over rows with k judged outputs or more."""

    rate: float
    low: float  # the 95 % interval over rows
    high: float
    rows: int


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the split was submitted; null where the split isn't known."""

    submitted_rows: int
    split_rows: int | None
    share: float | None


class RepoScore(msgspec.Struct, frozen=True, kw_only=True):
    """One repository's part. `statuses` holds all of them, zeros too."""

    github_ids: tuple[int, ...]
    rows: int
    split_rows: int | None
    outputs: int
    pass1: Total
    pass2: Total
    pass5: Total
    statuses: Mapping[Status, int]
    unjudged: int


class UnjudgedReason(msgspec.Struct, frozen=True, kw_only=True):
    """One reason why there is no verdict, and how often it was given."""

    kind: str
    reason: str
    count: int
    place: str | None = None  # file and line of the first one, where it came from the input


class FailureCount(msgspec.Struct, frozen=True, kw_only=True):
    """One way to fail in one repository, and how often it was met. See `failures.Failure`."""

    kind: str
    error: str | None
    detail: str | None
    count: int


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time went. Sums are over executed outputs."""

    wall_s: float | None  # from the first start to the last end, as the journal has them
    executed: int
    executed_per_s: float | None
    snippet_wall_s: float
    counted_s: float
    cpu_s: float
    stalled_s: float
    warm: int
    retried: int
    contended: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What summary.json holds. The `eval_` figures bear ML-Bench's names and are its means."""

    counts: int  # submitted rows
    eval_pass1: float | None
    eval_pass2: float | None
    eval_pass5: float | None
    submitted: Mapping[str, Total]  # by "pass1", "pass2" and "pass5", as in the next two
    all_rows: Mapping[str, Total] | None  # null where the split isn't known
    unbiased: Mapping[str, Estimate | None] | None  # null with --until-pass
    coverage: Coverage
    repos: Mapping[str, RepoScore]
    outputs: int
    judged: int
    unjudged: int
    statuses: Mapping[Status, int]
    errors: Mapping[str, int]  # the most frequent first
    failures: Mapping[str, tuple[FailureCount, ...]]  # by repository, the most frequent first
    wanted_network: int  # outputs that failed for want of a network
    unjudged_reasons: tuple[UnjudgedReason, ...]
    empty_passed: int  # empty answers that passed, which ML-Bench allows
    timings: Timings
