"""The core loads no extension module that was written in Rust."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from acceptance.command import write_lines
from conftest import IMAGES

# What the Rust compiler leaves in every library, stripped or not: paths for its panics' messages.
MARKS = (b"/rustc/", b"RUST_BACKTRACE", b"rust_panic", b"core::panicking")
KNOWN = ("grimp._rustgrimp", "pydantic_core._pydantic_core", "jiter.jiter", "rpds.rpds")
RUNS = """\
import json, sys
from mlbench_exec.cli import main
codes = []
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as end:
        codes.append(end.code)
files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
loaded = {name: file for name, file in files.items() if file and ".so" in file}
print(json.dumps([codes, loaded]), file=sys.__stdout__)
"""
ENVIRONMENT = """\
[environments.tiny]
github_ids = [1]
workdir = "{workdir}"
python = "/usr/bin/python3"
image = "mlbench-exec-test/conformance:latest"
"""
ROW = {
    "github_id": 1,
    "id": 1,
    "github": "https://example.org/tiny",
    "repo_id": 1,
    "path": "./",
    "arguments": "{'word': 'hello'}",
    "instruction": "Say hello.",
    "oracle": "",
    "type": "Python Code",
    "output": "print('hello')",
    "prefix_code": "",
}


def is_rust(file: Path) -> bool:
    content = file.read_bytes()
    return any(mark in content for mark in MARKS)


def loaded_by_runs(home: Path, workdirs: dict[str, Path]) -> dict[str, str]:
    """The extension modules of one process after a run on each backend, by name."""
    outputs = [{"github_id": 1, "id": 1, "output": [ROW["output"]]}]
    common = ["run", str(write_lines(home / "outputs.jsonl", outputs))]
    common += ["--dataset", str(write_lines(home / "rows.jsonl", [ROW]))]
    runs = []
    for backend, workdir in workdirs.items():
        environments = home / f"{backend}.toml"
        environments.write_text(ENVIRONMENT.format(workdir=workdir))
        run = ["--environments", str(environments), "--backend", backend, "--memory", "256m"]
        runs.append([*common, *run, "--concurrency", "1", "--out", str(home / backend)])
    ended = subprocess.run(
        [sys.executable, "-c", RUNS, json.dumps(runs)],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    codes, loaded = json.loads(ended.stdout.splitlines()[-1])
    assert codes == [0] * len(runs), ended.stderr
    found: dict[str, str] = loaded
    return found


def check_loaded(loaded: dict[str, str]) -> None:
    assert "msgspec._core" in loaded  # or we looked in the wrong place
    assert {name for name, file in loaded.items() if is_rust(Path(file))} == set()


@pytest.mark.slow
def test_local(tmp_path: Path) -> None:
    """A run on the local backend loads no extension module written in Rust."""
    repo = IMAGES / "conformance" / "repos" / "tiny"
    check_loaded(loaded_by_runs(tmp_path, {"local": repo}))


@pytest.mark.slow
@pytest.mark.docker
@pytest.mark.usefixtures("conformance_image")
def test_local_then_docker(tmp_path: Path) -> None:
    """A run on each backend, in one process, loads no extension module written in Rust."""
    repo = IMAGES / "conformance" / "repos" / "tiny"
    workdirs = {"local": repo, "docker": Path("/repos/tiny")}
    check_loaded(loaded_by_runs(tmp_path, workdirs))


@pytest.mark.parametrize("name", KNOWN)
def test_the_check_can_fail(name: str) -> None:
    """The same look at a library that is known to be written in Rust finds it out."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        pytest.skip(f"{name} is not installed")
    assert is_rust(Path(spec.origin))
