"""Containers on Docker: how they start, and how they end."""

import json
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
import pytest

from conformance.rigs import job_of, snippet
from mlbench_exec.backends import containers
from mlbench_exec.backends.docker import DockerBackend
from mlbench_exec.environments import Environment
from mlbench_exec.sandbox import Limits

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.asyncio]
LIMITS = Limits(memory_bytes=256 << 20)
RUN = "ends"


def docker(*command: str) -> str:
    ended = subprocess.run(["docker", *command], capture_output=True, text=True, check=True)
    return ended.stdout.strip()


async def ask(*command: str) -> str:
    return await anyio.to_thread.run_sync(lambda: docker(*command))


@asynccontextmanager
async def opened(image: str, *, fresh: bool) -> AsyncIterator[tuple[DockerBackend, Environment]]:
    environment = Environment(
        name="tiny", github_ids=(1,), repo="tiny", workdir="/repos/tiny", image=image
    )
    backend = DockerBackend(environments=[environment], limits=LIMITS, run=RUN, fresh=fresh)
    async with backend:
        yield backend, environment


async def the_container() -> dict[str, Any]:
    """What Docker knows of the only container of these tests."""
    (name,) = (await ask("ps", "-q", "--filter", f"label=mlbench-exec.run={RUN}")).split()
    (found,) = json.loads(await ask("inspect", name))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("fresh", [False, True], ids=["nested", "fresh"])
async def test_a_container_ends_by_itself(conformance_image: str, fresh: bool) -> None:
    """A kill costs the daemon a process: an agent whose input has ended ends, and is removed."""
    async with opened(conformance_image, fresh=fresh) as (backend, environment):
        sandbox = await backend.open(environment, 0)
        seen = await sandbox.run(job_of(snippet("bash", "echo ran"), environment, LIMITS))
        assert seen.stdout == "ran\n"
        since = time.time()
        name = (await the_container())["Id"] if not fresh else ""
        await sandbox.aclose()
        until = time.time()
    label = f"label=mlbench-exec.run={RUN}"
    told = ["--since", f"{since - 1:.3f}", "--until", f"{until:.3f}", "--filter", label]
    events = [
        json.loads(line) for line in (await ask("events", "--format", "json", *told)).split("\n")
    ]
    actions = [event["Action"] for event in events if not name or event["id"] == name]
    assert "destroy" in actions
    assert "kill" not in actions


async def test_a_container_that_does_not_end_is_killed(
    conformance_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is stuck is waited for a moment only."""
    monkeypatch.setattr(containers, "END_WITHIN_S", 0.2)
    async with opened(conformance_image, fresh=False) as (backend, environment):
        sandbox = await backend.open(environment, 0)
        name = (await the_container())["Id"]
        await ask("pause", name)
        await sandbox.aclose()
        left = await ask("ps", "-aq", "--no-trunc", "--filter", f"id={name}")
    assert left == ""


async def test_a_python_that_did_is_not_tried_again(conformance_image: str) -> None:
    """The first container of an image looks for a Python; the others start it at once."""
    async with opened(conformance_image, fresh=True) as (backend, environment):
        told = []
        for _ in range(2):
            sandbox = await backend.open(environment, 0)
            told.append((await the_container())["Config"]["Entrypoint"][-1])
            await sandbox.aclose()
    assert told[0] == ""
    assert told[1].startswith("/usr/bin/python3")
