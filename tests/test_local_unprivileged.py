"""The local backend without root: no cgroups, no idmapped mounts, the same promises."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import mlbench_exec

pytestmark = pytest.mark.slow
UID = 54321  # nobody has it
NOT_NEEDED = ("mypy*", "ruff*", "pip*", "hypothesis*", "datasets*", "pyarrow*", "torch*", "openai*")
PYTHON = "/usr/bin/python3"
PROGRAM = """
import asyncio, json, os, sys
from mlbench_exec.backends.local import LocalBackend
from mlbench_exec.environments import Environment
from mlbench_exec.sandbox import Job, Limits
import msgspec

async def main():
    repo, snippets = sys.argv[1], json.loads(sys.stdin.read())
    limits = Limits(memory_bytes=256 << 20, pids=64, disk_bytes=64 << 20)
    environment = Environment(
        name="own", github_ids=(1,), repo="own", workdir=repo, python=sys.executable
    )
    seen = []
    async with LocalBackend(limits=limits) as backend:
        sandbox = await backend.open(environment, 0)
        try:
            for language, code, time_limit_s in snippets:
                job = Job(environment=environment, path="./", language=language,
                          code=code.encode(), time_limit_s=time_limit_s, limits=limits)
                seen.append(await sandbox.run(job))
        finally:
            await sandbox.aclose()
    print(msgspec.json.encode([backend.level, os.getuid(), seen]).decode())

asyncio.run(main())
"""
WRITE = (
    "echo more >>README.md && echo new >new && rm package/data.txt && echo x >package/y"
    " && touch ~/f /tmp/f && cat README.md && id -u"
)
FORKS = (
    "import os, signal\nn = 0\ntry:\n    while n < 5000:\n"
    "        if os.fork() == 0: signal.pause()\n        n += 1\n"
    "except BlockingIOError: print(n)"
)
CHILD_EATS = (
    "import subprocess, sys\n"
    "eat = 'import time; x = []\\nwhile True: x.append(bytearray(b\"x\") * (1 << 20))'\n"
    "print(subprocess.run([sys.executable, '-c', eat], capture_output=True).returncode)"
)
SHARED = (  # beyond what a limit on one process's own data sees
    "import mmap, os, time\nparts = []\nfor _ in range(8):\n"
    "    parts.append(mmap.mmap(-1, 64 << 20)); parts[-1].write(bytes(64 << 20))\n"
    "    time.sleep(0.1)\nprint('lived')"
)
SNIPPETS = {
    "write": ("bash", WRITE, 10.0),
    "again": ("bash", WRITE, 10.0),
    "hidden": ("bash", "ls /root /home/* /run; cat /etc/shadow; ls /proc | grep -c '^[0-9]'", 10.0),
    "forks": ("python", FORKS, 10.0),
    "child": ("python", CHILD_EATS, 10.0),
    "shared": ("python", SHARED, 10.0),
    "loop": ("python", "while True: pass", 0.5),
    "after": ("bash", "sleep 1000 & echo alive", 10.0),
}


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that any user reaches, with this package, its dependencies and repositories."""
    folder = Path(tempfile.mkdtemp(prefix="mlbench-plain-"))
    (source,) = mlbench_exec.__path__
    ignore = shutil.ignore_patterns("__pycache__", *NOT_NEEDED)
    shutil.copytree(source, folder / "lib" / "mlbench_exec", ignore=ignore)
    shutil.copytree(Path(msgspec.__path__[0]).parent, folder / "site", ignore=ignore)
    for owner in ("root", "own"):
        (folder / owner / "package").mkdir(parents=True)
        (folder / owner / "README.md").write_text("a repository\n")
        (folder / owner / "package" / "data.txt").write_text("data\n")
    for path in (folder / "own", *(folder / "own").rglob("*")):
        os.chown(path, UID, UID)
    subprocess.run(["chmod", "-R", "u=rwX,go=rX", folder], check=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="for who isn't root, the other tests cover this")
@pytest.mark.parametrize("owner", ["own", "root"])
def test_an_ordinary_user_gets_a_sandbox(place: Path, owner: str) -> None:
    """Without root: own and foreign files writable, limits on memory, processes and time hold."""
    version = [PYTHON, "-c", "import sys; print(*sys.version_info[:2])"]
    if not os.path.exists(PYTHON) or subprocess.check_output(version).decode().split() != [
        str(part) for part in sys.version_info[:2]
    ]:
        pytest.skip(f"{PYTHON} can't load this interpreter's extension modules")
    done = subprocess.run(
        [PYTHON, "-W", "error", "-c", PROGRAM, place / owner],
        input=json.dumps(list(SNIPPETS.values())),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        user=UID,
        group=UID,
        extra_groups=[],
        cwd="/",
        env={"PYTHONPATH": f"{place}/lib:{place}/site", "PATH": "/usr/bin:/bin", "HOME": "/tmp"},
    )
    assert done.returncode == 0, done.stderr
    level, uid, observations = json.loads(done.stdout)
    assert uid == UID
    assert "memory watched" in level
    seen = dict(zip(SNIPPETS, observations, strict=True))
    for name in ("write", "again"):  # the second finds what the first found
        assert seen[name]["exit_code"] == 0, seen[name]
        assert seen[name]["stdout"] == "a repository\nmore\n1000\n"
    assert "root:" not in seen["hidden"]["stdout"]
    assert int(seen["hidden"]["stdout"].split()[-1]) <= 6
    assert 20 <= int(seen["forks"]["stdout"]) <= 64, seen["forks"]
    child = seen["child"]  # refused more memory, or ended with its parent by the watch
    assert child["limit"] == "memory" or child["stdout"] == "1\n", child
    assert seen["shared"]["limit"] == "memory", seen["shared"]
    assert seen["loop"]["limit"] == "time"
    assert (seen["after"]["exit_code"], seen["after"]["stdout"]) == (0, "alive\n")
    assert (place / owner / "README.md").read_text() == "a repository\n"
    left = [path for path in Path("/tmp").glob("mlbench-exec-*") if path.stat().st_uid == UID]
    assert left == []
    until = time.monotonic() + 5
    while left := [path for path in Path("/proc").glob("[0-9]*") if owner_of(path) == UID]:
        assert time.monotonic() < until, [(path / "cmdline").read_text() for path in left]
        time.sleep(0.02)


def owner_of(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except OSError:
        return None
