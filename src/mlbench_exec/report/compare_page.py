"""Compare page: what changed from one run to another, in one file that opens offline. Pure."""

from collections import Counter
from pathlib import Path
from typing import Any

from mlbench_exec.report import charts
from mlbench_exec.report.compare import Comparison
from mlbench_exec.report.tables import chance_words, comparison_remarks
from mlbench_exec.report.templates import generate
from mlbench_exec.report.terminal import plain
from mlbench_exec.report.words import LABELS

__all__ = ["comparison_page"]

ROWS = 300  # rows that flipped, and outputs that changed: the first ones
NONE = "no verdict"


def comparison_page(found: Comparison) -> str:
    """The page's text; it runs no script at all."""
    return "".join(
        generate(
            "compare.html.j2",
            found=found,
            names=[_name(one) for one in (found.a, found.b)],
            remarks=[plain(one, limit=400).plain for one in comparison_remarks(found)],
            ks=[(k, found.pass_k[f"pass{k}"], found.unbiased[f"pass{k}"]) for k in (1, 2, 5)],
            differences={
                name: charts.difference(one.low, one.after - one.before, one.high)
                for name, one in found.unbiased.items()
                if one is not None
            },
            repos=_repos(found),
            matrix=_matrix(found),
            labels={**LABELS, NONE: NONE},
            rows=[(plain(one.repo, limit=60).plain, one) for one in found.rows[:ROWS]],
            outputs=[(plain(one.repo, limit=60).plain, one) for one in found.outputs[:ROWS]],
            left_out=max(0, len(found.outputs) - ROWS),
            rows_left_out=max(0, len(found.rows) - ROWS),
            chance=chance_words,
            absent=NONE,
        )
    )


def _name(folder: str) -> str:
    return plain(Path(folder).name or folder, limit=60).plain


def _repos(found: Comparison) -> list[dict[str, Any]]:
    sides = [(one.outputs_lost, one.outputs_gained) for one in found.repos.values()]
    most = max((max(pair) for pair in sides), default=0)
    return [
        {
            "name": plain(name, limit=60).plain,
            "change": one,
            "swing": charts.swing(one.outputs_lost, one.outputs_gained, most),
        }
        for name, one in found.repos.items()
    ]


def _matrix(found: Comparison) -> dict[str, Any]:
    """Outputs by their status before and after, where it changed; how dark each count is."""
    counts = Counter((one.before or NONE, one.after or NONE) for one in found.outputs)
    order = [*LABELS, NONE]
    before, after = (
        [one for one in order if any(one == pair[side] for pair in counts)] for side in (0, 1)
    )
    most = max(counts.values(), default=1)
    cells = {
        one: [(other, counts[one, other], -(-5 * counts[one, other] // most)) for other in after]
        for one in before
    }
    return {"after": after, "cells": cells}
