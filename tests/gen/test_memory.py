"""Memory: the same for the last of ten thousand rows as for the first ones."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mlbench_exec import Submission
from mlbench_gen import Answer, Client, Reply, Row, Sampling, Service, Usage, open_record
from mlbench_gen.clients import Message

ROWS = 10_000
EARLY = 1_000
KIB_PER_MIB = 1 << 10
TEXT = "```python\n" + "print('a line of an answer')\n" * 100 + "```\n"


def resident_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / KIB_PER_MIB
    raise AssertionError("no VmRSS")


class Many:
    """Rows that are made when they are read, each with a context of its own."""

    def __iter__(self) -> Iterator[Row]:
        for number in range(ROWS):
            oracle = f"python train.py --number {number}\n" * 100
            yield Row(github_id=1, id=number, instruction=f"Do thing {number}.", oracle=oracle)


class Ready:
    """A server that has its answers ready."""

    async def ask(self, messages: Sequence[Message], count: int) -> Reply:
        answers = tuple(Answer(text=TEXT, finish_reason="stop") for _ in range(count))
        usage = Usage(prompt_tokens=900, completion_tokens=700 * count)
        return Reply(answers=answers, usage=usage, model="m")


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.timeout(1800)
async def test_memory_is_flat_over_ten_thousand_rows(tmp_path: Path) -> None:
    """From 1,000 rows of 13 KB answers to 10,000, a generation takes the memory of an index."""
    seen: list[tuple[int, float]] = []
    taken = 0
    async with (
        open_record(tmp_path, {"asked": {}}, samples=5) as record,
        Client(Sampling(model="m"), Service(), record=record, server=Ready()) as client,
    ):
        async for item in client.generate(Many()):
            assert isinstance(item, Submission)
            taken += 1
            if taken % EARLY == 0:
                seen.append((taken, resident_mib()))
    shown = ", ".join(f"{count}: {mib:.1f}" for count, mib in seen)
    sys.stdout.write(f"MiB after so many rows: {shown}\n")
    assert taken == ROWS
    assert seen[-1][1] - seen[0][1] < 12, shown
