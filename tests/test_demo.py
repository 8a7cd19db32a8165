"""The bundled demo: what its README promises is what comes out."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mlbench_exec import rules
from mlbench_exec.environments import load_environments
from mlbench_exec.samples import parse_sample

DEMO = Path(__file__).parent.parent / "examples" / "demo"
COLUMNS = {
    *("github_id", "github", "repo_id", "id", "path", "arguments"),
    *("instruction", "oracle", "type", "output", "prefix_code"),
}


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def promised() -> dict[str, int]:
    """The statuses and counts of the README's table."""
    found = re.findall(r"^\| `(\w+)` \| (\d+) \|", (DEMO / "README.md").read_text(), re.MULTILINE)
    return {status: int(count) for status, count in found}


@pytest.fixture
def environments_file(tmp_path: Path) -> Path:
    """The template, filled in as the Makefile does it."""
    text = (DEMO / "environments.toml.in").read_text()
    text = text.replace("@ROOT@", str(DEMO.parent.parent)).replace("@PYTHON@", sys.executable)
    file = tmp_path / "environments.toml"
    file.write_text(text)
    return file


def test_rows_have_ml_benchs_shape() -> None:
    """Twelve rows with every column, whose own gold outputs pass the static checks."""
    rows = lines(DEMO / "rows.jsonl")
    assert len(rows) == 12
    for row in rows:
        assert set(row) == COLUMNS
        sample = parse_sample(row, place="rows.jsonl")
        assert rules.check(sample, sample.gold).ok, sample.key


def test_outputs_belong_to_rows() -> None:
    """Five outputs for each row, sixty as the README says."""
    outputs = lines(DEMO / "outputs.jsonl")
    keys = [(row["github_id"], row["id"]) for row in lines(DEMO / "rows.jsonl")]
    assert [(one["github_id"], one["id"]) for one in outputs] == keys
    assert all(isinstance(one["output"], list) and len(one["output"]) == 5 for one in outputs)
    assert sum(promised().values()) == 60


def test_each_repository_has_its_environment(environments_file: Path) -> None:
    """Every row's folder is there."""
    environments = load_environments(environments_file)
    for row in lines(DEMO / "rows.jsonl"):
        sample = parse_sample(row, place="rows.jsonl")
        environment = environments.for_github_id(sample.github_id)
        assert environment is not None
        assert environment.repo == sample.repository
        assert Path(environment.workdir, sample.path).is_dir()


@pytest.mark.slow
def test_the_demo_gives_the_promised_verdicts(environments_file: Path, tmp_path: Path) -> None:
    """Every status that a program can cause, as often as the README says, and exit code 0."""
    command = [sys.executable, "-m", "mlbench_exec", "run", str(DEMO / "outputs.jsonl")]
    command += ["--dataset", str(DEMO / "rows.jsonl"), "--environments", str(environments_file)]
    command += ["--backend", "local", "--memory", "256m", "--out", str(tmp_path / "run")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode == 3:
        pytest.skip(f"the local backend doesn't start here: {ended.stderr.strip()}")
    assert ended.returncode == 0, ended.stderr
    statuses = Counter(verdict["status"] for verdict in lines(tmp_path / "run" / "verdicts.jsonl"))
    assert statuses == promised()
