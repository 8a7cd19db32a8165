"""Prepare: from repositories and rows to a dataset folder, and only what has changed."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from acceptance.command import mlbench_data, write_lines
from mlbench_exec import read_rows
from mlbench_gen import Rows, template_of
from mlbench_gen.cli import commands
from mlbench_gen.prepare import Preparation, load_pins
from mlbench_gen.prepare.preparation import Options
from mlbench_gen.prepare.readme import readable_text

datasets = pytest.importorskip("datasets", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("default")
ENVIRON = {
    **os.environ,
    **{
        f"GIT_{who}_{what}": "a@b.c"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    },
}


def git(*arguments: str | Path) -> str:
    ended = subprocess.run(
        ["git", *arguments], check=True, capture_output=True, text=True, env=ENVIRON
    )
    return ended.stdout.strip()


def repository(folder: Path, name: str) -> tuple[Path, str]:
    """A bare repository to clone from, with two commits; the first is the one to pin."""
    work = folder / "work" / name
    (work / "docs").mkdir(parents=True)
    git("init", "--quiet", work)
    (work / "train.py").write_text("print('train')\n")
    (work / "README.md").write_bytes(b"# Train\r\nUse train.py to train. Then rest.\n")
    (work / "docs" / "readme.rst").write_text(f"{name} has docs. They tell of evaluation.\n")
    (work / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    git("-C", work, "add", ".")
    git("-C", work, "commit", "--quiet", "-m", "one")
    commit = git("-C", work, "rev-parse", "HEAD")
    (work / "README.md").write_text("Later.\n")
    git("-C", work, "commit", "--quiet", "-a", "-m", "two")
    bare = folder / f"{name}.git"
    git("clone", "--quiet", "--bare", work, bare)
    return bare, commit


def row(github_id: int, row_id: int, instruction: str) -> dict[str, Any]:
    plain = {"github": "https://example.org/a", "path": "./", "arguments": "{'lr': 0.1}"}
    plain |= {"type": "Bash Script", "oracle": "python train.py", "output": "python train.py "}
    return {"github_id": github_id, "id": row_id, "instruction": instruction, **plain}


class Place:
    """Two repositories to clone from, their pins, and the rows of two splits."""

    def __init__(self, folder: Path) -> None:
        self.home = folder
        self.repos = folder / "repos"
        self.out = folder / "prepared"
        pins = []
        for github_id, name in enumerate(("alpha", "beta"), start=1):
            bare, commit = repository(folder, name)
            pins.append(
                f'[repositories.{name}]\ngithub_ids = [{github_id}]\nurl = "{bare}"\n'
                f'commit = "{commit[:10]}"\n'
            )
        self.pins = folder / "pins.toml"
        self.pins.write_text("\n".join(pins))
        self.full = write_lines(folder / "full.jsonl", FULL)
        self.quarter = write_lines(folder / "quarter.jsonl", FULL[1:3])

    def prepare(self, *more: str) -> Result:
        """Run the command; the result's exit code is the program's."""
        splits = ["--split", "full", "--split", f"quarter={self.quarter}"]
        options = ["--repos", self.repos, "--out", self.out, "--dataset", self.full]
        options += ["--pins", self.pins, "--jobs", "1"]
        command = ["prepare", *map(str, options), *splits, *more]
        result = CliRunner().invoke(commands, command, standalone_mode=False)
        result.exit_code = result.exit_code or result.return_value
        return result

    def files(self) -> dict[str, int]:
        """When each file was written."""
        return {
            str(path.relative_to(self.out)): path.stat().st_mtime_ns
            for path in self.out.rglob("*")
            if path.is_file() and path.name not in ("prepare.json", "dataset_dict.json")
        }


FULL = [
    row(2, 5, "How to do evaluation"),
    row(1, 9, "Train it"),
    row(1, 2, "Say what evaluation is"),
    row(2, 1, "Train it"),
]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_readmes_come_first_and_every_path_is_named(place: Place) -> None:
    """READMEs of every folder, then the other readable files; nothing of .git or outside."""
    work = place.home / "work" / "alpha"
    (place.home / "secret").write_text("of the host")
    (work / "link.txt").symlink_to(place.home / "secret")
    os.mkfifo(work / "pipe")
    assert readable_text(work) == (
        "\n=== alpha/README.md ===\nLater.\n\n"
        "\n=== alpha/docs/readme.rst ===\nalpha has docs. They tell of evaluation.\n\n"
        "\n=== alpha/train.py ===\nprint('train')\n\n"
    )


@pytest.mark.slow
def test_a_dataset_folder_is_made(place: Place) -> None:
    """Clones stand at their pins, both splits load with contexts in the dataset's order, and
    prompts of tasks 1 and 2 can be made from them."""
    result = place.prepare()
    assert result.exit_code == 0, result.output
    saved = datasets.load_from_disk(str(place.out))
    assert list(saved) == ["full", "quarter"]
    full = list(saved["full"])
    assert [(one["github_id"], one["id"]) for one in full] == [(2, 5), (1, 9), (1, 2), (2, 1)]
    assert [one["id"] for one in saved["quarter"]] == [9, 2]
    assert full[1]["readme_content"].startswith(
        "\n=== alpha/README.md ===\n# Train\nUse train.py to train. Then rest.\n"
    )
    assert "They tell of evaluation." in full[0]["bm25_result"]
    assert {name: full[0][name] for name in FULL[0]} == FULL[0]
    assert len(list(read_rows(str(place.out), "quarter"))) == 2
    for task, column in ((1, "readme_content"), (2, "bm25_result")):
        [message] = template_of(task).render(next(iter(Rows(str(place.out), "full"))))
        assert full[0][column] in message["content"]


@pytest.mark.slow
def test_a_second_run_does_only_what_changed(place: Place) -> None:
    """Nothing is written where nothing has changed; a changed repository, option or row costs
    what depends on it."""
    place.prepare()
    before = place.files()
    again = place.prepare()
    assert place.files() == before
    assert "alpha: unchanged" in again.output
    assert "full: unchanged" in again.output
    (place.repos / "alpha" / "README.md").write_text("Training is new.\n")
    assert place.prepare().exit_code == 0
    changed = {name for name, at in place.files().items() if before.get(name) != at}
    assert {"contexts/alpha.txt", "contexts/alpha.json"} <= changed
    assert not any("beta" in name for name in changed)
    assert datasets.load_from_disk(str(place.out))["full"][1]["readme_content"].startswith(
        "\n=== alpha/README.md ===\nTraining is new."
    )
    before = place.files()
    write_lines(place.full, [*FULL[:3], row(2, 1, "Evaluate it")])
    result = place.prepare()
    changed = {name for name, at in place.files().items() if before.get(name) != at}
    assert {name.split("/")[0] for name in changed} == {"contexts", "full"}
    assert "alpha: unchanged" in result.output
    assert "contexts/beta.json" in changed
    assert "quarter: unchanged" in result.output


@pytest.mark.slow
def test_texts_are_cut_as_asked(place: Place) -> None:
    """By characters or by an estimate of tokens; segments are found in the whole text."""
    place.prepare("--max-chars", "25")
    full = datasets.load_from_disk(str(place.out))["full"]
    assert {len(text) for text in full["readme_content"]} == {25}
    assert "evaluation" in full[0]["bm25_result"]
    place.prepare("--max-tokens", "16")
    full = datasets.load_from_disk(str(place.out))["full"]
    assert {len(text) for text in full["readme_content"]} == {50}
    for bad in (("--max-chars", "few"), ("--max-chars", "0"), ("--tokenizer", "no_such")):
        result = place.prepare("--max-tokens", "5", *bad)
        assert result.exit_code == 2, result.output


@pytest.mark.slow
def test_a_checkout_elsewhere_is_refused_unless_told(place: Place) -> None:
    """Another commit costs that repository's rows their context, and is said with the remedy."""
    place.prepare()
    git(
        "-C",
        place.repos / "beta",
        "checkout",
        "--quiet",
        git("-C", place.home / "beta.git", "rev-parse", "HEAD"),
    )
    result = place.prepare()
    assert result.exit_code == 1
    assert "beta is pinned at" in result.output
    assert "2 rows have no context" in result.output
    full = datasets.load_from_disk(str(place.out))["full"]
    assert full["readme_content"][0] is None
    assert full["readme_content"][1].startswith("\n=== alpha/")
    assert place.prepare("--as-is").exit_code == 0


def test_a_clone_that_fails_leaves_nothing(place: Place) -> None:
    """What can't be cloned is named, and nothing of it stands where a checkout would."""
    place.pins.write_text(place.pins.read_text().replace("beta.git", "none.git"))
    result = place.prepare()
    assert result.exit_code == 1
    assert "beta: `git clone` failed" in result.output
    assert [path.name for path in place.repos.iterdir()] == ["alpha"]


@pytest.mark.slow
def test_all_cores_come_to_the_same(place: Place) -> None:
    """Processes beside each other give what one gives."""
    place.prepare()
    one = list(datasets.load_from_disk(str(place.out))["full"])
    many = place.home / "many"
    report = Preparation(
        {"full": str(place.full)}, load_pins(place.pins), place.repos, many, Options(), jobs=2
    ).run()
    assert (sorted(report.made), report.rows) == (["alpha", "beta"], {"full": 4})
    assert list(datasets.load_from_disk(str(many))["full"]) == one


def test_pins_cover_the_test_rows() -> None:
    """Each row of ML-Bench's test split has a pinned repository, at the address it names."""
    pins = load_pins()
    assert len(pins) == 14
    for line in mlbench_data("mlbench_full.jsonl").read_text().splitlines():
        one = json.loads(line)
        pin = pins[one["github_id"]]
        assert pin.url.lower() == one["github"].rstrip("/").lower()
