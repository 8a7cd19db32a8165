"""A snippet and its init, forked by machine code and by two forks, cold and warm."""

import errno
import os
import platform
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from conftest import alter_agent
from mlbench_exec.agent import kernel
from mlbench_exec.backends.local import LocalBackend
from mlbench_exec.environments import Environment, Mount
from mlbench_exec.errors import BackendUnavailable, EnvironmentUnusable, SandboxFailed
from mlbench_exec.samples import Language
from mlbench_exec.sandbox import Job, Limits, Observation, Sandbox

pytestmark = pytest.mark.slow
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
# It is a copy of what forked it for a moment longer than the snippet is there.
INIT = """
import time
until = time.monotonic() + 1.0
while (name := open("/proc/1/comm").read().strip()) != "init" and time.monotonic() < until:
    time.sleep(0.02)
print(name)
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


@pytest.fixture(params=["machine code", "two forks", "steps only"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How an agent forks: as it does here, or as it does where it can't do all of that."""
    if request.param == "two forks":
        for module in ("native", "pid1"):
            alter_agent(monkeypatch, module, CHECKED, "True")
    elif platform.machine() != "x86_64":
        pytest.skip("the machine code is x86_64's")
    elif request.param == "steps only":
        alter_agent(monkeypatch, "pid1", "kernel.is_new_glibc()", "False")
    return str(request.param)


@asynccontextmanager
async def opened(
    workdir: str,
    *,
    warm: bool = False,
    python: str = sys.executable,
    mounts: tuple[Mount, ...] = (),
) -> AsyncIterator[tuple[Sandbox, Environment]]:
    environment = Environment(
        name="e",
        github_ids=(1,),
        repo="e",
        workdir=workdir,
        python=python,
        mounts=mounts,
        preload=("typing",) if warm else (),  # which has classes among its modules
    )
    backend = LocalBackend(limits=LIMITS, preload_bytes=(256 << 20) * warm)
    async with backend:
        sandbox = await backend.open(environment, 0)
        try:
            yield sandbox, environment
        finally:
            await sandbox.aclose()


async def run(
    place: tuple[Sandbox, Environment], code: str, language: Language = "python"
) -> Observation:
    sandbox, environment = place
    job = Job(
        environment=environment,
        path="",
        language=language,
        code=code.encode(),
        time_limit_s=20.0,
        limits=LIMITS,
    )
    return await sandbox.run(job)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.asyncio
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
        commands = await run(place, INIT)
        assert (commands.stdout.strip() == "init") == (how == "machine code"), commands


SHELL = f'#!/bin/sh\nexec {sys.executable} "$@"\n'


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("#!/bin/true\n", 0o644, "Permission denied"),
        ("no program\n", 0o755, "Exec format error"),
    ],
)
@pytest.mark.asyncio
async def test_a_python_that_is_none_ends_the_snippet(
    workdir: str, tmp_path: Path, how: str, text: str, mode: int, said: str
) -> None:
    """As a shell would have it: with 126, and the reason where the program would have said it."""
    python = tmp_path / "python"
    python.write_text(SHELL)
    python.chmod(0o755)
    async with opened(workdir, python=str(python)) as place:
        python.write_text(text)
        python.chmod(mode)
        for _ in range(2):
            seen = await run(place, "pass")
            told = f"mlbench-exec: python: {said}\n"
            assert (seen.exit_code, seen.stdout, seen.stderr) == (126, "", told), seen
        assert (await run(place, "echo on", "bash")).stdout == "on\n"


@pytest.mark.asyncio
async def test_a_missing_interpreter_is_the_environments_fault(
    workdir: str, tmp_path: Path, how: str
) -> None:
    """It is named, and the sandbox serves the next snippet."""
    python = tmp_path / "python"
    python.write_text(SHELL)
    python.chmod(0o755)
    async with opened(workdir, python=str(python)) as place:
        python.write_text("#!/no/such/interpreter\n")
        with pytest.raises(EnvironmentUnusable, match=f"{python} can't be started"):
            await run(place, "pass")
        assert (await run(place, "echo on", "bash")).stdout == "on\n"


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    ("code", "said"),
    [("echo a\0b", "embedded null byte"), ("#" * 200_000, "Argument list too long")],
    ids=["NUL", "too long"],
)
@pytest.mark.asyncio
async def test_bash_that_cannot_be_given_its_script(
    workdir: str, how: str, warm: bool, code: str, said: str
) -> None:
    """Ends with 126 and the reason."""
    async with opened(workdir, warm=warm) as place:
        seen = await run(place, code, "bash")
        assert (seen.exit_code, seen.stdout) == (126, ""), seen
        assert seen.stderr == f"mlbench-exec: bash: {said}\n"


@pytest.fixture
def going_nowhere(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alter_agent(monkeypatch, "program", 'Step("fchdir", cwd)', 'Step("fchdir", 999)')


@pytest.mark.usefixtures("going_nowhere")
@pytest.mark.asyncio
async def test_a_step_that_fails_is_named(workdir: str) -> None:
    """Before anything runs without it."""
    with pytest.raises(BackendUnavailable, match="fchdir: Bad file descriptor"):
        async with opened(workdir):
            pass


VIEW = """
import os
for line in open("/proc/self/mountinfo"):
    fields = line.split()
    print(*fields[3:6], *fields[fields.index("-") + 1:])
for path in ("~", "~/m", "/tmp", "/tmp/m", "/var/tmp", "/dev/shm", ".", "r", "r/file"):
    status = os.stat(os.path.expanduser(path))
    print(path, oct(status.st_mode), status.st_uid, status.st_gid)
for path in (".", "/tmp", os.path.expanduser("~"), "/.mlbench", "/"):
    print(path, sorted(os.listdir(path)))
"""


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.asyncio
async def test_a_view_that_is_made_again_is_the_same(
    workdir: str, tmp_path: Path, how: str, warm: bool
) -> None:
    """The first is made step by step, the later ones at once, with all that is mounted in them."""
    repo, data = tmp_path / "repo", tmp_path / "data"
    for folder in (repo, data):
        folder.mkdir(mode=0o755)
    (data / "file").write_text("x")
    mounts = tuple(
        Mount(source=str(data), target=target)
        for target in (f"{repo}/r", "/tmp/m", "/home/mlbench/m")
    )
    async with opened(str(repo), warm=warm, mounts=mounts) as place:
        first = await run(place, VIEW)
        assert first.exit_code == 0, first
        for _ in range(3):
            assert (await run(place, VIEW)).stdout == first.stdout


@pytest.mark.asyncio
async def test_a_view_that_cannot_be_made_again_is_made_anew(
    workdir: str, tmp_path: Path, how: str
) -> None:
    """A folder that the first one found in a writable mount is gone, or there by now."""
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    for folder in (outer, inner):
        folder.mkdir()
        folder.chmod(0o777)
    mounts = (
        Mount(source=str(outer), target="/home/mlbench/outer", mode="rw"),
        Mount(source=str(inner), target="/home/mlbench/outer/inner"),
    )
    async with opened(workdir, mounts=mounts) as place:
        for _ in range(3):
            seen = await run(place, "ls -d ~/outer/*", "bash")
            assert seen.stdout == "/home/mlbench/outer/inner\n", seen
        (outer / "inner").rmdir()
        for _ in range(2):
            seen = await run(place, "ls -d ~/outer/*", "bash")
            assert seen.stdout == "/home/mlbench/outer/inner\n", seen


@pytest.mark.asyncio
async def test_a_snippets_peak_of_memory_is_not_its_agents(workdir: str, how: str) -> None:
    """An agent that once held a lot lends its memory to the next snippet, not its peak."""
    async with opened(workdir) as place:
        before = (await run(place, "pass")).peak_memory_bytes
        await run(place, "pass\n#" + "x" * (40 << 20))
        assert (await run(place, "pass")).peak_memory_bytes < before + (8 << 20)


def inits() -> set[int]:
    """Processes that are pid 1 in a namespace below an agent's of ours."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            lines = (folder / "status").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        pids = next(line.split()[1:] for line in lines if line.startswith("NSpid:"))
        if len(pids) == 3 and pids[-1] == "1":
            found.add(int(pids[0]))
    return found


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.asyncio
async def test_an_init_that_is_killed_is_missed_at_once(
    workdir: str, how: str, warm: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nobody else keeps open what it would have told on: it isn't the snippet's own limit."""
    out = tmp_path_factory.mktemp("out")
    out.chmod(0o777)
    mounts = (Mount(source=str(out), target="/home/mlbench/out", mode="rw"),)
    async with (
        opened(workdir, warm=warm, mounts=mounts) as place,
        anyio.create_task_group() as group,
    ):
        await run(place, "pass")
        before = inits()

        def kill() -> None:
            until = time.monotonic() + 10
            while not (out / "started").exists() and time.monotonic() < until:
                time.sleep(0.01)
            for pid in inits() - before:
                os.kill(pid, signal.SIGKILL)

        group.start_soon(anyio.to_thread.run_sync, kill)
        code = "open('/home/mlbench/out/started', 'w'); import time; time.sleep(15)"
        with pytest.raises(SandboxFailed, match="init process died"), anyio.fail_after(14):
            await run(place, code)


@pytest.mark.asyncio
async def test_a_warm_snippet_leaves_no_memory_behind(
    workdir: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it wrote goes with it: the interpreter it was forked from has nothing of it open."""
    old, long = "LET_GO_WITHIN_S = 1.0", "LET_GO_WITHIN_S = 9.0"
    await anyio.to_thread.run_sync(alter_agent, monkeypatch, "snippet", old, long)
    async with opened(workdir, warm=True) as place:
        for _ in range(3):
            seen = await run(place, "open('/tmp/x', 'wb').write(b'x' * (64 << 20))")
            assert (seen.exit_code, seen.warm) == (0, True), seen
            assert place[0].reusable
            before = anyio.current_time()
            await run(place, "pass")
            assert anyio.current_time() - before < 8  # it would be waited for


def test_magic_links_lead_nowhere(tmp_path: Path) -> None:
    """A folder that a snippet could name isn't opened through what its agent has open."""
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        (tmp_path / "link").symlink_to(f"/proc/self/fd/{fd}")
        (tmp_path / "plain").symlink_to(tmp_path)
        flags = os.O_PATH | os.O_DIRECTORY
        os.close(kernel.open_plainly(str(tmp_path / "plain"), flags))
        with pytest.raises(kernel.Refused) as raised:
            kernel.open_plainly(str(tmp_path / "link"), flags)
        assert raised.value.errno == errno.ELOOP
    finally:
        os.close(fd)


@pytest.fixture
def no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """The C library's fork fails, where an init calls it."""
    if platform.machine() != "x86_64":
        pytest.skip("the machine code is x86_64's")
    alter_agent(
        monkeypatch, "kernel", "_libc.fork", "_libc.getchar"
    )  # -1: there is nothing to read


@pytest.mark.usefixtures("no_fork")
@pytest.mark.asyncio
async def test_an_init_that_can_not_fork_costs_no_verdict(workdir: str) -> None:
    """Its interpreter is given up, and the snippet runs without one."""
    async with opened(workdir, warm=True) as place:
        for _ in range(3):
            seen = await run(place, "print('here')")
            assert (seen.exit_code, seen.stdout, seen.warm) == (0, "here\n", False), seen


@pytest.mark.asyncio
async def test_an_interpreter_that_cannot_fork_runs_no_script_itself(
    workdir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one that the repository has in the script's place either; the snippet runs cold."""
    script = anyio.Path(workdir, "temp.py")
    await script.write_text("import time\ntime.sleep(50)\n")
    old = "self._prepare(report, COPYING"
    new = f"if report: raise OSError(11, 'no fork')\n        {old}"
    await anyio.to_thread.run_sync(alter_agent, monkeypatch, "pid1", old, new)
    async with opened(workdir, warm=True) as place:
        await run(place, "pass")
        began = time.monotonic()
        seen = await run(place, "print('mine')")
        assert (seen.stdout, seen.warm) == ("mine\n", False), seen
        assert "the warm interpreter failed" in seen.ran_again
        assert time.monotonic() - began < 20
        await run(place, "print('mine')")  # and another one, that starts for it
        seen = await run(place, "print('mine')")
        assert (seen.stdout, seen.ran_again) == ("mine\n", ""), seen
        assert any("two have failed" in one and "no fork" in one for one in seen.notes), seen
