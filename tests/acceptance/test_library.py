"""The engine as a library, as the README shows it."""

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import anyio.to_thread
import pytest

from conftest import agents_of
from mlbench_exec import Engine, Limits, Settings, Snippet, Submission, Verdict, read_submissions

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "demo"
README = ROOT / "README.md"
# What examples/demo/README.md promises.
STATUSES = {
    "passed": 15,
    "passed_at_limit": 3,
    "failed": 32,
    "wrong_arguments": 5,
    "wrong_type": 3,
    "out_of_memory": 1,
    "killed": 1,
}


def write_environments(folder: Path) -> Path:
    """What `make demo` writes."""
    content = (DEMO / "environments.toml.in").read_text()
    file = folder / "demo.environments.toml"
    file.write_text(content.replace("@ROOT@", str(ROOT)).replace("@PYTHON@", sys.executable))
    return file


def readme_example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    return str(code)


def test_readme_example(tmp_path: Path) -> None:
    """The README's example runs as it stands there, and judges the demo's 60 outputs."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "runs").mkdir()
    write_environments(tmp_path / "runs")
    ended = subprocess.run(
        [sys.executable, "-c", readme_example()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert Counter(line.split()[-1] for line in ended.stdout.splitlines()) == STATUSES


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        dataset=str(DEMO / "rows.jsonl"),
        environments_file=write_environments(tmp_path),
        backend="local",
        concurrency=2,
        limits=Limits(memory_bytes=256 << 20),
    )


def test_importing_it_takes_nothing_that_only_docker_needs() -> None:
    """It is a third of the import, and who judges locally in a harness has no use for it."""
    code = (
        "import sys, mlbench_exec\nprint([m for m in ('aiodocker', 'aiohttp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n", done


async def left_behind() -> set[object]:
    """Agents and temporary folders of this process's engines."""

    def look() -> set[object]:
        return {*agents_of(os.getpid()), *Path(tempfile.gettempdir()).glob("mlbench-exec-*")}

    return await anyio.to_thread.run_sync(look)


@pytest.mark.asyncio
async def test_run_and_break(settings: Settings) -> None:
    """One block may judge single outputs and leave a stream early; leaving it leaves nothing."""
    taken = 0
    read = 0

    async def submissions() -> AsyncIterator[object]:
        nonlocal read
        async for row in read_submissions(str(DEMO / "outputs.jsonl")):
            read += isinstance(row, Submission)
            yield row

    async with Engine(settings) as engine:
        async for outcome in engine.stream(submissions()):
            assert isinstance(outcome, Verdict)
            taken += 1
            if taken == 3:
                break
        output = "python train.py --data data/houses.csv --epochs 20 --lr 0.05"
        verdict = await engine.run(Snippet(github_id=101, id=1, output=output))
        assert (verdict.status, verdict.key, verdict.index) == ("passed", (101, 1), 0)
        assert await left_behind() != set()
    assert taken == 3
    assert read < 12  # rows are read only as fast as outcomes are taken
    assert await left_behind() == set()
