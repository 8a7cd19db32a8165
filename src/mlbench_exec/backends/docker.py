"""The docker backend: warm, locked-down containers, each with an agent inside."""

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Self

import aiodocker
import aiohttp
import anyio
import anyio.lowlevel
import anyio.to_thread
from aiodocker.containers import DockerContainer

from mlbench_exec import seccomp, wire
from mlbench_exec.backends import apparmor, daemons
from mlbench_exec.backends.agent_sandbox import (
    AgentSandbox,
    NestingRefused,
    first_of_a_run,
    room_for_warm,
)
from mlbench_exec.backends.cgroups import HEADROOM_BYTES, HEADROOM_PIDS
from mlbench_exec.backends.containers import (
    CALL_TIMEOUT_S,
    CLOSE_WITHIN_S,
    ContainerStream,
    delete,
    no_daemon,
    translated,
)
from mlbench_exec.backends.gpus import VARIABLES, GpuSlots
from mlbench_exec.backends.identity import engine_identity, is_dead
from mlbench_exec.backends.interpreters import is_below
from mlbench_exec.environments import Environment, Mount
from mlbench_exec.errors import (
    BackendUnavailable,
    EnvironmentUnusable,
    SandboxFailed,
)
from mlbench_exec.sandbox import Limits, Sandbox
from mlbench_exec.settings import Network

ENGINE_LABEL = "mlbench-exec.engine"
RUN_LABEL = "mlbench-exec.run"
STAGING = "/.mlbench/mounts"
STARTS_AT_ONCE = 4  # a daemon gets slower, not faster, with more
LAST_TRY_WITHIN_S = 5.0
NO_PYTHON = "mlbench-exec: no Python 3.7 or later is in this image"
# Any interpreter will do for the agent: it needs nothing but the standard library.
# "$2" is one that is known to do, where one is.
LAUNCH = f"""
[ -n "$2" ] && [ -x "$2" ] && exec "$2" -I -S -u -c "$0" "$2"
for python in "$1" python3 python /usr/bin/python3 /usr/local/bin/python3 /opt/conda/bin/python \\
    /opt/*conda*/bin/python /root/*conda*/bin/python /root/*forge*/bin/python; do
    python=$(command -v "$python" 2>/dev/null) || continue
    "$python" -I -S -c 'import sys, ctypes; sys.exit(sys.version_info < (3, 7))' 2>/dev/null &&
        exec "$python" -I -S -u -c "$0" "$python"
done
echo "{NO_PYTHON}" >&2
exit 127
"""
# What Docker makes read-only by itself, unless it is given a list.
READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
NESTED_CAPABILITIES = ("SETFCAP",)  # without it a uid_map that maps 0 is refused
FRESH_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER")  # given up before a snippet runs


class DockerBackend:
    """Starts agents in containers, each reached over its attached stdin and stdout.

    Nested level: one container serves snippet after snippet. Where the host refuses namespaces
    in a container (AppArmor's docker-default, say), fresh level: one container a snippet.
    """

    name = "docker"

    def __init__(
        self,
        *,
        environments: Iterable[Environment],
        limits: Limits,
        network: Network = "none",
        mounts: tuple[Mount, ...] = (),
        gpus: GpuSlots | None = None,
        runtime: str | None = None,
        run: str = "",
        fresh: bool = False,
        preload_bytes: int = 0,
    ) -> None:
        self._environments = tuple(environments)
        self._limits = limits
        self._preload_bytes = preload_bytes
        self._network = network
        self._mounts = mounts
        self._gpus = gpus
        self._runtime = runtime
        self._run = run
        self._is_nested = not fresh
        self._why_fresh = "as asked" if fresh else ""
        self._docker: aiodocker.Docker | None = None
        self._images: dict[str, Mapping[str, Any] | str] = {}  # inspected, or why it can't be used
        self._users: dict[str, str] = {}
        self._pythons: dict[str, str] = {}  # by key: what agents were started with
        self._cpus = 1
        self._starts = anyio.CapacityLimiter(STARTS_AT_ONCE)
        self._profile = ""
        self._is_under_apparmor = False
        self._apparmor: str | None = None  # our profile's name, where it is loaded
        self._version = ""
        self._label = ""
        self._left: list[DockerContainer] = []  # could not be removed

    @property
    def level(self) -> str:
        if self._is_nested and not self.has_images(self._environments):
            return f"Docker {self._version}, not tried: none of the environments' images is here"
        if self._is_nested:
            return f"Docker {self._version}, nested namespaces in warm containers"
        return f"Docker {self._version}, one fresh container a snippet ({self._why_fresh})"

    @property
    def cores(self) -> int:
        return self._cpus

    @property
    def digests(self) -> dict[str, str]:
        """Image names and the identities they had when this run began."""
        return {
            name: str((image.get("RepoDigests") or [image["Id"]])[0])
            for name, image in self._images.items()
            if not isinstance(image, str)
        }

    def has_images(self, environments: Iterable[Environment]) -> bool:
        """Whether any of these environments could run here."""
        return any(
            environment.image is not None
            and not isinstance(self._images.get(environment.image, ""), str)
            for environment in environments
        )

    async def __aenter__(self) -> Self:
        self._profile = await anyio.to_thread.run_sync(_profile_text)
        self._label = await anyio.to_thread.run_sync(_own_label)
        try:
            self._docker = aiodocker.Docker()
        except (ValueError, OSError, aiodocker.DockerError) as error:
            raise BackendUnavailable(no_daemon(error)) from error
        try:
            with anyio.fail_after(CALL_TIMEOUT_S):
                version = await self._docker.version()
                info = await self._docker.system.info()
            reason = daemons.refusal(version, info, self._limits)
            if reason is not None:
                raise BackendUnavailable(reason)
            self._version, self._cpus = str(version["Version"]), int(info["NCPU"])
            self._check_runtime(info)
            if self._is_nested and apparmor.is_in_force(info):
                self._apparmor, self._is_under_apparmor = apparmor.PROFILE, True
            with translated("looking for leftovers and images"):
                await self._remove_leftovers()
                for image in {e.image for e in self._environments if e.image}:
                    self._images[image] = await self._inspect(image, str(version["Arch"]))
            if self._is_nested:
                await self._find_level()
        except (aiodocker.DockerError, aiohttp.ClientError, OSError, TimeoutError) as error:
            await self.__aexit__()
            raise BackendUnavailable(no_daemon(error)) from error
        except SandboxFailed as error:
            await self.__aexit__()
            raise BackendUnavailable(f"Docker can't start a sandbox: {error}") from error
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._docker is not None:
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(LAST_TRY_WITHIN_S):
                    await self._remove_left()
                await self._docker.close()

    def key(self, environment: Environment) -> str:
        """Containers differ by image, mounts and room for what is preloaded."""
        mounts = sorted((m.source, m.target, m.mode) for m in environment.mounts)
        workdir = "" if self._is_nested else environment.workdir
        warm_bytes = self._warm_bytes(environment, nested=self._is_nested)
        return json.dumps([environment.image, mounts, workdir, warm_bytes])

    def check(self, environment: Environment) -> None:
        if environment.image is None:
            raise EnvironmentUnusable(
                f"environment {environment.name} names no image; give `image` in an environments "
                "file, or use --backend local"
            )
        image = self._images.get(environment.image, "it was not looked up")
        if isinstance(image, str):
            raise EnvironmentUnusable(f"environment {environment.name}: {image}")

    async def open(self, environment: Environment, slot: int) -> Sandbox:
        self.check(environment)
        if self._gpus is None:
            return await self._open(environment, slot)
        await self._gpus.wait_ready(slot)
        return self._gpus.watched(await self._open(environment, slot), slot)

    async def _open(self, environment: Environment, slot: int) -> Sandbox:
        if self._is_nested:
            try:
                return await self._open_nested(environment, slot)
            except NestingRefused as error:
                raise SandboxFailed(f"a container refused nested namespaces: {error}") from error
        try:
            return (await self._start(environment, slot, nested=False, user="0:0"))[0]
        except NestingRefused as error:
            raise SandboxFailed(f"a container of {environment.image} refused: {error}") from error

    async def _open_nested(self, environment: Environment, slot: int) -> Sandbox:
        """The agent needs the user id of those whose files a snippet may write."""
        key = self.key(environment)
        user = self._users.get(key, "0:0")
        sandbox, ready = await self._start(environment, slot, nested=True, user=user)
        if key not in self._users:
            uid, gid = ready.owner or (0, 0)
            self._users[key] = f"{uid}:{gid}"
            if self._users[key] != user:
                await sandbox.aclose()
                sandbox, _ = await self._start(
                    environment, slot, nested=True, user=self._users[key]
                )
        return sandbox

    async def _find_level(self) -> None:
        """Try the nested level on the first image that is here."""
        for environment in self._environments:
            if not self.has_images([environment]):
                continue
            try:
                sandbox = await first_of_a_run(partial(self._try_nested, environment))
            except EnvironmentUnusable:
                continue
            except NestingRefused as error:
                hint = f"; with AppArmor, load our profile: {apparmor.LOAD}"
                hint = "" if self._apparmor or not self._is_under_apparmor else hint
                self._apparmor = None
                self._is_nested, self._why_fresh = False, f"nesting refused: {error}{hint}"
            else:
                await sandbox.aclose()
            return

    async def _try_nested(self, environment: Environment) -> Sandbox:
        """Under our AppArmor profile where there is AppArmor; else, or if it isn't loaded, not."""
        try:
            return await self._open_nested(environment, 0)
        except SandboxFailed as error:
            if self._apparmor is None or not apparmor.is_missing(str(error)):
                raise
        self._apparmor = None
        return await self._open_nested(environment, 0)

    def _check_runtime(self, info: Mapping[str, Any]) -> None:
        """Raises `BackendUnavailable` for a runtime that this daemon doesn't know."""
        known = info.get("Runtimes") or {}
        if self._runtime is not None and known and self._runtime not in known:
            raise BackendUnavailable(
                f"--runtime {self._runtime}: this Docker daemon has no such runtime, only "
                f"{', '.join(sorted(known))}; add it to the daemon's configuration "
                "(daemon.json, `runtimes`), or name one of these"
            )

    async def _inspect(self, image: str, architecture: str) -> Mapping[str, Any] | str:
        """The image's record, or the reason why it can't be used with the next step."""
        assert self._docker is not None
        try:
            found: dict[str, Any] = await self._docker.images.inspect(image)
        except aiodocker.DockerError as error:
            if error.status != 404:
                raise
            return f"the image {image} is not on this machine: docker pull {image}"
        if found["Architecture"] != architecture:
            return (
                f"the image {image} is for {found['Architecture']}, this daemon runs "
                f"{architecture}: docker pull --platform linux/{architecture} {image}"
            )
        return found

    async def _start(
        self, environment: Environment, slot: int, *, nested: bool, user: str
    ) -> tuple[AgentSandbox, wire.Ready]:
        assert self._docker is not None
        config = self._config(environment, slot, nested=nested, user=user)
        async with self._starts:
            with translated(f"starting a container of {environment.image}"):
                container = await self._create(config)
            stream = ContainerStream(container, self._left)
            sandbox = AgentSandbox(stream, reusable=nested)
            try:
                with translated(f"starting a container of {environment.image}"):
                    await stream.open()
                ready = await sandbox.start(
                    lambda hello: self._setup(environment, hello, nested=nested)
                )
                self._pythons[self.key(environment)] = sandbox.started_as
            except BaseException as error:
                await sandbox.aclose()
                if isinstance(error, SandboxFailed) and (missing := _missing(str(error))):
                    raise EnvironmentUnusable(
                        f"environment {environment.name}: {missing} in {environment.image}"
                    ) from error
                raise
        return sandbox, ready

    async def _create(self, config: dict[str, Any]) -> DockerContainer:
        """Create a container; a cancelled creation is finished and undone."""
        assert self._docker is not None
        with anyio.CancelScope(shield=True), anyio.fail_after(CALL_TIMEOUT_S):
            container = await self._docker.containers.create(config)
        try:
            await anyio.lowlevel.checkpoint()
        except BaseException:
            await ContainerStream(container, self._left).aclose()
            raise
        return container

    def _all_mounts(self, environment: Environment) -> tuple[Mount, ...]:
        return (*environment.mounts, *self._mounts)

    def _stages(self, environment: Environment, mount: Mount, *, nested: bool) -> bool:
        """Whether the agent places a mount itself: below folders that it lays layers over."""
        if nested:
            return True
        return mount.mode == "ro" and is_below(environment.workdir, mount.target)

    def _config(
        self, environment: Environment, slot: int, *, nested: bool, user: str
    ) -> dict[str, Any]:
        limits = self._limits
        mounts = []
        for number, mount in enumerate(self._all_mounts(environment)):
            staged = self._stages(environment, mount, nested=nested)
            mounts.append(
                {
                    "Type": "bind",
                    "Source": mount.source,
                    "Target": f"{STAGING}/{number}" if staged else mount.target,
                    "ReadOnly": mount.mode == "ro",
                }
            )
        host: dict[str, Any] = {
            "AutoRemove": True,
            "CapDrop": ["ALL"],
            "CapAdd": list(NESTED_CAPABILITIES if nested else FRESH_CAPABILITIES),
            "SecurityOpt": ["no-new-privileges", f"seccomp={self._profile}"],
            "NetworkMode": self._network,
            "IpcMode": "private",
            "LogConfig": {"Type": "none"},
            "Mounts": mounts,
            "ReadonlyRootfs": nested,
            # No port stays taken after a snippet that listened on it.
            "Sysctls": {"net.ipv4.tcp_max_tw_buckets": "0"},
        }
        if nested:  # or the kernel refuses the snippets' own /proc
            host |= {"MaskedPaths": [], "ReadonlyPaths": []}
        else:
            # The agent is pid 1 there, with the snippet's own user id.
            host["ReadonlyPaths"] = [*READ_ONLY_PATHS, "/proc/1"]
            inodes = max(16384, limits.disk_bytes // 4096)
            host["Tmpfs"] = {"/tmp": f"exec,mode=1777,size={limits.disk_bytes},nr_inodes={inodes}"}
            host["ShmSize"] = limits.memory_bytes // 2 if limits.memory_bytes else 8 << 30
        if limits.pids is not None:
            host["PidsLimit"] = limits.pids + HEADROOM_PIDS
        if limits.memory_bytes is not None:
            host["Memory"] = limits.memory_bytes + limits.disk_bytes + HEADROOM_BYTES
            host["Memory"] += self._warm_bytes(environment, nested=nested)
            host["MemorySwap"] = host["Memory"]
        if limits.cpus is not None:
            host["CpusetCpus"] = self._cpuset(slot)
            if limits.cpus != int(limits.cpus):
                host["NanoCpus"] = int(min(limits.cpus, self._cpus) * 1e9)
        if self._gpus is not None:
            host["DeviceRequests"] = [self._gpus.device(slot).request]
        if nested and self._apparmor:
            host["SecurityOpt"].append(f"apparmor={self._apparmor}")
        if self._runtime:
            host["Runtime"] = self._runtime
        return {
            "Image": environment.image,
            "Entrypoint": [
                *("/bin/sh", "-c", LAUNCH, wire.BOOT, environment.python or "python3"),
                self._pythons.get(self.key(environment), ""),
            ],
            "Cmd": [],
            "User": user,
            "WorkingDir": "/",
            "Hostname": "mlbench",
            "OpenStdin": True,
            "StdinOnce": True,
            "AttachStdin": True,
            "AttachStdout": True,
            "AttachStderr": True,
            "Tty": False,
            "Healthcheck": {"Test": ["NONE"]},
            "Env": [f"{name}={value}" for name, value in VARIABLES.items()] if self._gpus else [],
            "Labels": {ENGINE_LABEL: self._label, RUN_LABEL: self._run},
            "HostConfig": host,
        }

    def _cpuset(self, slot: int) -> str:
        """The slot's own share of the daemon's cores, side by side with its neighbours'."""
        count = min(self._cpus, math.ceil(self._limits.cpus or self._cpus))
        return ",".join(
            str(core) for core in sorted((slot * count + i) % self._cpus for i in range(count))
        )

    def _warm_bytes(self, environment: Environment, *, nested: bool) -> int:
        return room_for_warm(environment, self._preload_bytes) if nested else 0

    def _setup(self, environment: Environment, hello: wire.Hello, *, nested: bool) -> wire.Setup:
        staged = [
            (f"{STAGING}/{number}", mount)
            for number, mount in enumerate(self._all_mounts(environment))
            if self._stages(environment, mount, nested=nested)
        ]
        workdirs = dict.fromkeys(
            [environment.workdir]
            + [e.workdir for e in self._environments if self.key(e) == self.key(environment)]
        )
        return wire.Setup(
            nested=nested,
            mode="container",
            stash=tuple(
                wire.StashEntry(source=source, target=mount.target, rw=mount.mode == "rw")
                for source, mount in staged
                if nested
            ),
            copies=() if nested else tuple((source, mount.target) for source, mount in staged),
            workdirs=tuple(workdirs) if nested else (environment.workdir,),
            gpus=self._gpus is not None,
            warm_bytes=self._warm_bytes(environment, nested=nested),
            filter=seccomp.snippet_filter(hello.machine),
        )

    async def _remove_left(self) -> None:
        """Try once more to remove what couldn't be while the daemon was away."""
        while self._left:
            with contextlib.suppress(aiodocker.DockerError, aiohttp.ClientError, OSError):
                await delete(self._left.pop())

    async def _remove_leftovers(self) -> None:
        """Remove containers whose engine on this host is dead; others' are left alone."""
        assert self._docker is not None
        filters = json.dumps({"label": [ENGINE_LABEL]})
        for container in await self._docker.containers.list(all=True, filters=filters):
            label = container["Labels"].get(ENGINE_LABEL, "")
            if await anyio.to_thread.run_sync(is_dead, label):
                with anyio.move_on_after(CLOSE_WITHIN_S):
                    await delete(container)


def _missing(message: str) -> str | None:
    """What an image lacks that a sandbox can't do without, with the next step."""
    if NO_PYTHON in message:
        return "no Python 3.7 or later was found (an environments file names one with `python`)"
    if '"/bin/sh"' in message and ("no such file" in message or "not found" in message):
        return "there is no /bin/sh to start a sandbox with (build it in, and give that as `image`)"
    return None


def _profile_text() -> str:
    return json.dumps(seccomp.container_profile())


def _own_label() -> str:
    return json.dumps(engine_identity())
