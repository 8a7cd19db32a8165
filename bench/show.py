"""Show: a table in Markdown, and plots where matplotlib is installed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from bench.figures import Figure, Summary, Target
from bench.machine import Machine

MARKS = {True: "yes", False: "**no**", None: "not measured"}


def table(machine: Machine, summaries: Mapping[str, Summary]) -> str:
    """All of it, in Markdown."""
    facts = ", ".join(f"{name} {value}" for name, value in msgspec.structs.asdict(machine).items())
    parts = [f"Machine: {facts}.\n"]
    targets = [target for summary in summaries.values() for target in summary.targets]
    if targets:
        parts.append(_grid(("target", "reached", "wanted", "met"), map(_target, targets)))
    for name, summary in summaries.items():
        parts.append(f"## {name}\n")
        parts.append(_grid(("what", "value", "details"), map(_figure, summary.figures)))
    return "\n".join(parts)


def _target(target: Target) -> Sequence[str]:
    wanted = f"{target.sense} {target.wanted:g}" if target.wanted else "-"
    met = MARKS[target.is_met] if target.wanted else "-"
    return target.name, _number(target.value, target.unit), wanted, met


def _figure(figure: Figure) -> Sequence[str]:
    return figure.name, _number(figure.value, figure.unit), figure.note


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "not measured"
    return f"{value:.3g} {unit}".strip() if value < 1000 else f"{value:,.0f} {unit}".strip()


def _grid(heads: Sequence[str], rows: "Sequence[Sequence[str]] | map[Sequence[str]]") -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def plots(folder: Path, summaries: Mapping[str, Summary]) -> list[Path]:
    """One bar chart a measurement, as PNG; none without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return []
    mpl.use("Agg")
    from matplotlib import pyplot

    made = []
    for name, summary in summaries.items():
        shown = [figure for figure in summary.figures if figure.value is not None]
        if not shown:
            continue
        chart, axes = pyplot.subplots(figsize=(8, 0.8 + 0.3 * len(shown)), layout="constrained")
        bars = axes.barh(
            [figure.name for figure in shown], [figure.value or 0.0 for figure in shown]
        )
        axes.bar_label(bars, fmt="%.3g", padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel(" or ".join(sorted({figure.unit for figure in shown})))
        axes.set_title(name)
        path = folder / f"{name}.png"
        chart.savefig(path, dpi=80)
        pyplot.close(chart)
        made.append(path)
    return made
