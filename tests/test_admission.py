"""No more snippets are started than the CPUs have time for, and whoever waits gets a turn."""

import sys
from pathlib import Path

import anyio
import msgspec
import pytest

from mlbench_exec import Engine, Settings, Snippet
from mlbench_exec.admission import Admission
from mlbench_exec.backends.local import LocalBackend
from mlbench_exec.environments import Environment, Environments
from mlbench_exec.pool import Pool
from mlbench_exec.samples import Sample
from mlbench_exec.sandbox import Clock, Job, Limits, Observation, Tell
from mlbench_exec.testing.fakes import FakeBackend, FakeSandbox

PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
ENVIRONMENT = Environment(name="a", github_ids=(1,), repo="a", workdir="/srv/a")
JOB = Job(
    environment=ENVIRONMENT,
    path="",
    language="python",
    code=b"",
    time_limit_s=1.0,
    limits=Limits(),
)


class Telling(FakeBackend):
    """Sandboxes whose snippets say what they want of the CPUs, then take a while."""

    cores = 2

    def __init__(self, wants: float, **changes: float) -> None:
        super().__init__(delay_s=0.05, **changes)  # type: ignore[arg-type]
        self.wants = wants

    async def open(self, environment: Environment, slot: int) -> FakeSandbox:
        await super().open(environment, slot)
        self.sandboxes[-1] = TellingSandbox(self, self.key(environment), slot)
        return self.sandboxes[-1]


class TellingSandbox(FakeSandbox):
    async def run(self, job: Job, tell: Tell | None = None) -> Observation:
        assert tell is not None
        assert isinstance(self._backend, Telling)
        tell(self._backend.wants)
        return await super().run(job)


async def peak(backend: Telling, *, size: int, cores: int | None, times: int = 40) -> int:
    async with Pool(backend, size, cores=cores) as pool, anyio.create_task_group() as tasks:
        waited = 0

        async def borrow() -> None:
            async with pool.lend(ENVIRONMENT) as lease:
                await lease.sandbox.run(JOB, lease.tell)
                nonlocal waited
                waited = max(waited, pool.statistics().waiting)

        for _ in range(times):
            tasks.start_soon(borrow)
    assert backend.statistics().runs == times
    assert (waited > 0) == (backend.statistics().peak_running < size)
    return backend.statistics().peak_running


def test_room_is_for_one_more_while_cores_are_left() -> None:
    """Three start at once on two cores, and two compute; what sleeps makes room, two busy threads
    take more."""
    admission = Admission(2)
    tickets = []
    while admission.has_room():
        tickets.append(admission.enter())
    assert len(tickets) == 3
    for ticket in tickets[:2]:
        ticket.cpus = 1.0
    admission.leave(tickets.pop())
    assert not admission.has_room()
    tickets[0].cpus = 0.0
    assert admission.has_room()
    tickets[1].cpus = 2.0
    assert not admission.has_room()
    assert admission.has_room(tickets[1])  # its own wish isn't in its way
    tickets.append(admission.enter())
    admission.leave(tickets[1])
    assert admission.has_room()
    tickets[2].cpus = 64.0
    admission.leave(tickets[2])
    assert admission.has_room()


def test_one_is_always_let_in() -> None:
    """Also on a machine with one core; and where the cores aren't known, everyone."""
    assert Admission(1).has_room()
    unknown = Admission(None)
    for _ in range(100):
        unknown.enter().cpus = 8.0
    assert unknown.has_room()


@pytest.mark.asyncio
@pytest.mark.parametrize(("wants", "expected"), [(1.0, 2), (2.0, 1), (0.0, 16)])
async def test_snippets_that_compute_are_few_at_once_and_those_that_sleep_are_many(
    wants: float, expected: int
) -> None:
    """Of 16 slots on two cores, as many are used as the running snippets leave time for."""
    assert await peak(Telling(wants), size=16, cores=2) == expected


@pytest.mark.asyncio
async def test_sandboxes_are_opened_side_by_side_but_no_more_than_are_used() -> None:
    """A start is mostly waiting; and a snippet that can't start yet needs no sandbox."""
    backend = Telling(1.0, open_delay_s=0.05)
    assert await peak(backend, size=16, cores=2) == 2
    assert 2 < backend.statistics().opens <= 12


@pytest.mark.asyncio
async def test_without_cores_every_slot_is_used() -> None:
    """As with the clock on the wall, which is ML-Bench's own."""
    assert await peak(Telling(2.0), size=16, cores=None) == 16


@pytest.mark.asyncio
@pytest.mark.parametrize(("clock", "expected"), [("fair", 2), ("wall", 8)])
async def test_the_clock_decides(clock: Clock, expected: int) -> None:
    """The fair clock goes with it; the wall's does not."""
    backend = Telling(1.0)
    samples = {
        (1, number): Sample(
            github_id=1, id=number, repository="a", path="", arguments={}, type="Python Code"
        )
        for number in range(8)
    }
    engine = Engine(
        Settings(concurrency=8, limits=Limits(clock=clock)),
        samples=samples,
        environments=Environments((ENVIRONMENT,)),
        backend=backend,
    )
    async with engine, anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(engine.run, Snippet(github_id=1, id=number, output="pass"))
    assert backend.statistics().peak_running == expected


BURN = b"import os, time\n%s\nuntil = time.time() + 0.4\nwhile time.time() < until: pass"


@pytest.mark.slow
@pytest.mark.asyncio
async def test_agents_tell_what_their_snippets_want(workdir: str) -> None:
    """What sleeps wants nothing, one busy process a CPU, two of them two."""
    here = msgspec.structs.replace(ENVIRONMENT, workdir=workdir, python=PYTHON)
    told: dict[str, list[float]] = {"asleep": [], "alone": [], "two": []}
    async with LocalBackend(limits=Limits()) as backend:
        sandbox = await backend.open(here, 0)
        for name, code in {
            "asleep": b"import time; time.sleep(0.4)",
            "alone": BURN % b"os.fork() and os.wait()",
            "two": BURN % b"os.fork()",
        }.items():
            job = msgspec.structs.replace(JOB, environment=here, code=code)
            await sandbox.run(job, told[name].append)
        await sandbox.aclose()
    assert min(told["asleep"]) < 0.3
    assert all(0.3 < cpus < 1.7 for cpus in told["alone"])
    assert max(told["two"]) > 1.7


@pytest.fixture
def workdir(tmp_path: Path) -> str:
    tmp_path.chmod(0o755)
    return str(tmp_path)
