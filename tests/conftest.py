"""What all tests share: no blocking calls in event loops, nothing left behind, Docker or not."""

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from mlbench_exec import wire
from mlbench_exec.backends.identity import local_name

pytest.register_assert_rewrite("mlbench_exec.testing.conformance")

IMAGES = Path(__file__).parent.parent / "images"
CONFORMANCE_IMAGE = "mlbench-exec-test/conformance:latest"
ENGINE_LABEL = "mlbench-exec.engine"
LEAVE_WITHIN_S = 10.0
# A Python that any user's sandbox can see, where there is one.
PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable


@functools.cache
def why_no_docker() -> str | None:
    """The reason why tests marked `docker` can't run here, or None."""
    if shutil.which("docker") is None:
        return "there is no docker command"
    try:
        answer = subprocess.run(
            ["docker", "version", "--format", "{{.Server.Version}}"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "the Docker daemon doesn't answer within 30 s"
    return None if answer.returncode == 0 else f"no Docker daemon: {answer.stderr.strip()}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Without a daemon, skip what needs one; with MLBENCH_REQUIRE_DOCKER=1, fail it."""
    if item.get_closest_marker("docker") is None or (reason := why_no_docker()) is None:
        return
    if os.environ.get("MLBENCH_REQUIRE_DOCKER") == "1":
        pytest.fail(f"MLBENCH_REQUIRE_DOCKER=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """A call of the engine that blocks an event loop raises `BlockingError`."""
    with blockbuster_ctx(scanned_modules=["mlbench_exec"]) as active:
        # One look at the socket's path when a client is made, not ours to change.
        active.functions["os.stat"].can_block_in("aiodocker/docker.py", "__init__")
        yield active


@pytest.fixture(scope="session")
def conformance_image() -> str:
    """The image of the conformance suite, built on first use."""
    found = subprocess.run(
        ["docker", "image", "inspect", CONFORMANCE_IMAGE], capture_output=True, check=False
    )
    if found.returncode != 0:
        subprocess.run([IMAGES / "conformance" / "build.sh"], check=True, timeout=1200)
    return CONFORMANCE_IMAGE


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """The whole test run leaves no container, process, mount, folder or cgroup of ours."""
    folder = Path(tempfile.mkdtemp(prefix="mlbench-tests-"))
    folder.chmod(0o711)
    before, tempfile.tempdir = _leftovers(folder), str(folder)
    try:
        yield
        until = time.monotonic() + LEAVE_WITHIN_S
        while (left := _leftovers(folder) - before) and time.monotonic() < until:
            time.sleep(0.1)
        assert not left, f"left behind: {sorted(left)}"
    finally:
        tempfile.tempdir = None
        shutil.rmtree(folder, ignore_errors=True)


def _leftovers(folder: Path) -> set[str]:
    """What this process's engines have on this machine now; other runs' are not counted."""
    own = os.getpid()
    found = {f"container {name}" for name in own_containers()}
    found |= {f"process {pid}" for pid in agents_of(own)}
    found |= {f"folder {path}" for path in folder.glob("mlbench-exec-*")}
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found |= {f"mount {line}" for line in mounts if "mlbench" in line}
    for path, _, _ in os.walk("/sys/fs/cgroup"):  # unlike rglob, bears what goes in between
        if os.path.basename(path).startswith(local_name()):
            found.add(f"cgroup {path}")
    return found


def own_containers() -> set[str]:
    """Ids of the containers that engines of this process started."""
    if why_no_docker() is not None:
        return set()
    line = '{{.ID}} {{.Label "' + ENGINE_LABEL + '"}}'
    listed = subprocess.run(
        ["docker", "ps", "-a", "--no-trunc", "--filter", f"label={ENGINE_LABEL}", "--format", line],
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = (row.split(" ", 1) for row in listed.stdout.splitlines())
    return {name for name, label in pairs if json.loads(label)["pid"] == os.getpid()}


def agents_of(parent: int) -> set[int]:
    """Child processes of `parent` that are agents, by their command line."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ppid = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if ppid == parent and b"mlbench_exec.agent" in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
        except OSError:  # it has just ended
            continue
    return found


def alter_agent(patch: pytest.MonkeyPatch, module: str, old: str, new: str) -> None:
    """Send an agent that differs in one place."""
    sources = wire.agent_sources()
    assert sources[module].count(old) == 1, f"agent/{module} has changed: {old!r}"
    sources[module] = sources[module].replace(old, new)
    bundle = wire.bundle_of(sources)
    patch.setattr(wire, "agent_sources", lambda: sources)  # what is altered next starts from it
    patch.setattr(wire, "agent_bundle", lambda: bundle)


@pytest.fixture
def workdir(tmp_path: Path) -> str:
    """A folder that a sandbox's user may read."""
    tmp_path.chmod(0o755)
    return str(tmp_path)
