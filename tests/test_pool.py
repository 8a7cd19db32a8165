import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Literal

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbench_exec.environments import Environment
from mlbench_exec.errors import EnvironmentUnusable, SandboxFailed
from mlbench_exec.pool import SPARES, Lease, Pool, Statistics
from mlbench_exec.sandbox import Job, Limits
from mlbench_exec.testing.fakes import FakeBackend, FakeSandbox

Ending = Literal["well", "failed", "unusable"]


def environment(name: str = "a") -> Environment:
    return Environment(name=name, github_ids=(1,), repo=name, workdir=f"/srv/{name}")


def job(name: str = "a") -> Job:
    return Job(
        environment=environment(name),
        path="",
        language="python",
        code=b"",
        time_limit_s=1.0,
        limits=Limits(),
    )


async def settle() -> None:
    """Let every task go as far as it can without time passing."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


class LingeringSandbox(FakeSandbox):
    """Takes its time to close."""

    is_closing = False

    async def aclose(self) -> None:
        self.is_closing = True
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        await super().aclose()


class ShakyBackend(FakeBackend):
    """Fails every third start, while it is shaky."""

    attempts = 0
    most_open = 0
    is_shaky = True

    async def open(self, environment: Environment, slot: int) -> FakeSandbox:
        self.attempts += 1
        await anyio.lowlevel.checkpoint()
        if self.is_shaky and self.attempts % 3 == 0:
            raise SandboxFailed("it did not start")
        await super().open(environment, slot)
        self.sandboxes[-1] = LingeringSandbox(self, self.key(environment), slot)
        self.most_open = max(self.most_open, self.statistics().is_open)
        return self.sandboxes[-1]


@contextlib.asynccontextmanager
async def holding(pool: Pool, *names: str) -> AsyncIterator[list[Lease]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(pool.lend(environment(name))) for name in names]


def sandbox_of(lease: Lease) -> FakeSandbox:
    assert isinstance(lease.sandbox, FakeSandbox)
    return lease.sandbox


@pytest.mark.asyncio
async def test_never_more_than_its_size_are_lent() -> None:
    """Whoever comes when all sandboxes are lent waits until one is given back."""
    backend, most = FakeBackend(), 0

    async def borrow(name: str) -> None:
        nonlocal most
        async with pool.lend(environment(name)) as lease:
            most = max(most, pool.statistics().lent)
            await settle()
            await lease.sandbox.run(job(name))

    async with Pool(backend, 3) as pool, anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(borrow, "ab"[number % 2])
    assert most == 3
    assert backend.statistics().runs == 20
    assert backend.statistics().peak_open <= 3
    assert backend.statistics().is_open == 0


@pytest.mark.asyncio
async def test_a_warm_sandbox_is_used_again() -> None:
    """The next snippet of an environment gets the sandbox that the last one left."""
    backend = FakeBackend()
    async with Pool(backend, 2) as pool:
        for _ in range(10):
            async with pool.lend(environment()) as lease:
                await lease.sandbox.run(job())
        assert pool.statistics() == Statistics(lent=0, idle=1, refilling=0, opened=1)
        assert repr(pool) == f"<Pool of 2 fake: {pool.statistics()}>"


@pytest.mark.asyncio
async def test_environments_with_one_key_share_a_sandbox() -> None:
    """It is the backend that says which environments can share."""
    backend = FakeBackend(key=lambda environment: "one image")
    async with Pool(backend, 2) as pool:
        for name in "abab":
            async with pool.lend(environment(name)) as lease:
                await lease.sandbox.run(job(name))
        assert pool.statistics().opened == 1


@pytest.mark.asyncio
async def test_another_environment_takes_the_place_of_the_least_recently_used() -> None:
    """Idle sandboxes stay as long as there is room; then the one that waited longest goes."""
    backend = FakeBackend()
    async with Pool(backend, 2) as pool:
        async with holding(pool, "b", "a"):
            pass  # given back in the order a, b
        async with pool.lend(environment("a")):
            pass
        async with pool.lend(environment("c")):
            assert [(one.key, one.is_closed) for one in backend.sandboxes] == [
                ("b", True),
                ("a", False),
                ("c", False),
            ]
    assert backend.statistics().peak_open == 2


@pytest.mark.asyncio
async def test_an_environment_comes_back_to_a_sandbox_that_knows_it() -> None:
    """Where several environments share sandboxes: what is warm for one of them stays in use."""
    backend = FakeBackend(key=lambda environment: "one image")
    async with Pool(backend, 2) as pool:
        async with holding(pool, "a", "b") as (of_a, of_b):
            assert of_a.slot != of_b.slot
        for name, slot in (("a", of_a.slot), ("b", of_b.slot), ("b", of_b.slot), ("a", of_a.slot)):
            async with holding(pool, name) as (lease,):
                assert lease.slot == slot
        async with holding(pool, "c") as (of_c,):
            assert of_c.slot in {of_a.slot, of_b.slot}
        assert pool.statistics().opened == 2


@pytest.mark.asyncio
async def test_a_fresh_sandbox_is_none_that_served_before() -> None:
    """A retry gets a new sandbox even where an idle one waits, and within the size."""
    backend = FakeBackend()
    async with Pool(backend, 1) as pool:
        async with pool.lend(environment()) as first:
            pass
        async with pool.lend(environment(), fresh=True) as second:
            assert second.sandbox is not first.sandbox
            assert sandbox_of(first).is_closed
    assert backend.statistics().peak_open == 1


@pytest.mark.asyncio
async def test_who_wants_to_be_alone_waits_for_those_who_do_not() -> None:
    """The pool is emptied once, for all that are to be alone, and not for each of them."""
    order: list[str] = []

    async def borrow(name: str, alone: bool) -> None:
        async with pool.lend(environment(), alone=alone):
            order.append(name)
            await settle()

    async with Pool(FakeBackend(), 2) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(borrow, "first", False)
        await settle()
        for name in ("alone 1", "alone 2"):
            tasks.start_soon(borrow, name, True)
        for name in ("second", "third", "fourth"):
            tasks.start_soon(borrow, name, False)
    assert sorted(order[:4]) == ["first", "fourth", "second", "third"]
    assert sorted(order[4:]) == ["alone 1", "alone 2"]


@pytest.mark.asyncio
async def test_who_wants_to_be_alone_is() -> None:
    """It waits for the others, and they for it; nobody waits for ever."""
    pool, ended = Pool(FakeBackend(), 3), list[str]()

    async def borrow(name: str, alone: bool) -> None:
        async with pool.lend(environment(name), alone=alone):
            await settle()
            assert pool.statistics().lent == 1 or not alone
        ended.append(name)

    with anyio.fail_after(5):
        async with pool, anyio.create_task_group() as tasks:
            for number in range(12):
                tasks.start_soon(borrow, "ab"[number % 2], number % 4 == 1)
    assert len(ended) == 12


@pytest.mark.asyncio
async def test_slots_are_the_lowest_that_are_free() -> None:
    """Each of the sandboxes that are open at one time has a slot of its own."""
    async with Pool(FakeBackend(), 2) as pool:
        async with holding(pool, "a", "b") as leases:
            assert [lease.slot for lease in leases] == [0, 1]
        async with holding(pool, "c") as leases:
            assert leases[0].slot in {0, 1}


@pytest.mark.asyncio
async def test_a_failed_borrower_condemns_its_sandbox() -> None:
    """What was lent to somebody who failed is closed, and never lent again."""
    backend = FakeBackend()
    async with Pool(backend, 1) as pool:
        with pytest.raises(ZeroDivisionError):
            async with pool.lend(environment()):
                raise ZeroDivisionError
        assert backend.sandboxes[0].is_closed
        assert pool.statistics() == Statistics(lent=0, idle=0, refilling=0, opened=1)
        async with pool.lend(environment()) as lease:
            assert lease.sandbox is backend.sandboxes[1]
            assert lease.slot == 0


@pytest.mark.asyncio
async def test_a_condemned_sandbox_keeps_its_place_until_it_is_closed() -> None:
    """Its memory is in use till then, so nobody opens another in its stead."""
    backend = ShakyBackend()
    backend.is_shaky = False
    async with Pool(backend, 2) as pool, anyio.create_task_group() as tasks:
        async with holding(pool, "a", "b"):
            pass
        tasks.start_soon(visit, pool, "a", "failed", 0, None, False)
        while not is_closing("a", backend):
            await anyio.lowlevel.checkpoint()
        tasks.start_soon(enter, pool, "c")
    assert backend.statistics().opens == 3
    assert backend.most_open == 2


def is_closing(key: str, backend: FakeBackend) -> bool:
    (found,) = (sandbox for sandbox in backend.sandboxes if sandbox.key == key)
    assert isinstance(found, LingeringSandbox)
    return found.is_closing


@pytest.mark.asyncio
async def test_a_cancelled_borrower_condemns_its_sandbox() -> None:
    """Also its closing is not cut short by the cancellation."""
    backend = FakeBackend(delay_s=1000)
    async with Pool(backend, 1) as pool:
        with anyio.CancelScope() as scope:
            async with pool.lend(environment()) as lease:
                scope.cancel()
                await lease.sandbox.run(job())
        assert scope.cancelled_caught
        assert backend.sandboxes[0].is_closed
        assert pool.statistics().idle == 0


@pytest.mark.asyncio
async def test_an_unusable_environment_condemns_no_sandbox() -> None:
    """The sandbox is as good as before where only the environment isn't there."""
    backend = FakeBackend()
    async with Pool(backend, 1) as pool:
        with pytest.raises(EnvironmentUnusable):
            async with pool.lend(environment()):
                raise EnvironmentUnusable("no folder")
        assert pool.statistics() == Statistics(lent=0, idle=1, refilling=0, opened=1)


@pytest.mark.asyncio
async def test_an_environment_that_cant_be_opened_costs_no_slot() -> None:
    """The error reaches the borrower, and the next one finds the slot free."""
    backend = FakeBackend(unusable={"a": "it has no image"})
    async with Pool(backend, 1) as pool:
        for _ in range(SPARES + 3):
            with pytest.raises(EnvironmentUnusable, match="it has no image"):
                async with pool.lend(environment("a")):
                    pytest.fail("nothing was opened")
        assert pool.statistics() == Statistics(lent=0, idle=0, refilling=0, opened=0)
        async with pool.lend(environment("b")) as lease:
            assert lease.slot == 0


@pytest.mark.asyncio
async def test_a_cancelled_wait_costs_nothing() -> None:
    """Who gives up waiting leaves the pool as it was."""
    async with Pool(FakeBackend(), 1) as pool:
        async with holding(pool, "a"):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(enter, pool, "b")
                    await settle()
                    scope.cancel()
            assert pool.statistics() == Statistics(lent=1, idle=0, refilling=0, opened=1)
        async with holding(pool, "b"):
            pass


async def enter(pool: Pool, name: str) -> None:
    async with pool.lend(environment(name)):
        pass


@pytest.mark.asyncio
async def test_single_use_sandboxes_are_replaced_in_the_background() -> None:
    """A used one is closed, a new one waits for the next snippet."""
    backend = FakeBackend(reusable=False)
    async with Pool(backend, 1) as pool:
        for runs in range(1, 4):
            async with pool.lend(environment()) as lease:
                await lease.sandbox.run(job())
            assert pool.statistics().refilling == 1
            await settle()
            assert pool.statistics() == Statistics(lent=0, idle=1, refilling=0, opened=runs + 1)
    assert backend.statistics().is_open == 0


@pytest.mark.asyncio
async def test_single_use_spares_are_bounded() -> None:
    """However many were lent at once, only some are kept ready for later."""
    backend = FakeBackend(reusable=False)
    async with Pool(backend, 8) as pool:
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(enter, pool, "a")
        await settle()
        assert 1 <= pool.statistics().idle <= SPARES + 1
        assert pool.statistics().refilling == 0
    assert backend.statistics().peak_open <= 8 + SPARES
    assert backend.statistics().is_open == 0


@pytest.mark.asyncio
async def test_a_refill_that_fails_is_met_by_who_needs_it() -> None:
    """In the background it is nobody's error, and costs no slot."""
    backend = FakeBackend(reusable=False)
    async with Pool(backend, 1) as pool:
        async with pool.lend(environment()):
            backend.unusable["a"] = "the image was removed"
        await settle()
        assert pool.statistics() == Statistics(lent=0, idle=0, refilling=0, opened=1)
        with pytest.raises(EnvironmentUnusable, match="the image was removed"):
            async with pool.lend(environment()):
                pytest.fail("nothing was opened")


@pytest.mark.asyncio
@pytest.mark.parametrize("reusable", [True, False])
async def test_leaving_closes_every_sandbox(reusable: bool) -> None:
    """Idle, single-use and refilling ones alike."""
    backend = FakeBackend(reusable=reusable)
    async with Pool(backend, 4) as pool, holding(pool, "a", "b", "c", "d"):
        pass
    assert backend.statistics().opens >= 4
    assert backend.statistics().is_open == 0


@pytest.mark.asyncio
async def test_leaving_under_cancellation_closes_every_sandbox() -> None:
    """A cancelled block closes as much as one that ends."""
    backend = FakeBackend()
    with anyio.CancelScope() as scope:
        async with Pool(backend, 2) as pool:
            async with holding(pool, "a", "b"):
                pass
            async with holding(pool, "a"):
                scope.cancel()
                await anyio.sleep_forever()
    assert backend.statistics().opens == 2
    assert backend.statistics().is_open == 0


@pytest.mark.asyncio
async def test_leaving_ends_borrowers_of_other_tasks() -> None:
    """They learn why, their sandboxes are closed, and nothing is lent after them."""
    backend, endings = FakeBackend(delay_s=1000), list[str]()

    async def borrow(name: str) -> None:
        try:
            async with pool.lend(environment(name)) as lease:
                await lease.sandbox.run(job(name))
        except RuntimeError as error:
            endings.append(str(error))

    async with anyio.create_task_group() as tasks:
        async with Pool(backend, 2) as pool:
            for name in "abc":
                tasks.start_soon(borrow, name)
            await settle()
            assert pool.statistics().lent == 2
        assert backend.statistics().is_open == 0
    assert len(endings) == 3
    assert "was left" in endings[0]
    with pytest.raises(RuntimeError, match="was left"):
        await enter(pool, "a")


async def visit(
    pool: Pool, name: str, ending: Ending, steps: int, gives_up_after: int | None, alone: bool
) -> None:
    """Come, hold a sandbox for some steps, and end in some way or be cancelled on the way."""
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            if gives_up_after is not None:
                tasks.start_soon(cancel_after, scope, gives_up_after)
            with contextlib.suppress(SandboxFailed, EnvironmentUnusable):
                async with pool.lend(environment(name), alone=alone) as lease:
                    await lease.sandbox.run(job(name))
                    for _ in range(steps):
                        await anyio.lowlevel.checkpoint()
                        assert pool.statistics().lent == 1 or not alone
                    if ending == "failed":
                        raise SandboxFailed("as planned")
                    if ending == "unusable":
                        raise EnvironmentUnusable("as planned")
            tasks.cancel_scope.cancel()


async def cancel_after(scope: anyio.CancelScope, steps: int) -> None:
    for _ in range(steps):
        await anyio.lowlevel.checkpoint()
    scope.cancel()


async def watch(pool: Pool, is_sound: Callable[[Statistics], bool]) -> None:
    while True:
        assert is_sound(pool.statistics()), pool.statistics()
        await anyio.lowlevel.checkpoint()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 4),
    reusable=st.booleans(),
    visits=st.lists(
        st.tuples(
            st.sampled_from("abcd"),  # d isn't there
            st.sampled_from(["well", "well", "failed", "unusable"]),
            st.integers(0, 5),
            st.none() | st.integers(0, 12),
            st.booleans(),
        ),
        max_size=30,
    ),
)
def test_no_order_of_events_stops_it(
    size: int, reusable: bool, visits: list[tuple[str, Ending, int, int | None, bool]]
) -> None:
    """Failures, cancellations and failed starts of any number lose no slot and no sandbox."""
    backend = ShakyBackend(reusable=reusable, unusable={"d": "it has no image"})
    most = size if reusable else size + SPARES

    def is_sound(now: Statistics) -> bool:
        in_use = now.lent + now.idle + now.refilling
        return now.lent <= size and min(now.idle, now.refilling) >= 0 and in_use <= most + size

    async def play() -> None:
        with anyio.fail_after(10):
            async with Pool(backend, size) as pool, anyio.create_task_group() as tasks:
                tasks.start_soon(watch, pool, is_sound)
                async with anyio.create_task_group() as visitors:
                    for one in visits:
                        visitors.start_soon(visit, pool, *one)
                await settle()
                last = pool.statistics()
                assert (last.lent, last.refilling) == (0, 0)
                assert last.idle == backend.statistics().is_open <= most
                backend.is_shaky = False
                async with holding(pool, *"abca"[:size]) as leases:  # every slot is there again
                    assert len({lease.slot for lease in leases}) == size
                tasks.cancel_scope.cancel()
        assert backend.statistics().is_open == 0
        assert backend.most_open <= most

    asyncio.run(play())
