"""Compare: what changed from one run to another, where, and the chance that it is noise. Pure."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction

import msgspec

from mlbench_exec.report.loaded import Run
from mlbench_exec.report.noise import difference_interval, holm, mcnemar, sign_flip
from mlbench_exec.samples import Key
from mlbench_exec.summary import RowScore
from mlbench_exec.verdicts import PASSING, Status, Verdict

__all__ = ["Comparison", "OutputChange", "PassChange", "RepoChange", "RowChange", "compare"]

KS = (1, 2, 5)


class PassChange(msgspec.Struct, frozen=True, kw_only=True):
    """ML-Bench's pass@k over the rows where both runs know it; `chance` by the McNemar test."""

    rows: int
    before: float | None  # rates; null without rows
    after: float | None
    gained: int  # rows that only the second run passes
    lost: int
    chance: float


class UnbiasedChange(msgspec.Struct, frozen=True, kw_only=True):
    """The unbiased pass@k over the rows that have k judged outputs in both runs.

    `chance` is by the paired permutation test, `low` and `high` bound 95 % of the difference.
    """

    rows: int
    before: float
    after: float
    low: float
    high: float
    chance: float


class RepoChange(msgspec.Struct, frozen=True, kw_only=True):
    """One repository's part: its pass@1 and pass@5, and outputs that changed sides.

    `corrected` is pass@5's chance after Holm's correction over the repositories.
    """

    pass1: PassChange
    pass5: PassChange
    corrected: float
    outputs_gained: int
    outputs_lost: int


class RowChange(msgspec.Struct, frozen=True, kw_only=True):
    """A row whose pass@k flipped: 0 to 1, or 1 to 0."""

    repo: str
    github_id: int
    id: int
    k: int
    before: int
    after: int


class OutputChange(msgspec.Struct, frozen=True, kw_only=True):
    """An output whose status differs; null where there is no verdict."""

    repo: str
    github_id: int
    id: int
    index: int
    before: Status | None
    after: Status | None
    same_code: bool  # the program is the same in both runs: what changed is what it did


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """From run `a` to run `b`."""

    a: str
    b: str
    remarks: tuple[str, ...]  # what makes the two hard to compare
    common_rows: int
    only_a: int  # rows
    only_b: int
    common_outputs: int
    same_code: int  # of them: the same program in both
    pass_k: Mapping[str, PassChange]  # by "pass1", "pass2", "pass5", as in the next
    unbiased: Mapping[str, UnbiasedChange | None]
    repos: Mapping[str, RepoChange]
    transitions: Mapping[str, int]  # "failed → passed": outputs, the most frequent first
    rows: tuple[RowChange, ...]
    outputs: tuple[OutputChange, ...]


Outputs = Mapping[Key, Mapping[int, Verdict]]


def compare(a: Run, b: Run) -> Comparison:
    """Everything that `mlbench-exec report A B` tells. Rows that only one run has count nowhere."""
    rows_a, rows_b = _by_key(a.rows), _by_key(b.rows)
    common = sorted(rows_a.keys() & rows_b.keys())
    outputs_a, outputs_b = _outputs(a), _outputs(b)
    changed = tuple(_changed_outputs(b, common, outputs_a, outputs_b))
    pairs = [(rows_a[key], rows_b[key]) for key in common]
    both = [
        (outputs_a[key][index], outputs_b[key][index])
        for key in common
        for index in outputs_a.get(key, {}).keys() & outputs_b.get(key, {}).keys()
    ]
    return Comparison(
        a=a.folder,
        b=b.folder,
        remarks=tuple(_remarks(a, b)),
        common_rows=len(common),
        only_a=len(rows_a) - len(common),
        only_b=len(rows_b) - len(common),
        common_outputs=len(both),
        same_code=sum(x.output_hash == y.output_hash for x, y in both),
        pass_k={f"pass{k}": _pass_change(pairs, k) for k in KS},
        unbiased={f"pass{k}": _unbiased(common, outputs_a, outputs_b, k) for k in KS},
        repos=_repos(b, pairs, changed),
        transitions=_transitions(changed),
        rows=tuple(_changed_rows(b, pairs)),
        outputs=changed,
    )


def _by_key(rows: Iterable[RowScore]) -> dict[Key, RowScore]:
    return {(row.github_id, row.id): row for row in rows}


def _outputs(run: Run) -> dict[Key, dict[int, Verdict]]:
    found: dict[Key, dict[int, Verdict]] = {}
    for verdict in run.verdicts:
        found.setdefault(verdict.key, {})[verdict.index] = verdict
    return found


def _remarks(a: Run, b: Run) -> Iterable[str]:
    if a.manifest.dataset.digest != b.manifest.dataset.digest:
        yield "the two runs judged against different datasets"
    before, after = a.manifest.verdict_settings, b.manifest.verdict_settings
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name) and name != "environments":
            yield f"{name}: {before.get(name)} in the first, {after.get(name)} in the second"
    known, others = before.get("environments", {}), after.get("environments", {})
    for name in sorted(known.keys() & others.keys()):
        if known[name] != others[name]:
            yield f"environment {name} is not the same in both"
    for run in (a, b):
        if run.summary.unjudged:
            yield f"{run.folder} has {run.summary.unjudged} outputs without a verdict"


def _pass(row: RowScore, k: int) -> int | None:
    value: int | None = getattr(row, f"pass{k}")
    return value


def _pass_change(pairs: list[tuple[RowScore, RowScore]], k: int) -> PassChange:
    known = [
        (before, after)
        for x, y in pairs
        if (before := _pass(x, k)) is not None and (after := _pass(y, k)) is not None
    ]
    gained, lost = known.count((0, 1)), known.count((1, 0))
    rows = len(known)
    return PassChange(
        rows=rows,
        before=sum(before for before, _ in known) / rows if rows else None,
        after=sum(after for _, after in known) / rows if rows else None,
        gained=gained,
        lost=lost,
        chance=mcnemar(gained, lost),
    )


def _unbiased(keys: list[Key], a: Outputs, b: Outputs, k: int) -> UnbiasedChange | None:
    pairs = [
        (before, after)
        for key in keys
        if (before := _estimate(a.get(key, {}), k)) is not None
        and (after := _estimate(b.get(key, {}), k)) is not None
    ]
    if not pairs:
        return None
    differences = [after - before for before, after in pairs]
    low, high = difference_interval([float(one) for one in differences])
    return UnbiasedChange(
        rows=len(pairs),
        before=math.fsum(before for before, _ in pairs) / len(pairs),
        after=math.fsum(after for _, after in pairs) / len(pairs),
        low=low,
        high=high,
        chance=sign_flip(differences),
    )


def _estimate(outputs: Mapping[int, Verdict], k: int) -> Fraction | None:
    """The unbiased pass@k of a row, or None with fewer than k judged outputs or skipped ones."""
    n, passed = len(outputs), sum(one.passed for one in outputs.values())
    if n < k or any(one.status == "skipped" for one in outputs.values()):
        return None
    return 1 - Fraction(math.comb(n - passed, k), math.comb(n, k))


def _repos(
    run: Run, pairs: list[tuple[RowScore, RowScore]], changed: Iterable[OutputChange]
) -> dict[str, RepoChange]:
    groups: dict[str, list[tuple[RowScore, RowScore]]] = {}
    for pair in pairs:
        groups.setdefault(run.repo(pair[0].github_id), []).append(pair)
    fives = {name: _pass_change(group, 5) for name, group in groups.items()}
    corrected = dict(zip(fives, holm([one.chance for one in fives.values()]), strict=True))
    sides = Counter((one.repo, *_sides(one)) for one in changed)
    return {
        name: RepoChange(
            pass1=_pass_change(group, 1),
            pass5=fives[name],
            corrected=corrected[name],
            outputs_gained=sides[name, False, True],
            outputs_lost=sides[name, True, False],
        )
        for name, group in groups.items()
    }


def _sides(change: OutputChange) -> tuple[bool, bool]:
    return change.before in PASSING, change.after in PASSING


def _transitions(changed: Iterable[OutputChange]) -> dict[str, int]:
    counts = Counter(
        f"{one.before or 'no verdict'} → {one.after or 'no verdict'}" for one in changed
    )
    return dict(counts.most_common())


def _changed_rows(run: Run, pairs: Iterable[tuple[RowScore, RowScore]]) -> Iterable[RowChange]:
    for x, y in pairs:
        for k in KS:
            before, after = _pass(x, k), _pass(y, k)
            if before is not None and after is not None and before != after:
                yield RowChange(
                    repo=run.repo(x.github_id),
                    github_id=x.github_id,
                    id=x.id,
                    k=k,
                    before=before,
                    after=after,
                )


def _changed_outputs(run: Run, keys: list[Key], a: Outputs, b: Outputs) -> Iterable[OutputChange]:
    for key in keys:
        before, after = a.get(key, {}), b.get(key, {})
        for index in sorted(before.keys() | after.keys()):
            x, y = before.get(index), after.get(index)
            status_x, status_y = (one.status if one else None for one in (x, y))
            if status_x != status_y:
                yield OutputChange(
                    repo=run.repo(key[0]),
                    github_id=key[0],
                    id=key[1],
                    index=index,
                    before=status_x,
                    after=status_y,
                    same_code=x is not None and y is not None and x.output_hash == y.output_hash,
                )
