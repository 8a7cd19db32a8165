"""A snippet and its init, forked by machine code and by two forks, cold and warm."""

import platform
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mlbench_exec import wire
from mlbench_exec.backends.local import LocalBackend
from mlbench_exec.environments import Environment
from mlbench_exec.sandbox import Job, Limits, Observation, Sandbox

pytestmark = [pytest.mark.slow, pytest.mark.asyncio]
LIMITS = Limits(memory_bytes=1 << 30, pids=64)
CHECKED = 'kernel.machine() != "x86_64"'
# What a program may ask of its C library, which doesn't know that it was forked.
IDENTITY = """
import ctypes, os, threading
libc = ctypes.CDLL(None)
print(os.getpid(), os.getppid(), libc.gettid(), threading.get_native_id())
def runs_on(cpu):
    os.sched_setaffinity(0, [cpu])
    return libc.sched_getcpu() == cpu
print(all(runs_on(cpu) for cpu in os.sched_getaffinity(0)))
thread = threading.Thread(target=lambda: print(threading.get_native_id() > 2))
thread.start()
thread.join()
"""
ORPHANS = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.05)
            os._exit(5)
        os._exit(0)
    os.wait()
for _ in range(500):
    left = sorted(name for name in os.listdir("/proc") if name.isdigit())
    if len(left) == 2:
        break
    time.sleep(0.02)
print(left)
"""
ENDS = {
    "pass": (0, None),
    "import sys; sys.exit(10)": (10, None),  # a line feed among the bytes that tell of it
    "import os; os._exit(255)": (255, None),
    "import os; os.abort()": (None, 6),
    "import signal; signal.raise_signal(10)": (None, 10),
    "import os; os.kill(os.getpid(), 9)": (None, 9),
    "import os, sys; os.kill(os.getppid(), 9); os.kill(1, 15); sys.exit(7)": (7, None),
    "import ctypes; ctypes.string_at(0)": (None, 11),
}


@pytest.fixture(params=["machine code", "two forks"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How an agent forks: as it does here, or as it does where it can't do that."""
    if request.param == "two forks":
        by_two_forks(monkeypatch)
    elif platform.machine() != "x86_64":
        pytest.skip("the machine code is x86_64's")
    return str(request.param)


def by_two_forks(patch: pytest.MonkeyPatch) -> None:
    sources = wire.agent_sources()
    assert sources["pid1"].count(CHECKED) == 2
    sources["pid1"] = sources["pid1"].replace(CHECKED, "True")
    bundle = wire.bundle_of(sources)
    patch.setattr(wire, "agent_sources", lambda: sources)
    patch.setattr(wire, "agent_bundle", lambda: bundle)


@asynccontextmanager
async def opened(workdir: str, *, warm: bool) -> AsyncIterator[tuple[Sandbox, Environment]]:
    environment = Environment(
        name="e",
        github_ids=(1,),
        repo="e",
        workdir=workdir,
        python=sys.executable,
        preload=("typing",) if warm else (),  # which has classes among its modules
    )
    backend = LocalBackend(limits=LIMITS, preload_bytes=(256 << 20) * warm)
    async with backend:
        sandbox = await backend.open(environment, 0)
        try:
            yield sandbox, environment
        finally:
            await sandbox.aclose()


async def run(place: tuple[Sandbox, Environment], code: str) -> Observation:
    sandbox, environment = place
    job = Job(
        environment=environment,
        path="",
        language="python",
        code=code.encode(),
        time_limit_s=20.0,
        limits=LIMITS,
    )
    return await sandbox.run(job)


@pytest.mark.parametrize("warm", [False, True])
async def test_a_snippet_and_its_init_are_the_same_however_they_were_forked(
    workdir: str, how: str, warm: bool
) -> None:
    """Its ends are told of, its orphans gone, its process what its C library takes it for."""
    async with opened(workdir, warm=warm) as place:
        await run(place, "pass")  # for a single snippet no interpreter is started
        for code, end in ENDS.items():
            seen = await run(place, code)
            assert (seen.exit_code, seen.signal, seen.warm) == (*end, warm), (code, seen)
        seen = await run(place, IDENTITY)
        assert seen.stdout.split() == ["2", "1", "2", "2", "True", "True"], seen
        seen = await run(place, ORPHANS)
        assert seen.stdout == "['1', '2']\n", seen
        commands = await run(place, "print(open('/proc/1/comm').read())")
        assert (commands.stdout.strip() == "init") == (how == "machine code"), commands
