"""Scores: what a run's verdicts add up to, counted one verdict at a time in little memory.

A row's pass@k is ML-Bench's: is one of its first k outputs right? It is 1 once one is known to
be, whatever is unknown beside it; else it is null where one of the first k has no verdict, or
where the row has fewer than k outputs; else 0.

A total of pass@k is the mean over the rows with at least k outputs whose pass@k is known. Rows
that only an output without a verdict leaves open are counted as `unknown`. Rows with fewer than
k outputs are counted as `short` and left out, also those that passed: only passes would be known
among them, and they would raise the mean. Over all rows of the split, a row that was not
submitted counts as 0 and a short row by whether it passed; only the unknown ones are left out.
"""

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Protocol, TypeVar

from mlbench_exec.failures import Failure
from mlbench_exec.samples import Key
from mlbench_exec.summary import (
    STATUSES,
    Coverage,
    Estimate,
    FailureCount,
    RepoScore,
    RowScore,
    Summary,
    Timings,
    Total,
    UnjudgedReason,
)
from mlbench_exec.verdicts import PASSING, Status, Unjudged

__all__ = ["Judged", "Tally", "pass_at_k", "summarize"]

KS = (1, 2, 5)
RESAMPLES = 2000
BOOTSTRAP_ROWS = 2000  # above it the normal approximation is as good and costs nothing
DISTINCT = 1000  # error names and reasons kept apart: programs choose the first
OTHER = "(other)"
OUTPUTS = 1_000_000  # of one row, at most

_CODE = {status: number for number, status in enumerate(STATUSES, start=1)}  # 0: no verdict
_SKIPPED = _CODE["skipped"]
_PASSING = frozenset(_CODE[status] for status in PASSING)
_Z95 = 1.959964

T = TypeVar("T")


class Judged(Protocol):
    """What a tally reads of a verdict, or of a verdict's line in a journal."""

    @property
    def github_id(self) -> int: ...
    @property
    def id(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def status(self) -> Status: ...
    @property
    def error(self) -> str | None: ...
    @property
    def wall_s(self) -> float | None: ...
    @property
    def counted_s(self) -> float | None: ...
    @property
    def cpu_s(self) -> float | None: ...
    @property
    def stalled_s(self) -> float | None: ...
    @property
    def warm(self) -> bool: ...
    @property
    def attempts(self) -> int: ...
    @property
    def contended(self) -> bool: ...
    @property
    def started_at(self) -> str | None: ...


class Tally:
    """Counts verdicts as they come; keeps a byte for each output, and no text of theirs."""

    def __init__(self, *, until_pass: bool = False) -> None:
        self.until_pass = until_pass
        self.judged = 0
        self.empty_passed = 0
        self.statuses: Counter[Status] = Counter()
        self.errors: Counter[str] = Counter()
        self.wanted_network = 0
        self._failures: dict[int, Counter[Failure]] = {}  # by github_id
        self._distinct = 0  # failures of all of them
        self._rows: dict[Key, bytearray] = {}
        self._reasons: Counter[tuple[str, str]] = Counter()
        self._places: dict[tuple[str, str], str | None] = {}
        self._clock = _Clock()

    def __repr__(self) -> str:
        return f"<Tally rows={len(self._rows)} judged={self.judged}>"

    def __len__(self) -> int:
        """How many rows were submitted."""
        return len(self._rows)

    def declare(self, key: Key, outputs: int) -> None:
        """Say how many outputs a row has, so that missing verdicts show. More than once is fine."""
        self._row(key, outputs)

    def add(self, verdict: Judged, *, empty: bool = False, failure: Failure | None = None) -> None:
        """Count one verdict; `empty` says that its code was, `failure` why it failed.

        Raises `ValueError` for a second verdict on the same output, and for a senseless index.
        """
        key, index = (verdict.github_id, verdict.id), verdict.index
        if index < 0:
            raise ValueError(f"output {index} of {key}: an index counts from 0")
        row = self._row(key, index + 1)
        if row[index]:
            raise ValueError(f"output {index} of {key} already has a verdict")
        row[index] = _CODE[verdict.status]
        self.judged += 1
        self.statuses[verdict.status] += 1
        self.empty_passed += empty and verdict.status in PASSING
        if verdict.error is not None:
            self.errors[_bounded(self.errors, verdict.error, OTHER)] += 1
        if failure is not None:
            self._add_failure(verdict.github_id, failure)
        self._clock.add(verdict)

    def add_unjudged(self, unjudged: Unjudged) -> None:
        """Count one reason; an output that could not be judged belongs to a submitted row."""
        reason: tuple[str, str] = (unjudged.kind, unjudged.reason)
        reason = _bounded(self._reasons, reason, (unjudged.kind, OTHER))
        self._reasons[reason] += 1
        self._places.setdefault(reason, unjudged.place)
        if unjudged.github_id is None or unjudged.id is None:
            return
        if unjudged.kind == "input" and unjudged.index is None:
            return  # a rejected row, not a submitted one
        self._row((unjudged.github_id, unjudged.id), (unjudged.index or 0) + 1)

    def status(self, key: Key, index: int) -> Status | None:
        """The verdict's status, or None where there is no verdict."""
        row = self._rows.get(key, b"")
        code = row[index] if 0 <= index < len(row) else 0
        return STATUSES[code - 1] if code else None

    def keys(self) -> Iterable[Key]:
        """The submitted rows, in the order in which they were first seen."""
        return self._rows.keys()

    def passed(self, key: Key, k: int) -> int | None:
        """The row's pass@k: 0, 1, or None where it isn't known (also for a row never seen)."""
        return _passed(self._rows.get(key, b""), k)

    def row_score(self, key: Key) -> RowScore:
        """The row's line of results.jsonl."""
        github_id, row_id = key
        one, two, five = (self.passed(key, k) for k in KS)
        return RowScore(id=row_id, github_id=github_id, pass1=one, pass2=two, pass5=five)

    def reasons(self) -> tuple[UnjudgedReason, ...]:
        """Why outputs and rows have no verdict, the most frequent reason first."""
        return tuple(
            UnjudgedReason(kind=kind, reason=reason, count=count, place=self._places[kind, reason])
            for (kind, reason), count in self._reasons.most_common()
        )

    def timings(self) -> Timings:
        """Where the time went."""
        return self._clock.timings()

    def _row(self, key: Key, outputs: int) -> bytearray:
        if outputs > OUTPUTS:
            raise ValueError(f"{key} has {outputs} outputs; at most {OUTPUTS} are counted")
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = bytearray(outputs)
        elif len(row) < outputs:
            row.extend(bytes(outputs - len(row)))
        return row

    def _add_failure(self, github_id: int, failure: Failure) -> None:
        self.wanted_network += failure.kind == "network"
        counts = self._failures.setdefault(github_id, Counter())
        if failure not in counts:
            if self._distinct < DISTINCT:
                self._distinct += 1
            else:
                failure = Failure(kind=failure.kind, detail=OTHER)
        counts[failure] += 1

    def failures(self, names: Mapping[int, str]) -> dict[str, tuple[FailureCount, ...]]:
        """How outputs failed, by their repository's name."""
        merged: dict[str, Counter[Failure]] = {}
        for github_id, counts in sorted(self._failures.items()):
            name = names.get(github_id, f"github_id {github_id}")
            merged.setdefault(name, Counter()).update(counts)
        return {
            name: tuple(
                FailureCount(kind=one.kind, error=one.error, detail=one.detail, count=count)
                for one, count in sorted(counts.items(), key=_by_frequency)
            )
            for name, counts in merged.items()
        }

    def _outcomes(self) -> Iterator[tuple[Key, bytearray]]:
        return iter(self._rows.items())


def _by_frequency(counted: tuple[Failure, int]) -> tuple[int, str, str, str]:
    """The most frequent first, and never in the order in which verdicts happened to come."""
    failure, count = counted
    return -count, failure.kind, failure.error or "", failure.detail or ""


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate from `c` passes in `n` outputs (Chen et al. 2021, equation 1)."""
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def summarize(
    tally: Tally,
    *,
    split_rows: Mapping[int, int] | None = None,
    names: Mapping[int, str] | None = None,
) -> Summary:
    """Everything that summary.json holds.

    `split_rows` are the split's rows by github_id, `names` the repositories' names by github_id.
    """
    whole = _Group()
    groups: dict[str, _Group] = {}
    estimates = _Estimates()
    for (github_id, _), row in tally._outcomes():
        name = (names or {}).get(github_id, f"github_id {github_id}")
        whole.add(github_id, row)
        groups.setdefault(name, _Group()).add(github_id, row)
        estimates.add(row)
    all_rows = sum(split_rows.values()) if split_rows is not None else None
    submitted = {f"pass{k}": whole.total(k) for k in KS}
    return Summary(
        counts=len(tally),
        eval_pass1=submitted["pass1"].rate,
        eval_pass2=submitted["pass2"].rate,
        eval_pass5=submitted["pass5"].rate,
        submitted=submitted,
        all_rows=None if all_rows is None else {f"pass{k}": whole.total(k, all_rows) for k in KS},
        unbiased=None if tally.until_pass or tally.statuses["skipped"] else estimates.result(),
        coverage=Coverage(
            submitted_rows=len(tally),
            split_rows=all_rows,
            share=len(tally) / all_rows if all_rows else None,
        ),
        repos={
            name: group.score(split_rows)
            for name, group in sorted(groups.items(), key=lambda item: item[1].github_ids[0])
        },
        outputs=whole.outputs,
        judged=tally.judged,
        unjudged=whole.outputs - tally.judged,
        statuses={status: tally.statuses[status] for status in STATUSES},
        errors=dict(tally.errors.most_common()),
        failures=tally.failures(names or {}),
        wanted_network=tally.wanted_network,
        unjudged_reasons=tally.reasons(),
        empty_passed=tally.empty_passed,
        timings=tally.timings(),
    )


class _Group:
    """Rows that are reported together."""

    def __init__(self) -> None:
        self.rows = 0
        self.outputs = 0
        self._codes: Counter[int] = Counter()
        self._github_ids: set[int] = set()
        self._totals = {k: Counter[str]() for k in KS}

    @property
    def github_ids(self) -> tuple[int, ...]:
        return tuple(sorted(self._github_ids))

    def add(self, github_id: int, row: bytearray) -> None:
        self.rows += 1
        self.outputs += len(row)
        self._github_ids.add(github_id)
        self._codes.update(row)
        for k, total in self._totals.items():
            total[_kind(row, k)] += 1

    def total(self, k: int, all_rows: int | None = None) -> Total:
        """Over the submitted rows, or over `all_rows` of which the others were not submitted."""
        total = self._totals[k]
        passed, rows = total["passed"], total["passed"] + total["failed"]
        short = total["short"] + total["short, passed"]
        if all_rows is not None:
            passed, rows = passed + total["short, passed"], all_rows - total["unknown"]
        return Total(
            rate=passed / rows if rows > 0 else None,
            passed=passed,
            rows=max(rows, 0),
            unknown=total["unknown"],
            short=short,
        )

    def score(self, split_rows: Mapping[int, int] | None) -> RepoScore:
        one, two, five = (self.total(k) for k in KS)
        rows = None if split_rows is None else sum(split_rows.get(i, 0) for i in self.github_ids)
        return RepoScore(
            github_ids=self.github_ids,
            rows=self.rows,
            split_rows=rows,
            outputs=self.outputs,
            pass1=one,
            pass2=two,
            pass5=five,
            statuses={status: self._codes[_CODE[status]] for status in STATUSES},
            unjudged=self._codes[0],
        )


class _Estimates:
    """The rows' numbers of judged and passed outputs: few distinct pairs, however many rows."""

    def __init__(self) -> None:
        self._pairs: Counter[tuple[int, int]] = Counter()

    def add(self, row: bytearray) -> None:
        judged = len(row) - row.count(0) - row.count(_SKIPPED)
        self._pairs[judged, sum(row.count(code) for code in _PASSING)] += 1

    def result(self) -> dict[str, Estimate | None]:
        return {f"pass{k}": self._estimate(k) for k in KS}

    def _estimate(self, k: int) -> Estimate | None:
        values = [
            value
            for (n, c), rows in sorted(self._pairs.items())
            if n >= k
            for value in [pass_at_k(n, c, k)] * rows
        ]
        if not values:
            return None
        low, high = _interval(values)
        return Estimate(rate=math.fsum(values) / len(values), low=low, high=high, rows=len(values))


def _interval(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of the mean: a percentile bootstrap, always with the same draws.

    Equal values give an interval without width: the spread over rows is all that it shows.
    """
    n = len(values)
    if n > BOOTSTRAP_ROWS:
        mean = math.fsum(values) / n
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
        return max(0.0, mean - _Z95 * spread), min(1.0, mean + _Z95 * spread)
    choose = random.Random(20210707).choices
    means = sorted(sum(choose(values, k=n)) / n for _ in range(RESAMPLES))
    return means[round(0.025 * (RESAMPLES - 1))], means[round(0.975 * (RESAMPLES - 1))]


class _Clock:
    """Sums of the times that executed outputs took."""

    def __init__(self) -> None:
        self.executed = self.warm = self.retried = self.contended = 0
        self.wall_s = self.counted_s = self.cpu_s = self.stalled_s = 0.0
        self._first = math.inf
        self._last = -math.inf

    def add(self, verdict: Judged) -> None:
        if verdict.wall_s is None:
            return
        self.executed += 1
        self.warm += verdict.warm
        self.retried += verdict.attempts > 1
        self.contended += verdict.contended
        self.wall_s += verdict.wall_s
        self.counted_s += verdict.counted_s or 0.0
        self.cpu_s += verdict.cpu_s or 0.0
        self.stalled_s += verdict.stalled_s or 0.0
        if (started := _seconds(verdict.started_at)) is not None:
            self._first = min(self._first, started)
            self._last = max(self._last, started + verdict.wall_s)

    def timings(self) -> Timings:
        wall_s = self._last - self._first if self._last > self._first else None
        return Timings(
            wall_s=wall_s,
            executed=self.executed,
            executed_per_s=self.executed / wall_s if wall_s else None,
            snippet_wall_s=self.wall_s,
            counted_s=self.counted_s,
            cpu_s=self.cpu_s,
            stalled_s=self.stalled_s,
            warm=self.warm,
            retried=self.retried,
            contended=self.contended,
        )


def _passed(row: bytes | bytearray, k: int) -> int | None:
    first = row[:k]
    if not _PASSING.isdisjoint(first):
        return 1
    return None if len(first) < k or 0 in first or _SKIPPED in first else 0


def _kind(row: bytearray, k: int) -> str:
    """How the row enters a total of pass@k."""
    passed = _passed(row, k)
    if len(row) >= k:
        return "unknown" if passed is None else "passed" if passed else "failed"
    if passed:
        return "short, passed"
    return "unknown" if 0 in row else "short"


def _bounded(counter: Counter[T], name: T, other: T) -> T:
    """The name itself, until there are too many distinct ones."""
    return name if name in counter or len(counter) < DISTINCT else other


def _seconds(moment: str | None) -> float | None:
    try:
        return datetime.fromisoformat(moment).timestamp() if moment else None
    except ValueError:
        return None
