"""Host: what a hostile program could reach for on this machine, and what it may have left there."""

import fcntl
import functools
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from conformance.test_backends import own_addresses
from conftest import own_containers
from hostile.house import IPC_KEY, NEXT_PORT
from hostile.table import CASES

SECRET = "HOSTILE_TEST_SECRET"
CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
CAP_CHOWN = bytes.fromhex("0100000201000000000000000000000000000000")  # permitted and effective
NEXT_NAME = "hostile-next"
SWITCHES = [f"/proc/sys/{name}" for name in (
    "kernel/core_pattern", "kernel/hostname", "kernel/modprobe", "kernel/sysrq", "kernel/shmmax",
    "vm/overcommit_memory", "vm/drop_caches", "fs/file-max", "net/ipv4/ip_forward",
    "user/max_user_namespaces",
)] + [
    "/proc/sysrq-trigger", "/proc/1/oom_score_adj", "/proc/1/mem", "/proc/kcore",
    "/sys/kernel/uevent_helper", "/sys/power/state",
    "/sys/devices/system/cpu/cpu1/online", "/dev/kmsg", "/dev/mem", "/dev/kvm", "/dev/fuse",
    "/dev/net/tun", "/dev/loop-control", "/dev/vda", "/dev/sda",
]  # fmt: skip
OWN = f"-{os.getpid()}-"  # what this process's engines make has names with it


class Surroundings:
    """Listeners, a victim, a canary, a secret and other things of this run on the host."""

    def __init__(self, folder: Path, victim: int, port: int, abstract: str) -> None:
        self.folder = folder
        self.victim = victim
        self.canary = folder / "canary"
        self.canary.write_text("the host's\n")
        self.needle = ["GOLD", *secrets.token_hex(8)]
        self._port = port
        self._abstract = abstract
        (folder / "run").mkdir()
        for name in ("verdicts.jsonl", "rows.jsonl"):
            (folder / "run" / name).write_text(f'{{"output": "{"-".join(self.needle)}"}}\n')

    def given(self, data: str | Path, *, confined: bool) -> dict[str, Any]:
        """What a program is let know: names of things that it then tries to reach."""
        return {
            "confined": confined,
            "victim": self.victim,
            "secret": SECRET,
            "canary": str(self.canary),
            "needle": self.needle,
            "addresses": own_addresses(),
            "port": self._port,
            "abstract": self._abstract,
            "mount": str(data),
            "programs_in": str(data),
            "ipc_key": IPC_KEY,
            "next_port": NEXT_PORT,
            "next_name": NEXT_NAME,
            "switches": SWITCHES,
            "elsewhere": None if confined else str(self.folder),
            "owners": [1, -1] if confined else [],
            "key": f"hostile-{uuid.uuid4().hex}",
        }

    def furnish(self, data: Path) -> None:
        """Leave programs in a shared folder that give their callers root and a capability."""
        for name in ("setuid", "capable"):
            shutil.copy(self._compile("44_gains.c"), data / name)
        os.chmod(data / "setuid", 0o4755)
        os.setxattr(data / "capable", "security.capability", CAP_CHOWN)

    def compiled(self, file: str) -> bytes:
        return self._compile(file).read_bytes()

    @functools.cache  # noqa: B019 - one object a module
    def _compile(self, file: str) -> Path:
        target = self.folder / file.removesuffix(".c")
        subprocess.run(["gcc", "-static", "-Os", "-s", "-o", target, CASES / file], check=True)
        return target

    def is_unharmed(self) -> bool:
        """Whether the victim lives and the canary is as it was."""
        status = Path(f"/proc/{self.victim}/stat").read_text().rpartition(")")[2].split()[0]
        return status == "S" and self.canary.read_text() == "the host's\n"

    @contextmanager
    def lock(self, *paths: Path) -> Iterator[None]:
        """Hold an exclusive flock."""
        with ExitStack() as stack:
            for path in paths:
                file = stack.enter_context(path.open())
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def core_handler(self) -> Iterator[Callable[[], list[Path]]]:
        """Let the kernel pipe cores to a program, as distributions do, for a moment."""
        taken = self.folder / f"cores-{uuid.uuid4().hex}"
        taken.mkdir()
        handler = self.folder / "take-core"
        handler.write_text(f"#!/bin/sh\nexec /bin/touch {taken}/$1\n")
        handler.chmod(0o755)
        # Put back by a process of its own, at the end of its input: also if this one is killed.
        put_back = subprocess.Popen(
            ["sh", "-c", 'cat >/dev/null; printf %s "$1" >"$2"', "sh",
             CORE_PATTERN.read_text().rstrip("\n"), CORE_PATTERN],
            stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            CORE_PATTERN.write_text(f"|{handler} %P")
            yield lambda: list(taken.iterdir())
        finally:
            put_back.communicate()


@contextmanager
def surroundings(folder: Path) -> Iterator[Surroundings]:
    folder.chmod(0o755)
    abstract = f"hostile-{uuid.uuid4().hex}"
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv(SECRET, "a token")
        listener = stack.enter_context(socket.create_server(("0.0.0.0", 0), backlog=100))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind("\0" + abstract)
        unix.listen(100)
        victim = subprocess.Popen(["sleep", "100000"], stdin=subprocess.PIPE)
        try:
            yield Surroundings(folder, victim.pid, listener.getsockname()[1], abstract)
        finally:
            victim.kill()
            victim.communicate()


MOST_INTERPRETERS = 5  # as many as a house has environments


def processes_of(folder: Path) -> set[str]:
    """Processes on this machine that a snippet of this house's started, by their environment.

    Agents' warm interpreters may stay, one for each environment: snippets are forked from them.
    """
    mark = f"HOSTILE_HOUSE={folder}".encode()
    found: set[str] = set()
    interpreters: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes():
                told = f"process {process.name} {(process / 'cmdline').read_bytes()[:80]!r}"
                (interpreters if _is_kept_by_agent(process, mark) else found).add(told)
        except OSError:  # it has just ended
            continue
    return found | (interpreters if len(interpreters) > MOST_INTERPRETERS else set())


def survivors(folder: Path) -> set[str]:
    """Those of `processes_of` still there a second later: one may be read while it goes."""
    found = processes_of(folder)
    if found:
        time.sleep(1)
        still = {name.split()[1] for name in processes_of(folder)}
        found = {name for name in found if name.split()[1] in still}
    return found


def _is_kept_by_agent(process: Path, mark: bytes) -> bool:
    """Whether it's a child of an agent and in the agent's pid namespace, as no snippet is."""
    stat = (process / "stat").read_text()
    parent = Path("/proc") / stat[stat.rindex(")") + 1 :].split()[1]
    is_agents = b"mlbench_exec.agent" in (parent / "cmdline").read_bytes()
    if not is_agents or mark in (parent / "environ").read_bytes():
        return False
    if b"/.mlbench-exec-place" not in (process / "cmdline").read_bytes():
        return False
    return os.readlink(process / "ns/pid") == os.readlink(parent / "ns/pid")


def state(folder: Path) -> set[str]:
    """What there is on this machine that a snippet of this house's could have left."""
    found = processes_of(folder) | {f"container {name}" for name in own_containers()}
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found |= {f"mount {line}" for line in mounts if str(folder) in line or OWN in line}
    for kind in ("shm", "sem", "msg"):
        for line in Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]:
            if int(line.split()[0]) == IPC_KEY:
                found.add(f"System V {kind} {line}")
    names = ("hostile", "own", "bomb")
    for place in ("/dev/shm", "/dev/mqueue", "/tmp", "/var/tmp", "/run", tempfile.gettempdir()):
        if os.path.isdir(place):
            found |= {
                f"file {place}/{name}"
                for name in os.listdir(place)
                if name.startswith(names) or (name.startswith("mlbench-exec-") and OWN in name)
            }
    unix = Path("/proc/net/unix").read_text()
    found |= {f"socket {NEXT_NAME}"} if NEXT_NAME in unix else set()
    keys = Path("/proc/keys")
    found |= {f"key {line}" for line in keys.read_text().splitlines() if "hostile-" in line}
    for group, _, _ in os.walk("/sys/fs/cgroup"):  # others' groups may go in between
        name = os.path.basename(group)
        if name.startswith("mlbench-exec-") and OWN in name:
            found.add(f"cgroup {group}")
    found |= {f"file {path}" for path in folder.rglob("*")}
    return found
