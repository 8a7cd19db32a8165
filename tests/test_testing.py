import anyio
import anyio.lowlevel
import pytest

from mlbench_exec.environments import Environment
from mlbench_exec.errors import EnvironmentUnusable, SandboxFailed
from mlbench_exec.sandbox import Backend, Job, Limits, Sandbox
from mlbench_exec.testing import FakeBackend, FakeSandbox, observation
from mlbench_exec.testing.conformance import CASES

ENVIRONMENT = Environment(name="tiny", github_ids=(1,), repo="tiny", workdir="/repo")
OTHER = Environment(name="other", github_ids=(2,), repo="other", workdir="/repo")


def job(code: str = "", environment: Environment = ENVIRONMENT) -> Job:
    return Job(
        environment=environment,
        path="./",
        language="bash",
        code=code.encode(),
        time_limit_s=1.0,
        limits=Limits(),
    )


def test_the_fakes_are_what_they_stand_for() -> None:
    """The fakes implement the protocols, as far as a type checker sees."""
    backend: Backend = FakeBackend()
    sandbox: Sandbox = FakeSandbox(FakeBackend(), "tiny", 0)
    assert (backend.name, sandbox.reusable) == ("fake", True)


def test_an_observation_counts_its_own_bytes() -> None:
    """Byte counts follow the text unless they are given."""
    seen = observation(stdout="é", stderr="x", stderr_bytes=7, exit_code=3)
    assert (seen.stdout_bytes, seen.stderr_bytes, seen.exit_code) == (2, 7, 3)


@pytest.mark.asyncio
async def test_the_script_answers_and_the_fake_counts() -> None:
    """What the script returns is seen; opens, runs, closes and their peaks are counted."""
    async with FakeBackend(
        lambda job: observation(stdout=job.code.decode()), delay_s=0.01
    ) as backend:
        sandboxes = [await backend.open(ENVIRONMENT, slot) for slot in range(3)]
        seen = []

        async def run(sandbox: FakeSandbox, code: str) -> None:
            seen.append((await sandbox.run(job(code))).stdout)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, sandboxes[0], "a")
            tasks.start_soon(run, sandboxes[1], "b")
        await run(sandboxes[0], "c")
        for sandbox in sandboxes:
            await sandbox.aclose()
            await sandbox.aclose()
    assert sorted(seen) == ["a", "b", "c"]
    counts = backend.statistics()
    assert (counts.opens, counts.closes, counts.is_open) == (3, 3, 0)
    assert (counts.runs, counts.running) == (3, 0)
    assert (counts.peak_open, counts.peak_running) == (3, 2)


@pytest.mark.asyncio
async def test_an_exception_of_the_script_is_raised_and_condemns() -> None:
    """`SandboxFailed` and cancelling condemn a sandbox; using it again is an error."""
    backend = FakeBackend(lambda job: SandboxFailed("broke"))
    sandbox = await backend.open(ENVIRONMENT, 0)
    with pytest.raises(SandboxFailed, match="broke"):
        await sandbox.run(job())
    with pytest.raises(RuntimeError, match="condemned"):
        await sandbox.run(job())
    backend = FakeBackend(delay_s=60.0)
    sandbox = await backend.open(ENVIRONMENT, 0)
    with anyio.move_on_after(0.01):
        await sandbox.run(job())
    assert sandbox.is_condemned
    assert backend.statistics().running == 0


@pytest.mark.asyncio
async def test_a_missing_environment_leaves_the_sandbox_usable() -> None:
    """`EnvironmentUnusable` is told by `check` and `open`, and condemns nothing."""
    backend = FakeBackend(unusable={"other": "no image"})
    with pytest.raises(EnvironmentUnusable, match="other: no image"):
        await backend.open(OTHER, 0)
    backend.script = lambda job: EnvironmentUnusable("no folder")
    sandbox = await backend.open(ENVIRONMENT, 0)
    with pytest.raises(EnvironmentUnusable):
        await sandbox.run(job())
    assert not sandbox.is_condemned


@pytest.mark.asyncio
async def test_a_borrower_that_breaks_the_contract_is_told() -> None:
    """Two jobs at once, another environment's job, and a second use of a fresh one are errors."""
    backend = FakeBackend(delay_s=0.01, reusable=False)
    sandbox = await backend.open(ENVIRONMENT, 0)
    with pytest.raises(RuntimeError, match="another environment"):
        await sandbox.run(job(environment=OTHER))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sandbox.run, job())
        await anyio.lowlevel.checkpoint()
        with pytest.raises(RuntimeError, match="second job"):
            await sandbox.run(job())
    with pytest.raises(RuntimeError, match="after its end"):
        await sandbox.run(job())


def test_cases_have_names_of_their_own() -> None:
    """Every conformance case can be named in a report."""
    assert len({case.name for case in CASES}) == len(CASES)
