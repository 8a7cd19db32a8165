"""A daemon's images: what is there under a name, and pulling what isn't."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Self

import aiodocker
import aiohttp
import anyio
import msgspec

from mlbench_exec.backends.containers import CALL_TIMEOUT_S, DAEMON_ERRORS, no_daemon
from mlbench_exec.errors import BackendUnavailable


class ImageHere(msgspec.Struct, frozen=True, kw_only=True):
    """An image of the daemon's."""

    size: int  # bytes
    digest: str  # the registry's where it came from one, else the image's own id
    created: str
    architecture: str


class Daemon:
    """A daemon, asked about itself and its images; entering it raises `BackendUnavailable`."""

    def __init__(self) -> None:
        self.version: Mapping[str, Any] = {}
        self.info: Mapping[str, Any] = {}
        self._docker: aiodocker.Docker | None = None

    async def __aenter__(self) -> Self:
        try:
            self._docker = aiodocker.Docker()
            with anyio.fail_after(CALL_TIMEOUT_S):
                self.version = await self._docker.version()
                self.info = await self._docker.system.info()
        except BaseException as error:
            await self.__aexit__()
            if isinstance(error, (ValueError, *DAEMON_ERRORS)):
                raise BackendUnavailable(no_daemon(error)) from error
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._docker is not None:
            with anyio.CancelScope(shield=True):
                await self._docker.close()

    async def image(self, name: str) -> ImageHere | None:
        """What is here under this name. Raises `BackendUnavailable`."""
        assert self._docker is not None
        try:
            found = await self._docker.images.inspect(name)
        except aiodocker.DockerError as error:
            if error.status in {400, 404}:
                return None
            raise BackendUnavailable(f"Docker failed while looking up {name}: {error}") from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise BackendUnavailable(no_daemon(error)) from error
        return ImageHere(
            size=int(found["Size"]),
            digest=str((found.get("RepoDigests") or [found["Id"]])[0]),
            created=str(found.get("Created", "")),
            architecture=str(found.get("Architecture", "")),
        )

    async def pull(self, name: str) -> AsyncIterator[dict[str, Any]]:
        """Pull an image; what the daemon tells of it, step by step. Raises `BackendUnavailable`."""
        assert self._docker is not None
        tagged = name if "@" in name or ":" in name.rpartition("/")[2] else f"{name}:latest"
        try:
            async for step in self._docker.images.pull(tagged, stream=True, timeout=None):
                if "error" in step:
                    raise BackendUnavailable(f"{name} can't be pulled: {step['error']}")
                yield step
        except DAEMON_ERRORS as error:
            raise BackendUnavailable(f"{name} can't be pulled: {error}") from error
