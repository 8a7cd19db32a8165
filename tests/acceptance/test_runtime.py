"""`--runtime NAME`: the daemon runs the containers with what was asked for."""

import anyio
import pytest

from conftest import own_containers
from mlbench_exec import (
    BackendUnavailable,
    Engine,
    Environment,
    Environments,
    Limits,
    Sample,
    Settings,
    Snippet,
)

pytestmark = [pytest.mark.slow, pytest.mark.docker]
# Docker knows this runtime by a second name beside its default's.
OTHER_NAME = "io.containerd.runc.v2"


def engine(image: str, runtime: str | None) -> Engine:
    tiny = Environment(
        name="tiny", github_ids=(1,), repo="tiny", workdir="/repos/tiny", image=image,
        python="/usr/bin/python3",
    )  # fmt: skip
    sample = Sample(github_id=1, id=1, repository="tiny", path="./", arguments={}, type="Python")
    settings = Settings(
        backend="docker", concurrency=1, runtime=runtime, limits=Limits(memory_bytes=256 << 20)
    )
    return Engine(settings, samples={(1, 1): sample}, environments=Environments((tiny,)))


@pytest.mark.asyncio
@pytest.mark.parametrize("runtime", ["runc", OTHER_NAME])
async def test_the_daemon_is_told(conformance_image: str, runtime: str) -> None:
    """The containers' HostConfig.Runtime is the one that was named."""
    async with engine(conformance_image, runtime) as open_engine:
        verdict = await open_engine.run(Snippet(github_id=1, id=1, output="print(42)"))
        assert verdict.stdout == "42\n"
        (container,) = own_containers()
        command = ["docker", "inspect", "--format", "{{.HostConfig.Runtime}}", container]
        asked = await anyio.run_process(command)
        assert asked.stdout.decode() == f"{runtime}\n"


@pytest.mark.asyncio
async def test_an_unknown_runtime_is_said(conformance_image: str) -> None:
    """A runtime that the daemon doesn't know ends the start, with its name and the known ones."""
    with pytest.raises(BackendUnavailable, match=r"no-such-runtime.*runc"):
        async with engine(conformance_image, "no-such-runtime"):
            pass
