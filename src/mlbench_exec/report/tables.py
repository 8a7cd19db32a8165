"""Tables: a summary or a comparison as plain rows of text, for Markdown, terminals and pages."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from mlbench_exec.report.compare import Comparison, PassChange, RepoChange, UnbiasedChange
from mlbench_exec.report.failed import KINDS, ranked
from mlbench_exec.report.words import LABELS
from mlbench_exec.summary import Summary, Total

__all__ = ["TextTable", "chance_words", "comparison_remarks", "comparison_tables", "summary_tables"]

TOP_FAILURES = 20
TOP_CHANGES = 40


class TextTable(msgspec.Struct, frozen=True, kw_only=True):
    """The first columns hold names, the others figures. Texts may be foreign: escape them."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    names: int = 1  # columns of names


def summary_tables(summary: Summary) -> list[TextTable]:
    """Totals, repositories, statuses, failures, and reasons for missing verdicts."""
    tables = [_totals(summary), _repos(summary), _statuses(summary)]
    if summary.failures:
        tables.append(_failures(summary))
    if summary.unjudged_reasons:
        tables.append(
            TextTable(
                title="Without a verdict",
                columns=("reason", "kind", "times"),
                names=2,
                rows=tuple(
                    (one.reason, one.kind, str(one.count)) for one in summary.unjudged_reasons[:20]
                ),
            )
        )
    return tables


def _totals(summary: Summary) -> TextTable:
    rows = []
    for name, total in summary.submitted.items():
        cells = [f"pass@{name.removeprefix('pass')}", _percent(total.rate)]
        if summary.all_rows is not None:
            cells.append(_percent(summary.all_rows[name].rate))
        if summary.unbiased is not None:
            one = summary.unbiased[name]
            cells.append(
                "-"
                if one is None
                else f"{_percent(one.rate)} ({100 * one.low:.1f} to {100 * one.high:.1f})"
            )
        rows.append((*cells, _of(total)))
    columns = ["", "ML-Bench's"]
    columns += ["over all rows"] if summary.all_rows is not None else []
    columns += ["unbiased (95 %)"] if summary.unbiased is not None else []
    return TextTable(title="Results", columns=(*columns, "rows"), rows=tuple(rows))


def _repos(summary: Summary) -> TextTable:
    statuses = [status for status in LABELS if summary.statuses[status]]
    unjudged = ("unjudged",) if summary.unjudged else ()
    return TextTable(
        title="By repository",
        columns=(
            *("repository", "rows", "outputs", "pass@1", "pass@2", "pass@5"),
            *(LABELS[status] for status in statuses),
            *unjudged,
        ),
        rows=tuple(
            (
                *(name, str(repo.rows), str(repo.outputs)),
                *(_percent(one.rate) for one in (repo.pass1, repo.pass2, repo.pass5)),
                *(str(repo.statuses[status]) for status in statuses),
                *((str(repo.unjudged),) if unjudged else ()),
            )
            for name, repo in summary.repos.items()
        ),
    )


def _statuses(summary: Summary) -> TextTable:
    return TextTable(
        title="Verdicts",
        columns=("status", "outputs", "share"),
        rows=tuple(
            (status, str(count), _percent(count / summary.judged))
            for status, count in summary.statuses.items()
            if count
        ),
    )


def _failures(summary: Summary) -> TextTable:
    found = ranked(summary)
    rows = [
        (KINDS.get(one.kind, one.kind), one.error or "", one.detail or "", name, str(one.count))
        for name, one in found[:TOP_FAILURES]
    ]
    if left := found[TOP_FAILURES:]:
        rest = sum(one.count for _, one in left)
        rows.append((f"and {len(left)} other ways", "", "", "", str(rest)))
    columns = ("kind", "error", "what", "repository", "outputs")
    return TextTable(title="Failures", columns=columns, rows=tuple(rows), names=4)


def comparison_tables(found: Comparison) -> list[TextTable]:
    """What changed in the totals, by repository, and which rows and outputs flipped."""
    return [
        _pass_changes(found.pass_k),
        *_unbiased_changes(found.unbiased),
        _repo_changes(found.repos),
        _transitions(found),
        *_flips(found),
    ]


def comparison_remarks(found: Comparison) -> list[str]:
    """How far the two runs can be compared, in sentences."""
    remarks = [f"{found.common_rows} rows are in both runs and compared."]
    if found.only_a or found.only_b:
        remarks.append(
            f"Left out: {found.only_a} rows of the first run alone, {found.only_b} of the second."
        )
    remarks += [f"Mind: {remark}." for remark in found.remarks]
    return remarks


def _pass_changes(changes: Mapping[str, PassChange]) -> TextTable:
    return TextTable(
        title="ML-Bench's pass@k",
        columns=("", "first", "second", "change", "rows gained", "rows lost", "chance of noise"),
        rows=tuple(
            (
                f"pass@{name.removeprefix('pass')}",
                _percent(one.before),
                _percent(one.after),
                _points(one.before, one.after),
                str(one.gained),
                str(one.lost),
                chance_words(one.chance),
            )
            for name, one in changes.items()
        ),
        note="Chance: how often a difference at least this large comes about when the two are "
        "equally good. Exact McNemar test on the same rows, two-sided.",
    )


def _unbiased_changes(changes: Mapping[str, UnbiasedChange | None]) -> Iterable[TextTable]:
    known = {name: one for name, one in changes.items() if one is not None}
    if not known:
        return
    yield TextTable(
        title="Unbiased pass@k",
        columns=("", "first", "second", "change", "95 % interval", "chance of noise"),
        rows=tuple(
            (
                f"pass@{name.removeprefix('pass')}",
                _percent(one.before),
                _percent(one.after),
                _points(one.before, one.after),
                f"{100 * one.low:+.1f} to {100 * one.high:+.1f}",
                chance_words(one.chance),
            )
            for name, one in known.items()
        ),
        note="Chance by the paired permutation test over rows; interval by a paired bootstrap.",
    )


def _repo_changes(repos: Mapping[str, RepoChange]) -> TextTable:
    return TextTable(
        title="By repository",
        columns=(
            *("repository", "rows", "pass@1", "pass@5", "outputs gained", "outputs lost"),
            *("chance of noise", "corrected"),
        ),
        rows=tuple(
            (
                name,
                str(one.pass5.rows),
                _from_to(one.pass1),
                _from_to(one.pass5),
                str(one.outputs_gained),
                str(one.outputs_lost),
                chance_words(one.pass5.chance),
                chance_words(one.corrected),
            )
            for name, one in repos.items()
        ),
        note="Chance for pass@5 (McNemar); corrected for looking at so many repositories (Holm).",
    )


def _transitions(found: Comparison) -> TextTable:
    same: dict[str, int] = {}
    for one in found.outputs:
        name = f"{one.before or 'no verdict'} → {one.after or 'no verdict'}"
        same[name] = same.get(name, 0) + one.same_code
    return TextTable(
        title="Verdicts that changed",
        columns=("from → to", "outputs", "of them the same code"),
        rows=tuple(
            (name, str(count), str(same[name])) for name, count in found.transitions.items()
        ),
        note=f"{found.same_code} of {found.common_outputs} outputs are the same code in both runs.",
    )


def _flips(found: Comparison) -> Iterable[TextTable]:
    if found.rows:
        yield TextTable(
            title="Rows that flipped",
            columns=("repository", "from", "to", "pass@k", "github_id", "id"),
            names=3,
            rows=_top(
                [
                    (
                        one.repo,
                        *("passed" if side else "failed" for side in (one.before, one.after)),
                        *(f"pass@{one.k}", str(one.github_id), str(one.id)),
                    )
                    for one in found.rows
                ]
            ),
        )
    if found.outputs:
        yield TextTable(
            title="Outputs whose status changed",
            columns=("repository", "from", "to", "same code", "github_id", "id", "index"),
            names=4,
            rows=_top(
                [
                    (
                        *(one.repo, one.before or "no verdict", one.after or "no verdict"),
                        "yes" if one.same_code else "no",
                        *(str(one.github_id), str(one.id), str(one.index)),
                    )
                    for one in found.outputs
                ]
            ),
        )


def _top(rows: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    if len(rows) <= TOP_CHANGES:
        return tuple(rows)
    more = f"and {len(rows) - TOP_CHANGES} more: see --format json"
    return (*rows[:TOP_CHANGES], (more, *[""] * (len(rows[0]) - 1)))


def chance_words(chance: float) -> str:
    """A chance as people write it in papers."""
    return "< 0.001" if chance < 0.001 else f"{chance:.3f}"


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.2f} %"


def _points(before: float | None, after: float | None) -> str:
    return "-" if before is None or after is None else f"{100 * (after - before):+.2f}"


def _from_to(change: PassChange) -> str:
    if change.before is None or change.after is None:
        return "-"
    return f"{100 * change.before:.1f} → {100 * change.after:.1f}"


def _of(total: Total) -> str:
    return f"{total.passed} of {total.rows}"
