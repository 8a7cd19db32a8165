"""`run --gold`: the dataset's own answers as the submission."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import mlbench_exec.backends.choice
from mlbench_exec.cli import main
from mlbench_exec.sandbox import Job, Observation
from mlbench_exec.testing.fakes import FakeBackend, observation

ANSWERS = {1: "ok one", 2: "bad", 3: "ok three", 4: ""}


def play(job: Job) -> Observation | Exception:
    return observation(exit_code=0 if job.code.startswith(b"ok") else 1)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, made the current one, with a dataset of four rows and a fake local backend."""
    write_rows(tmp_path, ANSWERS)
    (tmp_path / "repo").mkdir()
    text = f'[environments.one]\ngithub_ids = [1]\nworkdir = "{tmp_path / "repo"}"\n'
    (tmp_path / "environments.toml").write_text(text)
    monkeypatch.setattr(mlbench_exec.backends.choice, "LocalBackend", lambda **_: FakeBackend(play))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_rows(folder: Path, answers: dict[int, str]) -> None:
    row = {"github_id": 1, "type": "Python Code", "path": "./", "arguments": "{}"}
    lines = (json.dumps({**row, "id": n, "output": answer}) for n, answer in answers.items())
    (folder / "rows.jsonl").write_text("\n".join(lines))


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def gold(*more: str) -> Result:
    fixed = ["--dataset=rows.jsonl", "--environments=environments.toml", "--backend=local"]
    return CliRunner().invoke(main, ["run", *fixed, *more])


def test_each_row_is_judged_by_its_own_answer(place: Path) -> None:
    """One output for each row, in runs/gold; a row without an answer is said to have none."""
    result = gold("--gold", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["statuses"]["passed"] == 2
    folder = place / "runs" / "gold"
    verdicts = read(folder / "verdicts.jsonl")
    assert {(one["id"], one["status"]) for one in verdicts} == {
        (1, "passed"),
        (2, "failed"),
        (3, "passed"),
    }
    (unjudged,) = read(folder / "unjudged.jsonl")
    assert unjudged["id"] == 4
    assert "its `output` column is missing or empty" in unjudged["reason"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["inputs"] == [{"path": "the dataset's own answers", "sha256": None}]


def test_the_same_command_continues_and_changed_answers_are_refused(place: Path) -> None:
    """As with a file: what is judged is not judged again, unless the dataset gives others now."""
    assert gold("--gold", "--limit=1").exit_code == 0
    again = gold("--gold", "--only=1/1,1/3")
    assert again.exit_code == 0
    assert "1 outputs are judged already" in again.stderr
    write_rows(place, {**ANSWERS, 1: "ok, but another"})
    changed = gold("--gold")
    assert changed.exit_code == 2
    assert "the dataset's row 1/1: github_id 1, id 1, output 0" in changed.stderr


def test_only_and_limit_choose_rows_of_it(place: Path) -> None:
    """A dry run counts what would be executed."""
    result = gold("--gold", "--only=1/1,1/2,1/3", "--limit=2", "--dry-run", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["planned"][0]["executions"] == 2


@pytest.mark.parametrize("arguments", [("--gold", "outputs.jsonl"), ()])
def test_outputs_or_gold_and_never_both(place: Path, arguments: tuple[str, ...]) -> None:
    """Bad usage, by name, before anything starts."""
    result = gold(*arguments)
    assert result.exit_code == 2
    assert "give OUTPUTS, or --gold" in result.stderr
    assert not (place / "runs").exists()
