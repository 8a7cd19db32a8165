"""The table at the local level of an ordinary user, by hand: `make hostile ARGS='-m soak -s'`."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from hostile import host
from hostile.house import LIMITS
from hostile.table import TABLE, assert_told, read
from mlbench_exec import Environment, Mount
from mlbench_exec.sandbox import Observation
from test_local_unprivileged import PYTHON, UID, place

__all__ = ["place"]  # a fixture

pytestmark = [
    pytest.mark.soak,
    pytest.mark.hostile,
    pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to be another user"),
]
PROGRAM = """
import asyncio, sys
import msgspec
from mlbench_exec.backends.local import LocalBackend
from mlbench_exec.environments import Environment
from mlbench_exec.errors import MLBenchExecError
from mlbench_exec.sandbox import Job, Limits

class Order(msgspec.Struct):
    environment: Environment
    limits: Limits
    programs: list[tuple[str, str, float]]

async def main():
    order, seen = msgspec.json.decode(sys.stdin.buffer.read(), type=Order), []
    sandbox = None
    async with LocalBackend(limits=order.limits) as backend:
        for language, code, limit_s in order.programs:
            if sandbox is None or not sandbox.reusable:
                if sandbox is not None:
                    await sandbox.aclose()
                sandbox = await backend.open(order.environment, 0)
            job = Job(environment=order.environment, path="./", language=language,
                      code=code.encode(), time_limit_s=limit_s, limits=order.limits)
            try:
                seen.append(await sandbox.run(job))
            except MLBenchExecError as error:
                seen.append(str(error))
        await sandbox.aclose()
    print(msgspec.json.encode(seen).decode())

asyncio.run(main())
"""
# What isn't as at the other levels, and why.
UNTOLD = "the limit holds, and nothing tells that it was met"
DIFFERENT = {
    "01_fork_bomb.py": UNTOLD,
    "01_fork_bomb_for_ever.sh": UNTOLD,
    "02_thread_bomb.py": "all processes of the user count, the agent's too",
    "03_heap_bomb.py": UNTOLD,
    "04_child_out_of_memory.py": UNTOLD,
    "06_memfd_bomb.py": "not held: memory that no process maps is counted by cgroups alone",
    "32_edits_mounts.py": "EACCES before EROFS: the files are root's",
    "52_priorities.py": "all cores: an affinity can be changed",
    "53_zombies.py": UNTOLD,
}


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="mlbench-ordinary-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.mark.timeout(300)
def test_the_table_for_an_ordinary_user(
    place: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each program tells what it tells at the local level, but for what is named above."""
    data = folder / "data"
    data.mkdir()
    (data / "file.txt").write_text("the host's\n")
    environment = Environment(
        name="own",
        github_ids=(1,),
        repo="own",
        workdir=str(place / "own"),
        python=PYTHON,
        mounts=(Mount(source=str(data), target=str(data)),),
    )
    cases = [case.on("local") for case in TABLE]
    with host.surroundings(tmp_path_factory.mktemp("host")) as surroundings:
        surroundings.furnish(data)
        given = surroundings.given(data, confined=True) | {
            "flood": 10**9,
            "targets": ["parent", "pid 1", "host's"],
            "programs": [PYTHON, "/usr/bin/bash", "/usr/bin/ls"],
            "search": "/",
        }
        programs = []
        for case in cases:
            binary = surroundings.compiled(case.file) if case.language == "c" else None
            language = "bash" if case.language == "bash" else "python"
            code = read(case, given, program=binary)
            programs.append((language, code, 1.0 if case.short else 30.0))
        order = {"environment": environment, "limits": LIMITS, "programs": programs}
        with surroundings.lock(data / "file.txt"):
            done = subprocess.run(
                [PYTHON, "-c", PROGRAM],
                input=msgspec.json.encode(order),
                capture_output=True,
                check=False,
                timeout=280,
                user=UID,
                group=UID,
                extra_groups=[],
                cwd="/",
                env={"PATH": os.defpath, "PYTHONPATH": f"{place}/lib:{place}/site", "HOME": "/"},
            )
        assert done.returncode == 0, done.stderr.decode()
        assert surroundings.is_unharmed()
    different = {}
    for case, seen in zip(cases, json.loads(done.stdout), strict=True):
        try:
            if isinstance(seen, str):
                raise AssertionError(seen)
            found = msgspec.convert(seen, Observation)
            assert_told(found.stdout, case.told, found.stderr)
            assert case.limit in {"either", found.limit}, found.limit
        except AssertionError as error:
            different[case.file] = str(error)
    assert different.keys() == DIFFERENT.keys(), different
