"""Warm interpreters in a container."""

import pytest

from mlbench_exec.backends.docker import DockerBackend
from mlbench_exec.environments import Environment
from mlbench_exec.samples import Language
from mlbench_exec.sandbox import Job, Limits, Observation

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.asyncio]
LIMITS = Limits(memory_bytes=512 << 20, pids=64)


async def test_what_is_preloaded_in_a_container_is_imported_once(conformance_image: str) -> None:
    """python and bash are forked from it; each finds the module fresh, and the folder too."""
    environment = Environment(
        name="tiny",
        github_ids=(1,),
        repo="tiny",
        workdir="/repos/tiny",
        python="/usr/bin/python3",
        image=conformance_image,
        preload=("uuid", "json"),
    )
    code = "import uuid; print(hasattr(uuid, 'torn'), uuid._last_timestamp); uuid.torn = 1"

    async def run(language: Language, code: str) -> Observation:
        return await sandbox.run(
            Job(
                environment=environment,
                path="",
                language=language,
                code=code.encode(),
                time_limit_s=30,
                limits=LIMITS,
            )
        )

    backend = DockerBackend(environments=[environment], limits=LIMITS, preload_bytes=64 << 20)
    async with backend:
        sandbox = await backend.open(environment, 0)
        try:
            for _ in range(2):
                seen = await run("python", code)
                assert (seen.stdout, seen.stderr, seen.warm) == ("False None\n", "", True), seen
                seen = await run("bash", f'[ ! -e x ] && echo "{code}" > x && python x')
                assert (seen.stdout, seen.stderr, seen.warm) == ("False None\n", "", True), seen
                assert seen.ran_again == ""
        finally:
            await sandbox.aclose()
