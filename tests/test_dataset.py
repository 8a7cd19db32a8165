"""Dataset: rows from files, saved folders and the Hub."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlbench_exec.dataset import load_dataset, read_rows
from mlbench_exec.errors import InputError


def row(github_id: int = 1, id: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "github_id": github_id,
        "github": "https://github.com/owner/name",
        "id": id,
        "path": "./",
        "arguments": "{'lr': 0.1}",
        "type": "Python Code",
        "instruction": "Write it.",
        "output": "print(0.1)",
    } | changes


def write(path: Path, *rows: object) -> str:
    lines = (one if isinstance(one, str) else json.dumps(one) for one in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def test_rows_keep_their_order(tmp_path: Path) -> None:
    """Samples come in the file's order, by key."""
    dataset = load_dataset(write(tmp_path / "d.jsonl", row(2, 5), row(1, 9), row(1, 3)))
    assert list(dataset.samples) == [(2, 5), (1, 9), (1, 3)]
    assert dataset.samples[2, 5].arguments == {"lr": "0.1"}
    assert dataset.rejected == ()
    assert dataset.split == "full"


def test_bad_rows_are_named_and_the_others_used(tmp_path: Path) -> None:
    """Bad and repeated rows cost themselves alone, and say where they stand."""
    source = write(
        tmp_path / "d.jsonl",
        row(1, 1, path="./first"),
        "{",
        "[1]",
        row(1, 2, arguments="{[]: 1}"),
        row(1, 3, arguments="nope("),
        row(1, 1, path="./second"),
        "",
        row(1, 4),
    )
    dataset = load_dataset(source)
    assert list(dataset.samples) == [(1, 1), (1, 4)]
    assert dataset.samples[1, 1].path == "./first"
    assert [(one.place, one.id) for one in dataset.rejected] == [
        (f"{source}:2", None),
        (f"{source}:3", None),
        (f"{source}:4", 2),
        (f"{source}:5", 3),
        (f"{source}:6", 1),
    ]
    assert all(source not in one.reason for one in dataset.rejected)


def test_the_digest_covers_what_verdicts_depend_on(tmp_path: Path) -> None:
    """Order, instructions and gold leave the digest alone; path, arguments and type do not."""
    plain = load_dataset(write(tmp_path / "a", row(1, 1), row(1, 2))).digest
    same = load_dataset(
        write(tmp_path / "b", row(1, 2, instruction="x", output=""), row(1, 1))
    ).digest
    assert same == plain
    for change in ({"path": "./x"}, {"arguments": "{}"}, {"type": "Bash Script"}):
        other = load_dataset(write(tmp_path / "c", row(1, 1, **change), row(1, 2))).digest
        assert other != plain


def test_a_byte_order_mark_and_crlf_are_no_matter(tmp_path: Path) -> None:
    """Files saved on Windows read like the others."""
    file = tmp_path / "d.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(row()).encode() + b"\r\n")
    assert list(load_dataset(str(file)).samples) == [(1, 1)]


def test_a_source_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    """With nothing to judge against, the first row's fault is the message."""
    source = write(tmp_path / "d.jsonl", {"question": "?"})
    with pytest.raises(InputError, match=r"none of its 1 rows .*d\.jsonl:1: .*'github_id' column"):
        load_dataset(source)


@pytest.mark.parametrize("source", ["missing", "./a/b", "data/missing.jsonl", "a/b/c", "\0"])
def test_a_path_that_is_not_there_is_named(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is neither a path nor owner/name is never looked for on the Hub."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        load_dataset(source)
    assert str(caught.value).startswith(f"{source}: ")


@pytest.mark.parametrize("kind", ["hub", "folder", "parquet"])
def test_without_the_extra_the_message_says_what_to_install(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sources that need the hub extra name it."""

    def refuse(name: str) -> Any:
        raise ImportError(name)

    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    sources = {"hub": "owner/name", "folder": str(tmp_path), "parquet": f"{tmp_path}/d.parquet"}
    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(InputError, match=r'pip install "mlbench-exec\[hub\]"'):
        load_dataset(sources[kind])


@pytest.mark.slow
def test_a_jsonl_file_needs_no_extra(tmp_path: Path) -> None:
    """Reading JSONL imports neither datasets nor pyarrow."""
    source = write(tmp_path / "d.jsonl", row())
    program = (
        "import sys; from mlbench_exec.dataset import load_dataset, read_rows; "
        f"load_dataset({source!r}); "
        "assert not {'datasets', 'pyarrow', 'huggingface_hub', 'hf_xet'} & set(sys.modules)"
    )
    paths = os.pathsep.join(one for one in sys.path if one)
    environ = {**os.environ, "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", program], check=True, env=environ, timeout=60)


def test_a_parquet_file_is_known_by_its_content(tmp_path: Path) -> None:
    """Parquet reads like JSONL, whatever its name, with the same digest; a broken one is named."""
    pyarrow = pytest.importorskip("pyarrow", exc_type=ImportError)
    parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    file = tmp_path / "data"
    parquet.write_table(pyarrow.Table.from_pylist([row(1, 2), row(1, 1), row(1, 1)]), file)
    dataset = load_dataset(str(file))
    assert list(dataset.samples) == [(1, 2), (1, 1)]
    assert dataset.rejected[0].place == f"{file}: row 3"
    assert dataset.digest == load_dataset(write(tmp_path / "j", row(1, 1), row(1, 2))).digest
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match="not a whole Parquet file"):
        load_dataset(str(file))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_saved_folder_holds_one_split_or_many(tmp_path: Path) -> None:
    """`save_to_disk` of a dataset or of its splits can be read; an unknown split is named."""
    datasets = pytest.importorskip("datasets", exc_type=ImportError)
    one = datasets.Dataset.from_list([row(1, 2), row(1, 1)])
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"full": one, "quarter": one.select([0])}).save_to_disk(
        str(tmp_path / "many")
    )
    assert list(load_dataset(str(tmp_path / "one")).samples) == [(1, 2), (1, 1)]
    assert list(load_dataset(str(tmp_path / "many"), "quarter").samples) == [(1, 2)]
    with pytest.raises(InputError, match="no split 'half': pass --split full or quarter"):
        load_dataset(str(tmp_path / "many"), "half")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not a folder made by save_to_disk"):
        load_dataset(str(tmp_path / "empty"))


def test_rows_keep_all_their_columns(tmp_path: Path) -> None:
    """Rows are given as they stand, without those that could not be judged against."""
    rows = [row(1, 2), {"id": 3}, row(1, 2), row(1, 1)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert list(read_rows(str(path))) == [rows[0], rows[3]]


def test_the_test_split_is_read_whole() -> None:
    """All 260 rows of ML-Bench's test split are usable."""
    folder = os.environ.get("MLBENCH_DATA")
    if not folder:
        pytest.skip("MLBENCH_DATA names no folder with ML-Bench's data")
    dataset = load_dataset(f"{folder}/mlbench_full.jsonl")
    assert len(dataset.samples) == 260
    assert dataset.rejected == ()
    assert sum(one.wants == "bash" for one in dataset.samples.values()) == 171
    assert max(len(one.arguments) for one in dataset.samples.values()) == 29
