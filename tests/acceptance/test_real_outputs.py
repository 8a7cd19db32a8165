"""What a model really wrote for ML-Bench, on a machine that has none of its environments."""

from collections import Counter
from pathlib import Path

import pytest

from acceptance.command import Command, Line, mlbench_data, read_lines, write_lines

pytestmark = pytest.mark.slow
OUTPUTS = 5  # of each submission
# Gold outputs that fail ML-Bench's own checks, by github_id.
GOLD_WRONG_ARGUMENTS = {
    2: {31, 34, 42, 46, 49, 59},
    3: {72, 73, 74},
    4: {104, 110, 111, 114},
    9: {262, 266, 268, 269, 270},
    13: {227, 234, 240, 241},
}
GOLD_WRONG_TYPE = (14, 256)


@pytest.fixture(scope="module")
def dataset() -> Path:
    return mlbench_data("mlbench_full.jsonl")


def run_without_environments(home: Path, outputs: Path, dataset: Path) -> Command:
    """Every built-in folder is moved to where no machine has one."""
    environments = home / "environments.toml"
    environments.write_text(
        "".join(
            f"[environments.missing-{github_id}]\ngithub_ids = [{github_id}]\n"
            f'workdir = "{home}/missing/{github_id}"\n'
            for github_id in {row["github_id"] for row in read_lines(dataset)}
        )
    )
    options = ("--dataset", dataset, "--environments", environments, "--backend", "local")
    command = Command(home / "command", outputs, *options, "--memory", "1g")
    assert command.run() == 1, command.said()
    return command


@pytest.fixture(scope="module")
def judged(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The model's outputs, judged once for all tests here."""
    outputs = mlbench_data("model_outputs_pass5.jsonl")
    return run_without_environments(tmp_path_factory.mktemp("real"), outputs, dataset)


def test_rows_that_are_not_in_the_dataset_are_named(judged: Command, dataset: Path) -> None:
    """53 submissions are judged; each of the other 20 is named by its github_id and id."""
    known = {(row["github_id"], row["id"]) for row in read_lines(dataset)}
    submitted = submissions()
    strangers = set(submitted) - known
    assert (len(submitted), len(strangers)) == (73, 20)
    rejected = [line for line in judged.unjudged() if line["index"] is None]
    assert len(rejected) == 20
    assert {(line["github_id"], line["id"]) for line in rejected} == strangers
    for line in rejected:
        assert line["kind"] == "input"
        assert f"github_id {line['github_id']}" in line["reason"]
        assert f"id {line['id']}" in line["reason"]
        assert line["place"].endswith(f":{submitted[line['github_id'], line['id']]}")
    assert judged.summary()["counts"] == 53


def test_every_output_is_accounted_for(judged: Command, dataset: Path) -> None:
    """Each of the 265 outputs has either a verdict or a reason why there is none, once."""
    known = {(row["github_id"], row["id"]) for row in read_lines(dataset)}
    expected = [(*key, i) for key in submissions() if key in known for i in range(OUTPUTS)]
    found = [output for output in (*judged.verdicts(), *judged.unjudged()) if is_output(output)]
    assert len(expected) == 265
    assert sorted((line["github_id"], line["id"], line["index"]) for line in found) == sorted(
        expected
    )


def test_static_checks_agree_with_mlbench(judged: Command) -> None:
    """Of 265 outputs 178 pass the arguments check, 189 the type check and 134 both."""
    verdicts = judged.verdicts()
    unjudged = [line for line in judged.unjudged() if is_output(line)]
    assert len(unjudged) == 134
    assert {line["kind"] for line in unjudged} == {"environment"}
    assert sum(line["arguments_ok"] for line in verdicts) + 134 == 178
    assert sum(line["type_ok"] for line in verdicts) + 134 == 189
    assert not any(line["arguments_ok"] and line["type_ok"] for line in verdicts)


def test_a_missing_environment_is_named(judged: Command) -> None:
    """An output without a verdict says which folder is missing; none becomes a failure."""
    for line in judged.unjudged():
        if is_output(line):
            assert f"/missing/{line['github_id']}" in line["reason"]
    assert {line["status"] for line in judged.verdicts()} == {"wrong_arguments", "wrong_type"}
    results = Counter(row["pass5"] for row in judged.results())
    assert results.keys() == {0, None}


def test_gold_outputs(dataset: Path, tmp_path: Path) -> None:
    """Of the dataset's own 260 outputs 237 pass both checks; the other 23 are the known ones."""
    gold = (
        {"github_id": row["github_id"], "id": row["id"], "output": [row["output"]]}
        for row in read_lines(dataset)
    )
    outputs = write_lines(tmp_path / "gold.jsonl", gold)
    command = run_without_environments(tmp_path, outputs, dataset)
    statuses: dict[str, set[tuple[int, int]]] = {}
    for line in command.verdicts():
        statuses.setdefault(line["status"], set()).add((line["github_id"], line["id"]))
    assert statuses == {
        "wrong_arguments": {
            (github_id, row_id) for github_id, ids in GOLD_WRONG_ARGUMENTS.items() for row_id in ids
        },
        "wrong_type": {GOLD_WRONG_TYPE},
    }
    assert Counter(line["kind"] for line in command.unjudged()) == {"environment": 237}


def submissions() -> dict[tuple[int, int], int]:
    """The submitted rows, and the line that each stands on."""
    lines = read_lines(mlbench_data("model_outputs_pass5.jsonl"))
    return {(line["github_id"], line["id"]): n for n, line in enumerate(lines, start=1)}


def is_output(line: Line) -> bool:
    return line["index"] is not None
