"""What a person reads of a run: its header and its summary.

Names, errors and reasons come from datasets and programs. They reach the terminal only as
`rich.text.Text` made by `plain`: never as markup, and without a character that a terminal obeys.
"""

import unicodedata
from collections.abc import Iterable, Mapping

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mlbench_exec.report.failed import KINDS, ranked
from mlbench_exec.report.tables import TextTable
from mlbench_exec.report.words import LABELS, duration
from mlbench_exec.summary import Estimate, Summary, Total
from mlbench_exec.verdicts import Status

__all__ = ["plain", "render_header", "render_json", "render_summary", "render_tables", "visible"]

TOP_FAILURES = 10
TOP_REASONS = 20

_KS = ("pass1", "pass2", "pass5")
_NEXT_STEPS = {
    "infrastructure": "run the same command again: they are tried anew",
    "environment": "put it there or correct the environments file; run the same command again",
    "input": "correct these lines of the input, then run the same command again",
}


def plain(text: object, limit: int = 200) -> Text:
    """Foreign text as a terminal can show it safely: one line, no control or format characters."""
    shown = str(text)
    cut = shown if len(shown) <= limit else shown[: limit - 1] + "…"
    return Text("".join(visible(character) for character in cut))


def render_header(facts: Mapping[str, object]) -> RenderableType:
    """A run's facts (backend and why, slots, folder, …), one a line, as they are given."""
    table = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        table.add_row(plain(name), plain(fact, limit=1000))
    return table


def render_json(summary: Summary) -> str:
    """The text of summary.json."""
    return msgspec.json.format(msgspec.json.encode(summary)).decode()


def render_summary(summary: Summary) -> RenderableType:
    """The whole summary, for a console on stdout."""
    parts: list[RenderableType] = [_totals(summary), *_remarks(summary), _repos(summary)]
    parts.append(_counts("Verdicts", "status", summary.statuses))
    if summary.failures:
        parts.append(_failures(summary))
    if summary.unjudged_reasons:
        parts.append(_unjudged(summary))
    parts.append(_timings(summary))
    return Group(*parts)


def render_tables(tables: Iterable[TextTable], remarks: Iterable[str] = ()) -> RenderableType:
    """Any tables of text, for a console on stdout."""
    parts: list[RenderableType] = [plain(remark, limit=1000) for remark in remarks]
    for one in tables:
        table = Table(title=one.title, title_justify="left", caption_justify="left")
        for position, name in enumerate(one.columns):
            table.add_column(
                name, justify="right" if position >= one.names else "left", overflow="fold"
            )
        for row in one.rows:
            table.add_row(*(plain(cell) for cell in row))
        parts.append(table)
        if one.note:
            parts.append(Text(one.note, style="dim"))
    return Group(*parts)


def _totals(summary: Summary) -> Table:
    table = Table(title="Results", title_justify="left")
    table.add_column("")
    columns: list[Mapping[str, str]] = []
    table.add_column("ML-Bench's", justify="right")
    columns.append({k: _percent(total.rate) for k, total in summary.submitted.items()})
    if summary.all_rows is not None:
        table.add_column("over all rows", justify="right")
        columns.append({k: _percent(total.rate) for k, total in summary.all_rows.items()})
    if summary.unbiased is not None:
        table.add_column("unbiased (95 %)", justify="right")
        columns.append({k: _interval(one) for k, one in summary.unbiased.items()})
    table.add_column("rows", justify="right")
    columns.append({k: _of(total) for k, total in summary.submitted.items()})
    for k in _KS:
        table.add_row(f"pass@{k.removeprefix('pass')}", *(column[k] for column in columns))
    return table


def _remarks(summary: Summary) -> list[Text]:
    covered, outputs = summary.coverage, _many(summary.outputs, "output")
    if covered.split_rows is None:
        remarks = [f"{_many(covered.submitted_rows, 'row')} submitted, {outputs}"]
    else:
        remarks = [
            f"{covered.submitted_rows} of the split's {_many(covered.split_rows, 'row')} "
            f"submitted ({_percent(covered.share)}), {outputs}"
        ]
    five = summary.submitted["pass5"]
    if five.unknown:
        remarks.append(
            f"left out of pass@5: {_many(five.unknown, 'row')} that an output without a verdict "
            "leaves open"
        )
    if five.short:
        remarks.append(f"left out of pass@5: {_many(five.short, 'row')} of fewer than 5 outputs")
    if summary.empty_passed:
        remarks.append(
            f"{_many(summary.empty_passed, 'empty answer')} passed, "
            "as ML-Bench lets them where a row asks for no argument"
        )
    if summary.wanted_network:
        remarks.append(
            f"{_many(summary.wanted_network, 'output')} failed for want of a network: mount what "
            "they download, or use --network bridge"
        )
    return [Text(remark) for remark in remarks]


def _repos(summary: Summary) -> Table:
    """One line a repository; statuses that no output has are left out, to fit a terminal."""
    table = Table(
        title="By repository (pass@k in %)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    statuses = [status for status in LABELS if summary.statuses[status]]
    table.add_column("repository", overflow="ellipsis")  # the only one to shrink
    names = ("rows", "outputs", "pass@1", "pass@5", *(LABELS[status] for status in statuses))
    for name in (*names, "unjudged") if summary.unjudged else names:
        table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for name, repo in summary.repos.items():
        cells = [
            str(repo.rows),
            str(repo.outputs),
            _percent(repo.pass1.rate, short=True),
            _percent(repo.pass5.rate, short=True),
            *(str(repo.statuses[status]) for status in statuses),
        ]
        if summary.unjudged:
            cells.append(str(repo.unjudged))
        table.add_row(plain(name, limit=60), *cells)
    return table


def _counts(title: str, what: str, counts: Mapping[Status, int]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(what)
    table.add_column("outputs", justify="right")
    for name, count in counts.items():
        if count:
            table.add_row(plain(name), str(count))
    return table


def _failures(summary: Summary) -> Table:
    """Over all repositories, the most frequent first: what failed, and what it was about."""
    found = ranked(summary)
    table = Table(title="Failures", title_justify="left")
    table.add_column("outputs", justify="right")
    for column in ("kind", "error", "what", "repository"):
        table.add_column(column)
    for name, one in found[:TOP_FAILURES]:
        kind = KINDS.get(one.kind, one.kind)
        texts = (kind, one.error or "", one.detail or "", name)
        table.add_row(str(one.count), *(plain(text, limit=80) for text in texts))
    left = found[TOP_FAILURES:]
    if left:
        rest = str(sum(one.count for _, one in left))
        table.add_row(rest, f"{len(left)} other ways: see summary.json")
    return table


def _unjudged(summary: Summary) -> Table:
    table = Table(title="Without a verdict", title_justify="left")
    table.add_column("times", justify="right")
    table.add_column("reason")
    table.add_column("next step")
    for one in summary.unjudged_reasons[:TOP_REASONS]:
        step = _NEXT_STEPS.get(one.kind, _NEXT_STEPS["infrastructure"])
        reason = f"{one.place}: {one.reason}" if one.place else one.reason
        table.add_row(str(one.count), plain(reason, limit=500), step)
    left = summary.unjudged_reasons[TOP_REASONS:]
    if left:
        table.add_row(
            str(sum(one.count for one in left)), f"{len(left)} other reasons", "see unjudged.jsonl"
        )
    return table


def _timings(summary: Summary) -> Text:
    timings = summary.timings
    text = f"{_many(timings.executed, 'output')} executed"
    if timings.wall_s is not None and timings.executed_per_s:
        text += f" in {duration(timings.wall_s)}, {timings.executed_per_s:.1f} a second"
    if timings.retried:
        text += f"; {timings.retried} on a fresh sandbox after one failed"
    if timings.contended:
        text += f"; {timings.contended} again alone, for lack of CPU"
    return Text(text)


def _percent(rate: float | None, *, short: bool = False) -> str:
    if rate is None:
        return "-"
    return f"{100 * rate:.1f}" if short else f"{100 * rate:.2f} %"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{_percent(estimate.rate)} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _of(total: Total) -> str:
    return f"{total.passed} of {total.rows}"


def visible(character: str) -> str:
    """The character, or its escape where it can't be seen or changes what is seen."""
    # Cc: control; Cf: bidirectional and other format; Cs: surrogates; Co, Cn: no known meaning.
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return character.encode("unicode_escape").decode("ascii")
    return character
