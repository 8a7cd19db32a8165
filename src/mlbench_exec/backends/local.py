"""The local backend: the agent on this host, in Linux namespaces; no daemon, no root needed."""

import math
import os
import pwd
import shutil
import sys
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Self

import anyio
from anyio.abc import Process

from mlbench_exec import seccomp, wire
from mlbench_exec.backends import cgroups, identity, interpreters
from mlbench_exec.backends.agent_sandbox import (
    AgentSandbox,
    NestingRefused,
    first_of_a_run,
    room_for_warm,
    starting,
)
from mlbench_exec.backends.gpus import VARIABLES, GpuSlots
from mlbench_exec.environments import Environment, Mount
from mlbench_exec.errors import BackendUnavailable, EnvironmentUnusable, SandboxFailed
from mlbench_exec.sandbox import Limits, Sandbox
from mlbench_exec.settings import Network

INNER_UID = 1000
FIRST_FREE_UID = 0x70000000  # far above what distributions and directories hand out
SLOTS_PER_ENGINE = 4096
CLOSE_WITHIN_S = 5.0
HELP = (
    "Snippets need user namespaces (sysctl user.max_user_namespaces above 0, "
    "kernel.unprivileged_userns_clone = 1, kernel.apparmor_restrict_unprivileged_userns = 0) "
    "and Linux 6.6 or later. Or use --backend docker."
)


class LocalBackend:
    """Starts agents as child processes. As root, each becomes a user that owns nothing.

    `agent_python` runs the agent (CPython 3.7 or later), not the snippets.
    """

    name = "local"

    def __init__(
        self,
        *,
        limits: Limits,
        network: Network = "none",
        mounts: tuple[Mount, ...] = (),
        gpus: GpuSlots | None = None,
        preload_bytes: int = 0,
        agent_python: str = sys.executable,
    ) -> None:
        self._agent_python = agent_python
        self._limits = limits
        self._network = network
        self._mounts = mounts
        self._gpus = gpus
        self._preload_bytes = preload_bytes
        self._cgroups: cgroups.Cgroups | None = None
        self._folder: Path | None = None
        self._visible: dict[str, tuple[str, ...]] = {}
        self._count = 0

    @property
    def level(self) -> str:
        if self._cgroups is not None:
            return f"nested namespaces on this host, limits by cgroup v{self._cgroups.version}"
        return "nested namespaces on this host, processes by rlimit, memory watched"

    @property
    def cores(self) -> int:
        return len(os.sched_getaffinity(0))

    async def __aenter__(self) -> Self:
        if sys.platform != "linux":
            raise BackendUnavailable(f"the local backend needs Linux, this is {sys.platform}")
        try:
            await anyio.to_thread.run_sync(self._take_place)
            await self._probe()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._leave_place)

    def _take_place(self) -> None:
        """This engine's cgroup and folder."""
        _remove_leftovers()
        self._cgroups = cgroups.find(identity.local_name())
        self._folder = Path(tempfile.mkdtemp(prefix=identity.local_name() + "-"))
        self._folder.chmod(0o711)

    def _leave_place(self) -> None:
        if self._cgroups is not None:
            self._cgroups.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def key(self, environment: Environment) -> str:
        return environment.name

    def check(self, environment: Environment) -> None:
        if not os.path.isdir(environment.workdir):
            raise EnvironmentUnusable(
                f"environment {environment.name}: there is no folder {environment.workdir} on "
                "this machine; give its place in an environments file (--environments)"
            )
        python = environment.python
        if python and not (os.path.isfile(python) and os.access(python, os.X_OK)):
            raise EnvironmentUnusable(
                f"environment {environment.name}: there is no interpreter {environment.python}"
            )

    async def open(self, environment: Environment, slot: int) -> Sandbox:
        await anyio.to_thread.run_sync(self.check, environment)
        if self._gpus is None:
            return await self._open(environment, slot)
        await self._gpus.wait_ready(slot)
        return self._gpus.watched(await self._open(environment, slot), slot)

    async def _open(self, environment: Environment, slot: int) -> Sandbox:
        stash, variables = await self._surroundings(environment)
        try:
            room = room_for_warm(environment, self._preload_bytes)
            return await self._start(stash, variables, environment.workdir, slot, room)
        except NestingRefused as error:
            raise SandboxFailed(f"the kernel refused a sandbox: {error}") from error

    async def _probe(self) -> None:
        """Open one sandbox with nothing in it, to learn whether this machine allows it."""
        try:
            sandbox = await first_of_a_run(partial(self._start, (), {}, "/", 0, 0))
        except (NestingRefused, SandboxFailed) as error:
            raise BackendUnavailable(
                f"the local backend can't make a sandbox here: {error}. {HELP}"
            ) from error
        await sandbox.aclose()

    async def _surroundings(
        self, environment: Environment
    ) -> tuple[tuple[wire.StashEntry, ...], dict[str, str]]:
        """What the environment's snippets see of this host, and their first variables."""
        python = environment.python
        if python and python not in self._visible:
            self._visible[python] = await interpreters.folders_of(python)
        return await anyio.to_thread.run_sync(self._look_around, environment)

    def _look_around(
        self, environment: Environment
    ) -> tuple[tuple[wire.StashEntry, ...], dict[str, str]]:
        variables = dict(VARIABLES) if self._gpus else {}
        shown: list[str] = []
        if environment.conda_env:
            root = interpreters.find_conda(environment.conda_env)
            if root is None:
                raise EnvironmentUnusable(
                    f"environment {environment.name}: no conda on this machine has an environment "
                    f"{environment.conda_env}; create it, or give `python` in an environments file"
                )
            variables["CONDA_ROOT"] = root
            shown.append(root)
        if environment.python:
            shown += self._visible[environment.python]
        return self._stash(environment, shown), variables

    def _stash(self, environment: Environment, shown: list[str]) -> tuple[wire.StashEntry, ...]:
        """The workdir, the interpreter's folders and the mounts, outermost first."""
        workdir = environment.workdir
        entries = {workdir: wire.StashEntry(source=workdir, target=workdir)}
        for path in interpreters.outermost(shown):
            if not interpreters.is_below(path, workdir):
                entries[path] = wire.StashEntry(source=path, target=path)
        for mount in (*environment.mounts, *self._mounts):
            if not os.path.exists(mount.source):
                raise EnvironmentUnusable(
                    f"environment {environment.name}: the mount's source {mount.source} "
                    "is not on this machine"
                )
            target = os.path.normpath(mount.target)
            entries[target] = wire.StashEntry(
                source=mount.source, target=target, rw=mount.mode == "rw"
            )
        return tuple(sorted(entries.values(), key=lambda entry: len(entry.target)))

    async def _start(
        self,
        stash: tuple[wire.StashEntry, ...],
        variables: dict[str, str],
        workdir: str,
        slot: int,
        warm_bytes: int,
    ) -> AgentSandbox:
        """Raises `NestingRefused`, and `SandboxFailed` for whatever else keeps it from starting.

        Where this machine has run out of something, that is a `BackendLost`: it may come back.
        """
        with starting("an agent"):
            self._count += 1
            name = f"{slot}-{self._count}"
            uid = unused_uid(slot) if os.geteuid() == 0 else None
            spare, group = await anyio.to_thread.run_sync(
                self._make_place, name, uid, slot, warm_bytes
            )
            try:
                process = await self._start_agent()
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(_remove_place, group, spare)
                raise
            sandbox = AgentSandbox(_ChildStream(process, group, spare))
            try:
                if group is not None:
                    with suppress(ProcessLookupError):  # it has ended: what it said comes below
                        await anyio.to_thread.run_sync(group.add, process.pid)

                def make_setup(hello: wire.Hello) -> wire.Setup:
                    return wire.Setup(
                        nested=True,
                        mode="host",
                        stash=stash,
                        workdirs=(workdir,),
                        uid=uid,
                        inner_uid=INNER_UID,
                        own_network=self._network == "none",
                        gpus=self._gpus is not None,
                        gpu_nodes=self._gpus.device(slot).nodes if self._gpus else (),
                        spare=str(spare),
                        filter=seccomp.snippet_filter(hello.machine),
                        cgroups={k: str(v) for k, v in group.folders.items()} if group else {},
                        nproc=group is None and self._limits.pids is not None,
                        cpu_list=self._cpu_list(slot),
                        variables=variables,
                        warm_bytes=warm_bytes,
                    )

                await sandbox.start(make_setup)
            except BaseException:
                await sandbox.aclose()
                raise
            return sandbox

    async def _start_agent(self) -> Process:
        return await anyio.open_process(
            [self._agent_python, "-I", "-S", "-u", "-c", wire.BOOT],
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            cwd="/",
            env={"LANG": "C.UTF-8"},
            start_new_session=True,
        )

    def _make_place(
        self, name: str, uid: int | None, slot: int, warm_bytes: int
    ) -> tuple[Path, cgroups.Group | None]:
        """A new sandbox's folder for mended files, and its cgroup."""
        assert self._folder is not None
        spare = self._folder / name
        spare.mkdir()
        if uid is not None:
            os.chown(spare, uid, uid)
        if self._cgroups is None:
            return spare, None
        return spare, self._cgroups.make(
            name, self._limits, self._cpu_list(slot), preload_bytes=warm_bytes
        )

    def _cpu_list(self, slot: int) -> tuple[int, ...] | None:
        """The slot's own share of this process's cores, side by side with its neighbours'."""
        if self._limits.cpus is None:
            return None
        cores = sorted(os.sched_getaffinity(0))
        count = min(len(cores), math.ceil(self._limits.cpus))
        first = slot * count
        return tuple(cores[(first + i) % len(cores)] for i in range(count))


def _remove_leftovers() -> None:
    """Remove the temporary folders of engines that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{identity.PREFIX}*"):
        if identity.is_dead_name(folder.name) and folder.lstat().st_uid == os.geteuid():
            shutil.rmtree(folder, ignore_errors=True)


def unused_uid(slot: int) -> int:
    """A user id that no account has, different for each slot and engine."""
    uid = FIRST_FREE_UID + (os.getpid() % 65536) * SLOTS_PER_ENGINE + slot % SLOTS_PER_ENGINE
    while True:
        try:
            pwd.getpwuid(uid)
        except KeyError:
            return uid
        uid += SLOTS_PER_ENGINE


class _ChildStream:
    """An agent that is a child process, with its cgroup and its folder for mended files."""

    def __init__(self, process: Process, group: cgroups.Group | None, spare: Path) -> None:
        self._process = process
        self._group = group
        self._spare = spare

    async def send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        await self._process.stdin.send(data)

    async def receive(self) -> bytes:
        assert self._process.stdout is not None
        try:
            return await self._process.stdout.receive()
        except anyio.EndOfStream:
            return b""

    async def diagnosis(self) -> str:
        assert self._process.stderr is not None
        try:
            return (await self._process.stderr.receive(4096)).decode("utf-8", "replace")
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            return f"exit code {self._process.returncode}"

    async def aclose(self) -> None:
        """Kill the agent; the kernel takes its pid namespace, and all in it, down with it."""
        with anyio.move_on_after(CLOSE_WITHIN_S, shield=True):
            if self._process.returncode is None:
                self._process.kill()
            await self._process.aclose()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_remove_place, self._group, self._spare)


def _remove_place(group: cgroups.Group | None, spare: Path) -> None:
    if group is not None:
        group.remove()
    shutil.rmtree(spare, ignore_errors=True)
