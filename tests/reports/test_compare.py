"""What changed between two runs, and how it is told."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mlbench_exec import load_run
from mlbench_exec.cli import main
from mlbench_exec.journal import DatasetFacts, RepoFacts
from mlbench_exec.report import Comparison, compare, comparison_page
from mlbench_exec.verdicts import Status, Unjudged
from reports.folders import REPOS, Row, verdict, write_run

FIRST: dict[Row, list[Status]] = {
    (9, 1): ["failed", "failed", "failed", "failed", "failed"],
    (9, 2): ["passed", "failed", "failed", "failed", "failed"],
    (9, 3): ["failed", "passed", "passed", "passed", "passed"],
    (2, 7): ["wrong_type"] * 5,
    (2, 8): ["passed"] * 5,
}
SECOND: dict[Row, list[Status]] = {
    **FIRST,
    (9, 1): ["passed", "passed_at_limit", "failed", "failed", "failed"],
    (9, 3): ["failed", "failed", "killed", "failed", "failed"],
    (2, 9): ["passed"] * 5,
}
del SECOND[2, 8]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write_run(tmp_path / "first", FIRST), write_run(tmp_path / "second", SECOND)


@pytest.fixture
def found(folders: tuple[Path, Path]) -> Comparison:
    first, second = folders
    return compare(load_run(first), load_run(second))


def test_totals_over_common_rows(found: Comparison) -> None:
    """Rows that one run alone has count nowhere; gains and losses are told apart."""
    assert (found.common_rows, found.only_a, found.only_b) == (4, 1, 1)
    one, five = found.pass_k["pass1"], found.pass_k["pass5"]
    assert (one.rows, one.before, one.after, one.gained, one.lost) == (4, 0.25, 0.5, 1, 0)
    assert (five.before, five.after, five.gained, five.lost) == (0.5, 0.5, 1, 1)
    assert (one.chance, five.chance) == (1.0, 1.0)


def test_unbiased_estimates(found: Comparison) -> None:
    """Over the same rows: 0, 1, 4, 0 of 5 against 2, 1, 0, 0 of 5; signs alone could do that."""
    one = found.unbiased["pass1"]
    assert one is not None
    assert one.rows == 4
    assert [one.before, one.after] == pytest.approx([0.25, 0.15])
    assert one.chance == 1.0  # +2 and -4: every flip of signs is as far from 0 or farther
    assert one.low < one.after - one.before < one.high


def test_where(found: Comparison) -> None:
    """Repositories, rows and outputs that changed, each by name."""
    repo = found.repos["External-Attention-pytorch"]
    assert (repo.outputs_gained, repo.outputs_lost) == (2, 4)
    assert found.repos["bert"].pass5.gained == 0
    assert found.transitions == {
        "passed → failed": 3,
        **{"failed → passed": 1, "failed → passed_at_limit": 1, "passed → killed": 1},
    }
    assert [(one.github_id, one.id, one.k, one.before, one.after) for one in found.rows] == [
        *((9, 1, 1, 0, 1), (9, 1, 2, 0, 1), (9, 1, 5, 0, 1)),
        *((9, 3, 2, 1, 0), (9, 3, 5, 1, 0)),
    ]
    assert len(found.outputs) == 6
    assert all(one.same_code for one in found.outputs)
    assert (found.same_code, found.common_outputs) == (20, 20)


def test_other_code_and_missing_verdicts(tmp_path: Path) -> None:
    """An output of other code says so; one without a verdict has null in its place."""
    first = write_run(tmp_path / "a", verdicts=[verdict((9, 1), 0, "passed", "one")])
    second = write_run(
        tmp_path / "b",
        verdicts=[verdict((9, 1), 0, "failed", "two"), verdict((9, 1), 1, "failed")],
        unjudged=[Unjudged(reason="r", kind="infrastructure", github_id=9, id=1, index=2)],
    )
    found = compare(load_run(first), load_run(second))
    assert [(one.index, one.before, one.after, one.same_code) for one in found.outputs] == [
        *((0, "passed", "failed", False), (1, None, "failed", False)),
    ]
    assert found.remarks == (f"{second} has 1 outputs without a verdict",)
    assert "no verdict" in comparison_page(found)


def test_what_makes_runs_hard_to_compare(tmp_path: Path) -> None:
    """Another dataset and other settings are named."""
    first = write_run(tmp_path / "a", FIRST)
    facts = DatasetFacts(source="s", split="full", digest="other", repos=REPOS)
    second = write_run(
        tmp_path / "b",
        SECOND,
        dataset=facts,
        verdict_settings={"backend": "docker", "network": "none"},
    )
    remarks = compare(load_run(first), load_run(second)).remarks
    assert "the two runs judged against different datasets" in remarks
    assert "backend: local in the first, docker in the second" in remarks


def test_a_run_equals_itself(folders: tuple[Path, Path]) -> None:
    """Nothing changed, and the chance of that is 1."""
    run = load_run(folders[0])
    found = compare(run, run)
    assert (found.rows, found.outputs, found.transitions) == ((), (), {})
    assert {one.chance for one in found.pass_k.values()} == {1.0}


def report(*arguments: Any) -> Result:
    result = CliRunner().invoke(main, ["report", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result


def test_in_the_terminal(folders: tuple[Path, Path]) -> None:
    """`report A B` tells totals, chances, repositories and flips, and writes nothing."""
    before = {path: path.stat().st_mtime_ns for folder in folders for path in folder.iterdir()}
    text = " ".join(report(*folders).stdout.split())
    for part in ("McNemar", "passed → killed", "4 rows are in both runs", "External-Attention"):
        assert part in text, part
    after = {path: path.stat().st_mtime_ns for folder in folders for path in folder.iterdir()}
    assert after == before


def test_for_papers_and_scripts(folders: tuple[Path, Path]) -> None:
    """Markdown has the tables, CSV the outputs that changed, JSON everything."""
    text = report(*folders, "--format", "md").stdout
    assert "| pass@1 | 25.00 % | 50.00 % | +25.00 | 1 | 0 | 1.000 |" in text
    lines = list(csv.DictReader(io.StringIO(report(*folders, "--format", "csv").stdout)))
    assert len(lines) == 6
    assert lines[0]["after"] == "passed"
    assert json.loads(report(*folders, "--format", "json").stdout)["pass_k"]["pass1"]["gained"] == 1


def test_as_a_page(folders: tuple[Path, Path], found: Comparison) -> None:
    """One file without a script: figures, chances, where, and every output that changed."""
    page = report(*folders, "--format", "html").stdout
    assert page.startswith("<!DOCTYPE html>")
    figures = dict(re.findall(r'data-figure="(\w+)">\s*([-+.\d]+)', page))
    for name in ("pass1", "pass2", "pass5"):
        one = found.pass_k[name]
        assert one.before is not None
        assert one.after is not None
        assert float(figures[name]) == pytest.approx(100 * (one.after - one.before), abs=0.01)
        assert float(figures[name.replace("pass", "chance")]) == pytest.approx(
            one.chance, abs=0.001
        )
    for change in found.outputs:
        assert f"<code>{change.github_id}/{change.id}/{change.index}</code>" in page
    assert 'aria-label="4 lost, 2 gained"' in page
    assert "default-src &#39;none&#39;" in page
    assert not re.search(r"(?i)<script|https?://|url\(|@import|<link|<img|\bsrc=|\bon\w+=", page)


def test_a_page_of_foreign_names(tmp_path: Path) -> None:
    """What a repository is called is text in the page, every character of it visible."""
    repos = {9: RepoFacts(name="<img src=x onerror=alert(1)>\u202e&", rows=24)}
    facts = DatasetFacts(source="s", split="full", digest="d", repos=repos)
    rows: dict[tuple[int, int], list[Status]] = {(9, 1): ["passed"]}
    first = write_run(tmp_path / "a", rows, dataset=facts)
    second = write_run(tmp_path / "b", {(9, 1): ["failed"]}, dataset=facts)
    page = report(first, second, "--format", "html").stdout
    assert page.count("&lt;img src=x onerror=alert(1)&gt;\\u202e&amp;") == 3
    assert "<img" not in page
