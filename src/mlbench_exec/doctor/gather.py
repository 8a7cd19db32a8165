"""Gather: look at this machine, and run one program through each backend that starts."""

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio.to_thread
import msgspec

from mlbench_exec.backends import cgroups, gpus, identity
from mlbench_exec.backends.docker import DockerBackend
from mlbench_exec.backends.image_store import Daemon
from mlbench_exec.backends.local import LocalBackend
from mlbench_exec.doctor import facts as found
from mlbench_exec.doctor.facts import Facts
from mlbench_exec.environments import Environment, load_environments
from mlbench_exec.errors import BackendUnavailable, MLBenchExecError
from mlbench_exec.sandbox import Backend, Job, Limits
from mlbench_exec.settings import Settings, host_memory_bytes
from mlbench_exec.weights import Store, load_manifest

SYSCTLS = (
    "user.max_user_namespaces",
    "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns",
)
TRY_LIMITS = Limits(memory_bytes=512 << 20, disk_bytes=64 << 20, cpus=1.0)
CODE = b"test -r /proc/self/status && echo it works >file && cat file"


async def gather(settings: Settings) -> Facts:
    """Everything `findings` looks at. Raises `InputError` for a bad environments file."""
    environments = await anyio.to_thread.run_sync(load_environments, settings.environments_file)
    daemon, images = await _ask_docker(environments)
    facts = await anyio.to_thread.run_sync(_look, settings)
    here = {image.name for image in images if image.size is not None}
    usable = [one for one in environments if one.image in here]
    return msgspec.structs.replace(
        facts,
        daemon=daemon,
        images=images,
        tries=(await _try_local(), await _try_docker(daemon, usable, settings)),
    )


async def _ask_docker(
    environments: Iterable[Environment],
) -> tuple[found.Daemon, tuple[found.Image, ...]]:
    where = os.environ.get("DOCKER_HOST") or "the default socket"
    users: dict[str, list[str]] = {}
    for environment in environments:
        if environment.image:
            users.setdefault(environment.image, []).append(environment.name)
    try:
        async with Daemon() as daemon:
            images = []
            for name, names in users.items():
                image = await daemon.image(name)
                size = image.size if image else None
                images.append(found.Image(name=name, environments=tuple(names), size=size))
            return found.Daemon(where=where, version=daemon.version, info=daemon.info), tuple(
                images
            )
    except BackendUnavailable as error:
        return found.Daemon(where=where, error=str(error).split(";")[0]), ()


async def _try_local() -> found.Try:
    with _small_folder() as folder:
        environment = Environment(
            name="doctor", github_ids=(), repo="doctor", workdir=str(folder), python=sys.executable
        )
        return await _try(LocalBackend(limits=TRY_LIMITS), environment, "local")


async def _try_docker(
    daemon: found.Daemon, usable: list[Environment], settings: Settings
) -> found.Try:
    if daemon.error is not None:
        return found.Try(backend="docker", problem="no daemon answers", was_tried=False)
    backend = DockerBackend(
        environments=usable, limits=TRY_LIMITS, runtime=settings.runtime, run="doctor"
    )
    if not usable:
        return found.Try(
            backend="docker",
            problem="not tried: none of the environments' images is here",
            was_tried=False,
        )
    return await _try(backend, usable[0], "docker")


async def _try(backend: Backend, environment: Environment, name: str) -> found.Try:
    """Start it, open a sandbox, run one small program; whatever fails is the answer."""
    started = time.monotonic()
    job = Job(
        environment=environment,
        path="./",
        language="bash",
        code=CODE,
        time_limit_s=20.0,
        limits=TRY_LIMITS,
    )
    try:
        async with backend:
            sandbox = await backend.open(environment, 0)
            try:
                seen = await sandbox.run(job)
            finally:
                await sandbox.aclose()
            level = backend.level
    except MLBenchExecError as error:
        return found.Try(backend=name, problem=str(error))
    seconds = time.monotonic() - started
    if seen.exit_code != 0 or seen.stdout != "it works\n":
        problem = f"a program failed there: {seen.stderr.strip()[:500] or seen}"
        return found.Try(backend=name, level=level, problem=problem)
    return found.Try(backend=name, level=level, seconds=seconds)


@contextmanager
def _small_folder() -> Iterator[Path]:
    """A working folder that other users can reach, as a repository's would be."""
    folder = Path(tempfile.mkdtemp(prefix=identity.local_name() + "-doctor-"))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _look(settings: Settings) -> Facts:
    """What needs no daemon. Blocks."""
    folder = settings.weights or Path()
    store, manifest = Store(folder), load_manifest(folder)
    devices, gpu_problem = gpus.look()
    return Facts(
        host=_host(),
        weights_folder=str(folder),
        weights_here=len(store.present(manifest)),
        weights_known=len(manifest),
        gpus=tuple(str(device) for device in devices),
        gpu_problem=gpu_problem,
        disks=tuple(_disks(folder)),
        sandboxes=settings.resolved_concurrency(),
        sandbox_memory_bytes=settings.limits.memory_bytes or 0,
    )


def _host() -> found.Host:
    made = cgroups.find(identity.local_name()) if sys.platform == "linux" else None
    if made is not None:
        made.close()
    return found.Host(
        system=platform.system(),
        kernel=platform.release(),
        uid=os.geteuid(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=host_memory_bytes(),
        sysctls={name: value for name in SYSCTLS if (value := _sysctl(name)) is not None},
        apparmor=_read("/sys/module/apparmor/parameters/enabled") == "Y",
        selinux={"1": "enforcing", "0": "permissive"}.get(_read("/sys/fs/selinux/enforce") or ""),
        cgroup_version=2 if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else 1,
        own_cgroups=made is not None,
    )


def _sysctl(name: str) -> int | None:
    text = _read("/proc/sys/" + name.replace(".", "/"))
    return int(text) if text is not None and text.lstrip("-").isdigit() else None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _disks(weights: Path) -> Iterator[found.Disk]:
    places = [("/var/lib/docker", "Docker's images"), (str(weights), "weights"), ("runs", "runs")]
    for path, use in places:
        nearest = Path(path).absolute()
        while not nearest.exists():
            nearest = nearest.parent
        yield found.Disk(path=path, use=use, free=shutil.disk_usage(nearest).free)
