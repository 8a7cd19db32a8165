"""The folder of a generation: what becomes of it on bad days, and what it holds after good ones."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from acceptance.command import write_lines
from gen.asking import good
from gen.programs import answered, arguments, dataset, ended
from mlbench_gen.testing import ModelServer

pytestmark = pytest.mark.slow


def test_a_full_disk_loses_nothing_that_was_kept(tmp_path: Path) -> None:
    """Where no more can be written, it is said without a traceback, no line is torn, and the
    same command goes on with what is missing."""
    code, said, _ = answered(tmp_path, shell="ulimit -f 3; exec")  # KiB in any one file
    assert code == 1
    assert "make room" in said
    assert "Traceback" not in said
    content = (tmp_path / "out" / "answers.jsonl").read_bytes()
    had = {json.loads(line)["id"] for line in content.splitlines()}
    assert content.endswith(b"\n")
    assert 0 < len(had) < 8
    code, said, asked = answered(tmp_path)
    assert code == 0, said
    assert asked == Counter(set(range(8)) - had)


@pytest.mark.parametrize("name", ["out/answers.jsonl", "rows.jsonl", "device"])
def test_outputs_replace_nothing_else(tmp_path: Path, name: str) -> None:
    """-o is refused where it names kept answers, the dataset, or what is no file."""
    os.mkfifo(tmp_path / "device")
    before = dataset(tmp_path, 8).read_bytes()
    code, said, asked = answered(tmp_path, "-o", tmp_path / name)
    assert (code, asked) == (2, Counter())
    assert "to -o" in said
    assert "Traceback" not in said
    assert dataset(tmp_path, 8).read_bytes() == before
    assert (tmp_path / "device").is_fifo()


def test_a_dataset_without_usable_rows_is_told(tmp_path: Path) -> None:
    """Nothing to ask about isn't success."""
    rows = write_lines(tmp_path / "rows.jsonl", [{"github_id": 1, "id": 2}])
    with ModelServer(good) as server:
        options = arguments(server, rows, tmp_path / "out")
        code, said = ended("generate", *options)
    assert code == 2
    assert "holds no row that can be used" in said


def test_costs_are_shown_and_kept(tmp_path: Path) -> None:
    """With a price file, the last words and usage.json tell what all runs cost, by model."""
    prices = tmp_path / "prices.toml"
    prices.write_text('["scripted-1"]\ninput = 1000000\noutput = 0\n')
    code, said, _ = answered(tmp_path, "--prices", prices)
    assert code == 0
    usage = json.loads((tmp_path / "out" / "usage.json").read_text())
    tokens = usage["models"]["scripted-1"]["prompt_tokens"]
    assert tokens > 0
    assert usage["cost"] == usage["models"]["scripted-1"]["cost"] == tokens
    assert f"cost {tokens}.00" in said
    prices.write_text('["another"]\ninput = 1\noutput = 1\n')
    code, said, asked = answered(tmp_path, "--prices", prices)
    assert (code, asked) == (0, Counter())
    assert "the price file has no 'scripted-1'" in said
    prices.write_text("[another]\ninput = 1\n")
    code, said, asked = answered(tmp_path, "--prices", prices)
    assert (code, asked) == (2, Counter())
    assert f"{prices}: is no price file ([another]: " in said
