"""What the machine was too busy for is judged again, with nothing else beside it."""

from collections.abc import Callable
from typing import Any

import pytest

from mlbench_exec import rules
from mlbench_exec.engine import Engine
from mlbench_exec.environments import Environment, Environments
from mlbench_exec.errors import MachineTooBusy, SandboxFailed
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

    backend = FakeBackend(script, delay_s=0.01)
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


def _near(**fields: float) -> Observation:
    return observation(exit_code=1, counted_s=9.9, uncertain_s=0.3, **fields)


async def _judge(
    script: Callable[[Job], Observation | Exception], rows: int, concurrency: int
) -> tuple[list[Verdict], FakeBackend]:
    backend = FakeBackend(script, delay_s=0.002)
    submitted = [{"github_id": 1, "id": i, "output": [f"number {i}"]} for i in range(rows)]
    async with Engine(
        Settings(concurrency=concurrency),
        samples=SAMPLES,
        environments=ENVIRONMENTS,
        backend=backend,
    ) as engine:
        outcomes = [outcome async for outcome in engine.stream(submitted)]
    verdicts = [outcome for outcome in outcomes if isinstance(outcome, Verdict)]
    assert len(verdicts) == len(outcomes) == rows
    return verdicts, backend


@pytest.mark.asyncio
async def test_a_verdict_too_close_to_the_limit_counts_only_when_reached_alone() -> None:
    """The second attempt decides, and its verdict says so."""
    order: list[bytes] = []

    def script(job: Job) -> Observation:
        order.append(job.code)
        if job.code not in (b"number 3", b"number 5"):
            return observation()
        if order.count(job.code) == 1:
            return _near()
        return observation(exit_code=None, limit="time", counted_s=10.1, uncertain_s=0.05)

    verdicts, backend = await _judge(script, rows=40, concurrency=4)
    close = [verdict for verdict in verdicts if verdict.contended]
    assert sorted(verdict.id for verdict in close) == [3, 5]
    assert {verdict.status for verdict in close} == {"passed_at_limit"}
    assert {verdict.attempts for verdict in close} == {2}
    assert backend.statistics().runs == 42


@pytest.mark.asyncio
async def test_with_one_sandbox_every_verdict_is_reached_alone_already() -> None:
    """There is no slot to hold back, so nothing is judged twice."""
    verdicts, backend = await _judge(lambda job: _near(), rows=3, concurrency=1)
    assert backend.statistics().runs == 3
    assert not any(verdict.contended for verdict in verdicts)


@pytest.mark.asyncio
async def test_judging_again_is_no_attempt_of_the_infrastructure() -> None:
    """Two sandboxes that failed leave all attempts alone, of which the third counts."""
    seen: list[bytes] = []

    def script(job: Job) -> Observation | Exception:
        seen.append(job.code)
        return SandboxFailed("torn down") if len(seen) <= 2 else _near()

    verdicts, _ = await _judge(script, rows=1, concurrency=2)
    assert len(seen) == 6
    assert (verdicts[0].attempts, verdicts[0].contended) == (6, True)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"exit_code": 1, "counted_s": 9.8, "uncertain_s": 0.3}, True),
        ({"exit_code": 1, "counted_s": 9.6, "uncertain_s": 0.3}, False),
        ({"exit_code": 1, "counted_s": 9.99, "uncertain_s": 0.0}, False),
        ({"exit_code": 0, "counted_s": 9.8, "uncertain_s": 0.3}, False),
        ({"exit_code": None, "signal": 9, "counted_s": 9.8, "uncertain_s": 0.3}, True),
        ({"exit_code": None, "limit": "time", "counted_s": 10.2, "uncertain_s": 0.3}, True),
        ({"exit_code": None, "limit": "time", "counted_s": 10.4, "uncertain_s": 0.3}, False),
    ],
)
def test_close_is_what_the_clocks_uncertainty_could_turn(
    fields: dict[str, Any], expected: bool
) -> None:
    """Ended or stopped within it of the limit, on either side, and not with exit code 0."""
    assert rules.is_too_close(observation(**fields), 10.0) is expected
