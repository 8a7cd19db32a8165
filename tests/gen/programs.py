"""Programs: the commands of mlbench-gen as tests start them."""

import os
import subprocess
import sysconfig
from collections import Counter
from pathlib import Path

from acceptance.command import write_lines
from gen.asking import KEY, number_of
from mlbench_gen.testing import Good, ModelServer

BIN = Path(sysconfig.get_path("scripts"))
ROWS = 40
WITHIN_S = 100.0


def dataset(folder: Path, count: int = ROWS) -> Path:
    """Rows about nothing, for an interpreter and a folder that are there."""
    columns = {"github": "https://example.org/one", "path": "./", "arguments": "{}"}
    columns |= {"type": "Python Code", "oracle": "python do.py"}
    return write_lines(
        folder / "rows.jsonl",
        [
            {"github_id": 1, "id": number, "instruction": f"Do thing {number}.", **columns}
            for number in range(count)
        ],
    )


def environments(folder: Path) -> Path:
    repository = folder / "repository"
    repository.mkdir()
    repository.chmod(0o755)
    path = folder / "environments.toml"
    path.write_text(
        f'[environments.one]\ngithub_ids = [1]\nworkdir = "{repository}"\n'
        'python = "/usr/bin/python3"\n'
    )
    return path


def arguments(server: ModelServer, rows: Path, out: Path, *more: str | Path) -> list[str]:
    options = ["--model", "scripted/1", "--dataset", rows, "--base-url", server.url, "--out", out]
    options += ["--key-env", "TEST_KEY", "--samples", "2", "--requests", "4", "--backoff", "0.05"]
    return [str(one) for one in [*options, *more]]


def ended(program: str, *options: str | Path, shell: str = "exec") -> tuple[int, str]:
    """Exit code and stderr of a command, below a shell that says how it is to be run."""
    command = ["bash", "-c", f'{shell} "$@"', "bash", BIN / "mlbench-gen", program, *options]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "TEST_KEY": KEY},
        timeout=WITHIN_S,
    )
    return done.returncode, done.stderr


def answered(folder: Path, *more: str | Path, shell: str = "exec") -> tuple[int, str, Counter[int]]:
    """One `generate` over eight rows: exit code, stderr, and how often each row was asked."""
    with ModelServer(lambda asked: Good(texts=["x" * 300])) as server:
        options = arguments(server, dataset(folder, 8), folder / "out", *more)
        code, said = ended("generate", *options, shell=shell)
    return code, said, Counter(number_of(asked) for asked in server.log)
