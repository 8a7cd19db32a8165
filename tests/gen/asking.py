"""Asking: rows, scripts and servers that the tests of generation share."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlbench_exec import Rejected, Submission
from mlbench_gen import Client, Row, Sampling, Service, open_record
from mlbench_gen.testing import Asked, Good, ModelServer, Response

KEY = "sk-a-very-secret-key"
Item = Submission | Rejected


def rows(count: int) -> list[Row]:
    return [
        Row(github_id=1, id=number, instruction=f"Do thing {number}.", oracle="python do.py")
        for number in range(count)
    ]


def number_of(asked: Asked) -> int:
    """Which of the rows above a prompt is about."""
    found = re.search(r"Do thing (\d+)\.", asked.prompt)
    assert found is not None
    return int(found[1])


def answer_to(number: int) -> str:
    return f"Sure.\n```python\nprint({number})\n```\n"


def good(asked: Asked) -> Good:
    return Good(texts=[answer_to(number_of(asked))])


def chance(asked: Asked) -> float:
    """The same number from 0 to 1 for the same prompt and attempt, whatever else is going on."""
    digest = hashlib.sha256(f"{asked.prompt} {asked.attempt}".encode()).digest()
    return int.from_bytes(digest[:4]) / (1 << 32)


def first_fails(fault: Response, times: int = 1) -> Any:
    """A script: each prompt meets the fault so many times before it is answered."""

    def script(asked: Asked) -> Response:
        return fault if asked.attempt <= times else good(asked)

    return script


def service(server: ModelServer, **changes: Any) -> Service:
    plain: dict[str, Any] = {
        "base_url": server.url,
        "key_env": "TEST_KEY",
        "backoff_s": 0.01,
        "timeout_s": 60.0,
    }
    return Service(**(plain | changes))


async def generated(
    server: ModelServer,
    asked: Sequence[Row],
    *,
    folder: Path | None = None,
    samples: int = 2,
    **changes: Any,
) -> list[Item]:
    """Everything that a client gives for these rows, in the order in which it comes."""
    sampling = Sampling(model="scripted-1", samples=samples)
    if folder is None:
        async with Client(sampling, service(server, **changes)) as client:
            return [item async for item in client.generate(asked)]
    async with (
        open_record(folder, {"asked": {"model": "scripted-1"}}, samples=samples) as record,
        Client(sampling, service(server, **changes), record=record) as client,
    ):
        stream = client.generate(asked)
        items = [item async for item in stream]
        record.conclude(stream.order)
        return items


def outputs(items: Sequence[Item]) -> dict[int, tuple[str | None, ...]]:
    """The outputs of answered rows by id; every item must be one."""
    assert all(isinstance(item, Submission) for item in items), items
    return {item.id: item.outputs for item in items if isinstance(item, Submission)}


def lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        yield json.loads(line)
