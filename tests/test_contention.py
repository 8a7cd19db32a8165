"""What the machine was too busy for is judged again, with nothing else beside it."""

import pytest

from mlbench_exec.engine import Engine
from mlbench_exec.environments import Environment, Environments
from mlbench_exec.errors import MachineTooBusy
from mlbench_exec.samples import Sample
from mlbench_exec.sandbox import Job, Observation
from mlbench_exec.settings import Settings
from mlbench_exec.testing.fakes import FakeBackend, observation
from mlbench_exec.verdicts import Verdict

SAMPLES = {
    (1, number): Sample(
        github_id=1, id=number, repository="r", path="", arguments={}, type="Python Code"
    )
    for number in range(40)
}
ENVIRONMENTS = Environments(
    (Environment(name="one", github_ids=(1,), repo="one", workdir="/srv/one"),)
)


@pytest.mark.asyncio
async def test_what_found_the_machine_too_busy_is_judged_again_alone() -> None:
    """Its second attempt runs while no other sandbox is in use, and its verdict says so."""
    starved: set[bytes] = set()
    beside: list[int] = []

    def script(job: Job) -> Observation | Exception:
        if not job.code.startswith(b"heavy"):
            return observation()
        if job.code not in starved:
            starved.add(job.code)
            return MachineTooBusy("the machine ran out of memory")
        beside.append(backend.statistics().running)
        return observation()

    backend = FakeBackend(script, delay_s=0.002)
    settings = Settings(concurrency=4)
    rows = [
        {"github_id": 1, "id": number, "output": [f"heavy {number}", "light", "light"]}
        for number in range(40)
    ]
    async with Engine(
        settings, samples=SAMPLES, environments=ENVIRONMENTS, backend=backend
    ) as engine:
        outcomes = [outcome async for outcome in engine.stream(rows)]
    verdicts = [outcome for outcome in outcomes if isinstance(outcome, Verdict)]
    assert len(verdicts) == len(outcomes) == 120
    assert beside == [1] * 40  # nothing but itself
    contended = {verdict.key for verdict in verdicts if verdict.contended}
    assert contended == set(SAMPLES)
    assert {verdict.attempts for verdict in verdicts if verdict.contended} == {2}
    assert {verdict.attempts for verdict in verdicts if not verdict.contended} == {1}
    assert backend.statistics().peak_running == 4
