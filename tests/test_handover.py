"""Handover: what one owner makes, and one consumer takes one by one or as it comes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from mlbench_exec import Handover

pytestmark = pytest.mark.asyncio
LONG_S = 60.0


class Numbers(Handover[int]):
    """Numbers, with pauses in between, and a failure at the end if there is one."""

    def __init__(self, *parts: int | float, failure: Exception | None = None) -> None:
        super().__init__(2, "numbers")
        self._parts = parts
        self._failure_at_end = failure

    async def make(self) -> None:
        for part in self._parts:
            if isinstance(part, float):
                await anyio.sleep(part)
            else:
                await self._send.send(part)
        if self._failure_at_end is not None:
            raise self._failure_at_end


@asynccontextmanager
async def driven(numbers: Numbers) -> AsyncIterator[Numbers]:
    async with anyio.create_task_group() as group:
        group.start_soon(numbers.drive)
        yield numbers


async def test_what_comes_in_time_is_taken_together() -> None:
    """At most so many at once, none of them twice, and nothing at the end."""
    async with driven(Numbers(*range(7))) as numbers:
        taken = [await numbers.gathered(3, LONG_S) for _ in range(4)]
    assert taken == [[0, 1, 2], [3, 4, 5], [6], []]


async def test_what_comes_later_is_not_waited_for() -> None:
    """The first one is, however long it takes."""
    async with driven(Numbers(0.1, 1, 0.3, 2)) as numbers:
        with anyio.fail_after(LONG_S):
            taken = [await numbers.gathered(9, 0.01) for _ in range(3)]
    assert taken == [[1], [2], []]


@pytest.mark.slow
async def test_nothing_is_lost_as_the_time_runs_out() -> None:
    """Whatever comes at the very moment is in this batch or the next."""
    parts = [part for number in range(400) for part in (number, 0.001)]
    async with driven(Numbers(*parts)) as numbers:
        taken = []
        while some := await numbers.gathered(99, 0.001):
            taken += some
    assert taken == list(range(400))


async def test_what_was_taken_is_given_to_who_is_cancelled_meanwhile() -> None:
    """It could be written still, as a run's verdicts are."""
    async with driven(Numbers(1, 2, 60.0)) as numbers:
        with anyio.move_on_after(0.05) as scope:
            assert await numbers.gathered(9, 0.2) == [1, 2]
            with anyio.CancelScope(shield=True):
                await numbers.aclose()
        assert scope.cancel_called


async def test_a_failure_comes_after_what_came_before_it() -> None:
    """It is raised once, bare."""
    async with driven(Numbers(1, 2, failure=KeyError("x"))) as numbers:
        assert await numbers.gathered(9, LONG_S) == [1, 2]
        with pytest.raises(KeyError, match="x"):
            await numbers.gathered(9, LONG_S)
        assert await numbers.gathered(9, LONG_S) == []
