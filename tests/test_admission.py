"""No more snippets are started than the CPUs have time for, and whoever waits gets a turn."""

import statistics

import anyio
import msgspec
import pytest
from anyio import wait_all_tasks_blocked
from anyio.abc import TaskGroup

from conftest import PYTHON
from mlbench_exec import Engine, Settings, Snippet
from mlbench_exec.admission import WHILE_OPENING, Admission, Ticket
from mlbench_exec.backends.local import LocalBackend
from mlbench_exec.environments import Environment, Environments
from mlbench_exec.errors import SlotBroken
from mlbench_exec.pool import Pool
from mlbench_exec.samples import Sample
from mlbench_exec.sandbox import Clock, Job, Limits, Observation, Tell
from mlbench_exec.testing.fakes import FakeBackend, FakeSandbox

ENVIRONMENT = Environment(name="a", github_ids=(1,), repo="a", workdir="/srv/a")
TIMES = 40
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
        self.running: list[int] = []  # how many ran, at each start
        self.busy = 0

    def lent(self) -> int:
        return self.busy + self.statistics().running

    async def open(self, environment: Environment, slot: int) -> FakeSandbox:
        await super().open(environment, slot)
        self.sandboxes[-1] = TellingSandbox(self, self.key(environment), slot)
        return self.sandboxes[-1]


class TellingSandbox(FakeSandbox):
    async def run(self, job: Job, tell: Tell | None = None) -> Observation:
        assert tell is not None
        assert isinstance(self._backend, Telling)
        tell(self._backend.wants)
        self._backend.running.append(self._backend.lent() + 1)
        self._backend.busy += 1
        await anyio.sleep(len(self._backend.running) % 7 * 0.01)  # they don't end together
        self._backend.busy -= 1
        return await super().run(job)


async def peak(backend: Telling, *, size: int, cores: int | None) -> tuple[int, int]:
    """How many ran, usually and at most."""
    async with Pool(backend, size, cores=cores) as pool, anyio.create_task_group() as tasks:
        waited = 0

        async def borrow() -> None:
            async with pool.lend(ENVIRONMENT) as lease:
                await lease.sandbox.run(JOB, lease.tell)
                nonlocal waited
                waited = max(waited, pool.statistics().waiting)

        for _ in range(TIMES):
            tasks.start_soon(borrow)
    assert backend.statistics().runs == TIMES
    usually, most = int(statistics.median(backend.running)), max(backend.running)
    assert (waited > 0) == (most < size)
    return usually, most


class Door:
    """An admission before which some wait; `inside` are those that were let in, in order."""

    def __init__(self, cores: int | None, tasks: TaskGroup) -> None:
        self.admission = Admission(cores)
        self.inside: list[Ticket] = []
        self._tasks = tasks

    async def come(self, count: int) -> None:
        for _ in range(count):
            self._tasks.start_soon(self._enter)
        await wait_all_tasks_blocked()

    async def _enter(self) -> None:
        self.inside.append(await self.admission.enter())

    async def leave(self, ticket: Ticket) -> None:
        self.admission.leave(ticket)
        await wait_all_tasks_blocked()

    async def tell(self, ticket: Ticket, cpus: float) -> int:
        """Say so, and return how many were let in by it."""
        before = len(self.inside)
        self.admission.tell(ticket, cpus)
        await wait_all_tasks_blocked()
        return len(self.inside) - before


@pytest.mark.asyncio
async def test_room_is_for_one_more_while_cores_are_left() -> None:
    """Two start on two cores; what sleeps makes room, two busy threads take the room of two."""
    async with anyio.create_task_group() as tasks:
        door = Door(2, tasks)
        await door.come(12)
        assert (len(door.inside), door.admission.waiting) == (2, 10)
        one, two = door.inside
        assert await door.tell(one, 0.5) == 0
        assert await door.tell(one, 0.0) == 1
        assert await door.tell(two, 64.0) == 0
        assert await door.tell(door.inside[-1], 0.0) == 0
        assert await door.tell(two, 0.0) == 2
        tasks.cancel_scope.cancel()


@pytest.mark.asyncio
async def test_where_snippets_are_brief_one_more_fills_their_gaps() -> None:
    """Three at once on two cores, as long as they end before anything is told of them."""
    async with anyio.create_task_group() as tasks:
        door = Door(2, tasks)
        await door.come(100)
        for ticket in door.inside:  # grows meanwhile
            await door.leave(ticket)
            if len(door.inside) > 60:
                break
        running = [ticket for ticket in door.inside if not ticket.has_left]
        assert len(running) == 3
        for ticket in running:
            assert await door.tell(ticket, 1.0) == 0
        tasks.cancel_scope.cancel()


@pytest.mark.asyncio
async def test_where_snippets_sleep_more_of_them_start_at_once() -> None:
    """Six on two cores, for they wait most of the time until that is known.

    Where one in two of them computes, there are two at once, as where all do.
    """
    async with anyio.create_task_group() as tasks:
        door = Door(2, tasks)
        await door.come(200)
        for ticket in door.inside:  # grows meanwhile
            await door.tell(ticket, 0.0)
            if len(door.inside) > 80:
                break
        assert sum(not ticket.has_told for ticket in door.inside) == 6
        for number, ticket in enumerate(door.inside):
            if not ticket.has_told:
                await door.tell(ticket, float(number % 2))
                await door.leave(ticket)
            if len(door.inside) > 160:
                break
        assert len(door.inside) > 160
        assert sum(not ticket.has_told for ticket in door.inside) == 2
        tasks.cancel_scope.cancel()


@pytest.mark.asyncio
async def test_who_holds_a_sandbox_comes_before_newcomers() -> None:
    """It was opened meanwhile; and while its holder waits, it wants nothing."""
    async with anyio.create_task_group() as tasks:
        door = Door(2, tasks)
        await door.come(4)
        opening, running = door.inside
        started = anyio.Event()

        async def start() -> None:
            await door.admission.start(opening)
            started.set()

        door.admission.step_back(opening, WHILE_OPENING)
        assert await door.tell(running, 2.0) == 0
        tasks.start_soon(start)
        await wait_all_tasks_blocked()
        assert not started.is_set()
        assert await door.tell(running, 1.0) == 0
        assert started.is_set()
        assert await door.tell(opening, 0.0) == 1
        tasks.cancel_scope.cancel()


@pytest.mark.asyncio
async def test_who_gives_up_leaves_no_trace() -> None:
    """Cancelled in the line, or just let in: its room is the next one's."""
    async with anyio.create_task_group() as tasks:
        door = Door(1, tasks)
        await door.come(1)
        with anyio.move_on_after(0.01):
            await door.admission.enter()
        assert door.admission.waiting == 0
        with anyio.CancelScope() as scope:

            async def let_in_and_cancel() -> None:
                door.admission.leave(door.inside[0])
                scope.cancel()

            tasks.start_soon(let_in_and_cancel)
            door.admission.leave(await door.admission.enter())
        await door.come(1)
        assert len(door.inside) == 2


@pytest.mark.asyncio
async def test_where_the_cores_are_not_known_everyone_is_let_in() -> None:
    """As with the clock on the wall; and one is let in on a machine with one core."""
    async with anyio.create_task_group() as tasks:
        unknown, small = Door(None, tasks), Door(1, tasks)
        await unknown.come(100)
        await small.come(1)
        assert (len(unknown.inside), len(small.inside)) == (100, 1)


@pytest.mark.asyncio
async def test_snippets_that_compute_are_few_at_once_and_those_that_sleep_are_many() -> None:
    """Of 16 slots on two cores, as many are used as the running snippets leave time for."""
    assert await peak(Telling(1.0), size=16, cores=2) in {(2, 2), (2, 3)}
    assert (await peak(Telling(0.0), size=16, cores=2))[1] == 16


@pytest.mark.asyncio
async def test_sandboxes_are_opened_side_by_side_but_no_more_than_are_used() -> None:
    """A start is mostly waiting; and a snippet that can't start yet needs no sandbox."""
    backend = Telling(1.0, open_delay_s=0.05)
    assert await peak(backend, size=16, cores=2) in {(2, 2), (2, 3)}
    assert 2 < backend.statistics().opens <= 12


class Breaking(Telling):
    """Of its slots only the first one works."""

    async def open(self, environment: Environment, slot: int) -> FakeSandbox:
        if slot:
            raise SlotBroken(f"slot {slot} is gone")
        return await super().open(environment, slot)


@pytest.mark.asyncio
@pytest.mark.parametrize("cores", [1, 2])
async def test_who_waits_for_anothers_sandbox_is_not_in_its_way(cores: int) -> None:
    """One sandbox is left for all: whoever has it gets room, however many wait for it."""
    backend = Breaking(1.0, open_delay_s=0.01)
    served = 0

    async def borrow(environment: Environment) -> None:
        nonlocal served
        while True:
            try:
                async with pool.lend(environment) as lease:
                    tell = lease.tell if served % 3 else lambda _: None  # some are brief
                    job = msgspec.structs.replace(JOB, environment=environment)
                    await lease.sandbox.run(job, tell)
                    served += 1
                    return
            except SlotBroken:
                continue

    async with Pool(backend, 4, cores=cores) as pool:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for number in range(24):
                    name = "ab"[number % 2]  # so that the sandbox is opened anew each time
                    tasks.start_soon(borrow, msgspec.structs.replace(ENVIRONMENT, name=name))
    assert served == 24


@pytest.mark.asyncio
async def test_without_cores_every_slot_is_used() -> None:
    """As with the clock on the wall, which is ML-Bench's own."""
    assert (await peak(Telling(2.0), size=16, cores=None))[1] == 16


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
    assert (max(backend.running) <= 3) == (expected == 2)
    assert max(backend.running) >= expected


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
    assert told["asleep"][-1] == 0.0
    assert 0.3 < statistics.median(told["alone"]) < 1.7
    assert max(told["two"]) > 1.7
