"""Waiting: chains between the reading and the workers, those of one environment together."""

from collections.abc import Hashable

from mlbench_exec.changes import Changes
from mlbench_exec.schedule import Chain

PASSED_MOST = 2  # times the room: how often the oldest one may be passed over in favour of others


class Waiting:
    """At most `room` chains that wait for a worker, each with the name of where it runs.

    A worker that comes back for the same name finds what is warm there already. The oldest chain
    is passed over a bounded number of times, so none starves.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._chains: list[tuple[Hashable, Chain]] = []  # the oldest first
        self._passed = 0  # how often the oldest one was
        self._is_closed = False
        self._changes = Changes()

    def __repr__(self) -> str:
        return f"<Waiting {len(self._chains)} of {self._room}, passed {self._passed}>"

    async def put(self, name: Hashable, chain: Chain) -> None:
        """Wait for room, and leave the chain here."""
        while len(self._chains) >= self._room:
            await self._changes.wait()
        self._chains.append((name, chain))
        self._changes.tell()

    async def take(self, name: Hashable) -> tuple[Hashable, Chain] | None:
        """The oldest chain of this name, or else the oldest; None when there will be no more."""
        while not self._chains:
            if self._is_closed:
                return None
            await self._changes.wait()
        taken = self._chains.pop(self._choice(name))
        self._changes.tell()
        return taken

    def close(self) -> None:
        """Nothing more will be put here."""
        self._is_closed = True
        self._changes.tell()

    def _choice(self, name: Hashable) -> int:
        same = (n for n, (other, _) in enumerate(self._chains) if other == name)
        choice = next(same, 0) if self._passed < PASSED_MOST * self._room else 0
        self._passed = self._passed + 1 if choice else 0
        return choice
