from collections.abc import Hashable

import anyio
import pytest

from mlbench_exec.samples import Sample
from mlbench_exec.schedule import Chain, plan
from mlbench_exec.submissions import Submission
from mlbench_exec.waiting import PASSED_MOST, Waiting

pytestmark = pytest.mark.asyncio


def chain(number: int) -> Chain:
    sample = Sample(
        github_id=1, id=number, repository="r", path="./", arguments={}, type="Python Code"
    )
    row = Submission(github_id=1, id=number, outputs=("pass",), place="")
    return plan(row, sample, {}).chains[0]


async def test_a_worker_stays_with_an_environment() -> None:
    """What it ran last comes first; where none of that waits, the oldest does."""
    waiting = Waiting(6)
    for number, name in enumerate("abcabc"):
        await waiting.put(name, chain(number))
    waiting.close()
    taken = list[tuple[Hashable, int]]()
    while (found := await waiting.take(taken[-1][0] if taken else "b")) is not None:
        taken.append((found[0], found[1][0].sample.id))
    assert taken == [("b", 1), ("b", 4), ("a", 0), ("a", 3), ("c", 2), ("c", 5)]


async def test_no_environment_starves() -> None:
    """However many of another's follow, the oldest is passed over a bounded number of times."""
    waiting = Waiting(3)
    await waiting.put("old", chain(0))
    for number in range(1, 100):
        await waiting.put("new", chain(number))
        found = await waiting.take("new")
        assert found is not None
        if found[0] == "old":
            break
    assert number == PASSED_MOST * 3 + 1


async def test_reading_waits_for_room_and_workers_for_chains() -> None:
    """Neither runs ahead of the other, and the end is told to all who wait."""
    waiting, taken = Waiting(1), list[int]()

    async def work() -> None:
        while (found := await waiting.take(None)) is not None:
            taken.append(found[1][0].sample.id)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        tasks.start_soon(work)
        for number in range(5):
            await waiting.put("a", chain(number))
        waiting.close()
    assert taken == [0, 1, 2, 3, 4]
    await waiting.put("a", chain(5))
    with anyio.move_on_after(0.01) as blocked:
        await waiting.put("a", chain(6))
    assert blocked.cancelled_caught
