"""A run read back as plain data."""

import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from mlbench_exec import RunFolderError, load_run
from mlbench_exec.verdicts import Unjudged
from reports.folders import verdict, write_run


def a_run(folder: Path) -> Path:
    return write_run(
        folder,
        {(9, 2): ["failed", "passed"], (2, 7): ["wrong_type"]},
        verdicts=[
            verdict((9, 1), 0, "passed", wall_s=0.5, started_at="2026-01-02T03:04:05.678+00:00"),
            verdict((9, 3), 0, "passed", wall_s=1.5, started_at="2026-01-02T03:04:05+00:00"),
        ],
        unjudged=[Unjudged(reason="no image", kind="environment", github_id=2, id=7, index=1)],
    )


def test_everything_is_there(tmp_path: Path) -> None:
    """Verdicts, rows, reasons and the summary, in the order of their keys."""
    run = load_run(a_run(tmp_path))
    assert [(*one.key, one.index) for one in run.verdicts] == [
        *((2, 7, 0), (9, 1, 0), (9, 2, 0), (9, 2, 1), (9, 3, 0)),
    ]
    assert [(row.github_id, row.id, row.pass1, row.pass2) for row in run.rows] == [
        *((2, 7, 0, None), (9, 1, 1, 1), (9, 2, 0, 1), (9, 3, 1, 1)),
    ]
    assert [one.reason for one in run.unjudged] == ["no image"]
    assert (run.summary.judged, run.summary.unjudged) == (5, 1)
    assert run.repo(9) == "External-Attention-pytorch"
    assert repr(run) == f"<Run {str(tmp_path)!r} rows=4 verdicts=5>"


def test_it_is_frozen(tmp_path: Path) -> None:
    """Nothing of it can be changed by mistake."""
    run = load_run(str(a_run(tmp_path)))
    with pytest.raises(AttributeError):
        run.folder = "other"  # type: ignore[misc]
    assert isinstance(run.verdicts, tuple)


def test_a_frame(tmp_path: Path) -> None:
    """One line for each verdict, with every field of verdicts.jsonl and the repository's name."""
    frame = load_run(a_run(tmp_path)).to_pandas()
    assert len(frame) == 5
    assert frame.groupby("repo")["passed"].mean().to_dict() == {
        "External-Attention-pytorch": 0.75,
        "bert": 0.0,
    }
    assert frame["wall_s"].sum() == 2.0
    assert isinstance(frame["started_at"].dtype, pandas.DatetimeTZDtype)


def test_an_empty_frame_has_the_same_columns(tmp_path: Path) -> None:
    """Also before the first verdict."""
    empty = load_run(write_run(tmp_path / "empty")).to_pandas()
    full = load_run(a_run(tmp_path / "full")).to_pandas()
    assert list(empty.columns) == list(full.columns)
    assert len(empty) == 0


@pytest.mark.slow
def test_without_pandas(tmp_path: Path) -> None:
    """Only the frame needs pandas, and the message says so."""
    code = (
        "import sys; sys.modules['pandas'] = None\n"
        "from mlbench_exec import load_run\n"
        f"run = load_run({str(a_run(tmp_path))!r})\n"
        "try: run.to_pandas()\n"
        "except Exception as error: print(len(run.verdicts), error)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout == "5 a frame needs pandas: pip install pandas\n"


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    """The file and the line are in the message; nothing is guessed."""
    folder = a_run(tmp_path)
    path = folder / "verdicts.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "{]\n" + "".join(lines[1:]))
    with pytest.raises(RunFolderError, match=r"verdicts\.jsonl:2"):
        load_run(folder)
    path.write_text(lines[0] + "".join(lines))
    with pytest.raises(RunFolderError, match=r"already has a verdict"):
        load_run(folder)


def test_no_run(tmp_path: Path) -> None:
    """A folder without a manifest holds no run."""
    with pytest.raises(RunFolderError, match="holds no run"):
        load_run(tmp_path)
