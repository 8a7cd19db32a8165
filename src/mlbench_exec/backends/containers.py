"""Containers: one's streams and its end, and what a daemon's errors mean."""

import contextlib
import os
from typing import Any

import aiodocker
import aiohttp
import anyio
from aiodocker.containers import DockerContainer
from aiodocker.stream import Stream

from mlbench_exec.errors import BackendLost, SandboxFailed

CALL_TIMEOUT_S = 120.0
DAEMON_ERRORS = (aiodocker.DockerError, aiohttp.ClientError, OSError, TimeoutError)
CLOSE_WITHIN_S = 20.0
END_WITHIN_S = 2.0  # for an agent to end with its input; then it is killed
NO_ANSWER = 900  # aiodocker's status for a daemon that can't be reached
TOOLKIT = (
    "GPUs in containers need NVIDIA's Container Toolkit: install it, then sudo nvidia-ctk runtime "
    "configure --runtime=docker && sudo systemctl restart docker; or leave out --gpus"
)


def _place() -> str:
    return os.environ.get("DOCKER_HOST") or "the default socket"


def _is_unreachable(error: BaseException) -> bool:
    if isinstance(error, aiodocker.DockerError):
        return bool(error.status == NO_ANSWER)
    return isinstance(error, aiohttp.ClientConnectionError | ConnectionError | FileNotFoundError)


def no_daemon(error: BaseException) -> str:
    return (
        f"no Docker daemon answers at {_place()} ({type(error).__name__}: {error}); start it, set "
        "DOCKER_HOST, or use --backend local"
    )


@contextlib.contextmanager
def translated(doing: str) -> Any:
    """Docker's errors become ours."""
    try:
        yield
    except (aiodocker.DockerError, aiohttp.ClientError, OSError, TimeoutError) as error:
        if _is_unreachable(error):
            raise BackendLost(
                f"no Docker daemon answers at {_place()} any more ({error}); start it again"
            ) from error
        hint = f"; {TOOLKIT}" if "could not select device driver" in str(error) else ""
        raise SandboxFailed(f"Docker failed while {doing}: {error}{hint}") from error


async def delete(container: DockerContainer) -> None:
    """Remove a container and wait until it is gone, whoever removes it.

    Raises `DockerError` where the daemon can't be reached.
    """
    try:
        await container.delete(force=True, v=True)
        return
    except aiodocker.DockerError as error:
        _raise_unreachable(error)
    while True:  # being removed already: by itself, or by somebody else
        try:
            await container.show()
            await container.delete(force=True, v=True)
        except aiodocker.DockerError as error:
            if error.status == 404:
                return
            _raise_unreachable(error)
        await anyio.sleep(0.05)


def _raise_unreachable(error: aiodocker.DockerError) -> None:
    if _is_unreachable(error):
        raise error


class ContainerStream:
    """The attached stdin and stdout of one container."""

    def __init__(self, container: DockerContainer, left: list[DockerContainer]) -> None:
        self._container = container
        self._left = left  # takes the container where it can't be removed
        self._stream: Stream | None = None
        self._stderr = b""
        self._has_started = self._is_gone = False

    async def open(self) -> None:
        """Attach before the start, so that nothing it says is missed."""
        self._stream = self._container.attach(stdin=True, stdout=True, stderr=True, logs=False)
        with anyio.fail_after(CALL_TIMEOUT_S):
            await self._stream._init()
            await self._container.start()
        self._has_started = True

    async def send(self, data: bytes) -> None:
        assert self._stream is not None
        with _as_os_error():
            await self._stream.write_in(data)

    async def receive(self) -> bytes:
        assert self._stream is not None
        while True:
            with _as_os_error():
                message = await self._stream.read_out()
            if message is None:
                return b""
            if message.stream == 1:
                return message.data
            self._stderr = (self._stderr + message.data)[-4096:]

    async def diagnosis(self) -> str:
        return self._stderr.decode("utf-8", "replace").strip()

    async def aclose(self) -> None:
        if self._is_gone:
            return
        self._is_gone = True
        is_removed = False
        with anyio.move_on_after(CLOSE_WITHIN_S, shield=True):
            if self._stream is not None:
                with contextlib.suppress(Exception):
                    await self._stream.close()
            if self._has_started:
                with anyio.move_on_after(END_WITHIN_S):
                    is_removed = await self._is_removed()
            if is_removed:
                return
            with contextlib.suppress(aiodocker.DockerError, aiohttp.ClientError, OSError):
                await delete(self._container)
                is_removed = True
        if not is_removed:
            self._left.append(self._container)

    async def _is_removed(self) -> bool:
        """Wait for the container to remove itself. That costs a daemon less than a kill."""
        try:
            ended = await self._container.wait(condition="removed")
        except aiodocker.DockerError as error:
            return bool(error.status == 404)
        except (aiohttp.ClientError, OSError):
            return False
        return not ended.get("Error")


@contextlib.contextmanager
def _as_os_error() -> Any:
    try:
        yield
    except (aiodocker.DockerError, aiohttp.ClientError, RuntimeError, AssertionError) as error:
        raise OSError(str(error)) from error
