"""Which backend judges a run: the one that was asked for, else Docker where it has an image."""

import os
from collections.abc import Sequence
from contextlib import AsyncExitStack

from mlbench_exec.backends.gpus import GpuSlots, slots_for
from mlbench_exec.backends.local import LocalBackend
from mlbench_exec.environments import Environment
from mlbench_exec.errors import BackendUnavailable, InputError
from mlbench_exec.sandbox import Backend
from mlbench_exec.settings import Settings


def find_gpus(settings: Settings) -> GpuSlots | None:
    """The devices that were asked for. May block.

    Those of this machine say nothing of those of a daemon elsewhere.
    """
    host = os.environ.get("DOCKER_HOST", "")
    is_local = settings.backend == "local" or host.startswith("unix:") or not host
    return slots_for(settings.gpus, is_local=is_local)


async def start_backend(
    stack: AsyncExitStack,
    settings: Settings,
    environments: Sequence[Environment],
    gpus: GpuSlots | None,
    run_name: str,
) -> tuple[Backend, str]:
    """Enter one on the stack; return it, and why it was chosen.

    Raises `BackendUnavailable` where none starts, and `InputError` for settings that the only
    possible one can't keep.
    """
    if settings.backend == "local":
        return await stack.enter_async_context(_local(settings, gpus)), "as asked"
    # With what speaks to a daemon, two fifths of importing this library.
    from mlbench_exec.backends.docker import DockerBackend

    docker = DockerBackend(
        environments=environments,
        limits=settings.limits,
        network=settings.network,
        mounts=settings.mounts,
        gpus=gpus,
        runtime=settings.runtime,
        run=run_name,
        fresh=settings.fresh,
        preload_bytes=settings.preload_bytes,
    )
    if settings.backend == "docker":
        return await stack.enter_async_context(docker), "as asked"
    try:
        await docker.__aenter__()
    except BackendUnavailable as error:
        why = str(error).split(";")[0]
    else:
        if docker.has_images(environments):
            stack.push_async_exit(docker.__aexit__)
            return docker, "a daemon answers and has images"
        await docker.__aexit__()
        why = "the Docker daemon has none of the environments' images"
    try:
        return await stack.enter_async_context(_local(settings, gpus)), why
    except BackendUnavailable as error:
        raise BackendUnavailable(f"no backend starts: docker: {why}; {error}") from error


def _local(settings: Settings, gpus: GpuSlots | None) -> LocalBackend:
    if settings.runtime is not None:
        raise InputError(
            f"--runtime {settings.runtime} is Docker's, and the backend is local: "
            "leave it out, or use --backend docker"
        )
    return LocalBackend(
        limits=settings.limits,
        network=settings.network,
        mounts=settings.mounts,
        gpus=gpus,
        preload_bytes=settings.preload_bytes,
    )
