"""The agent runs on every CPython from 3.7 on that this machine has."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlbench_exec.backends.local import LocalBackend
from mlbench_exec.environments import Environment
from mlbench_exec.samples import Language
from mlbench_exec.sandbox import Job, Limits, Observation

LIMITS = Limits(memory_bytes=512 << 20, pids=64)


def _version(python: str) -> tuple[int, int] | None:
    ask = "import sys; print(*sys.version_info[:2])"
    try:
        said = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    major, minor = said.stdout.split()
    return int(major), int(minor)


def interpreters() -> dict[tuple[int, int], str]:
    """One interpreter for each version that is here: on PATH, or among pyenv's."""
    names = [f"python3.{minor}" for minor in range(7, 20)]
    found = [path for name in names if (path := shutil.which(name))]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found += [str(path) for path in pyenv.glob("versions/*/bin/python")]
    versions = {_version(path): path for path in [*found, sys.executable]}
    return {version: path for version, path in versions.items() if version and version >= (3, 7)}


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize(
    "python",
    [pytest.param(path, id="{}.{}".format(*version)) for version, path in interpreters().items()],
)
async def test_the_agent_runs_on_this_interpreter(python: str, tmp_path: Path) -> None:
    """It serves python and bash, sees what they print and how they end, and keeps the limit."""
    (tmp_path / "data.txt").write_text("as it was\n")
    environment = Environment(
        name="tiny", github_ids=(1,), repo="tiny", workdir=str(tmp_path), python=sys.executable
    )

    async def run(language: Language, code: str, time_limit_s: float = 20.0) -> Observation:
        return await sandbox.run(
            Job(
                environment=environment,
                path="",
                language=language,
                code=code.encode(),
                time_limit_s=time_limit_s,
                limits=LIMITS,
            )
        )

    async with LocalBackend(limits=LIMITS, agent_python=python) as backend:
        sandbox = await backend.open(environment, 0)
        try:
            bash = await run("bash", "cat data.txt; echo x > data.txt; exit 3")
            assert (bash.exit_code, bash.stdout) == (3, "as it was\n")
            again = await run("python", "print(open('data.txt').read(), end='')")
            assert (again.exit_code, again.stdout, again.stderr) == (0, "as it was\n", "")
            endless = await run("python", "while True: pass", time_limit_s=0.3)
            assert (endless.exit_code, endless.limit) == (None, "time")
        finally:
            await sandbox.aclose()
