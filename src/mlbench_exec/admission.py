"""Admission: lets snippets start while the CPUs have time for them.

Snippets that sleep, download or wait for a GPU may be many at once; those that compute get no more
done by sharing a core, and only make each other's clocks less certain.
"""

from collections import deque

import anyio

# CPUs that a snippet is reckoned with until its agent tells what it wants. A whole one would leave
# the cores idle between short snippets.
AT_START = 2 / 3
WHILE_OPENING = 0.25  # a sandbox: mostly waiting
TOLERANCE = 0.01  # three times AT_START is two cores


class Ticket:
    """What one borrower wants of the CPUs at this moment."""

    cpus = 0.0
    has_left = False


class Admission:
    """Adds up what is wanted of so many `cores`; of None, there is always room.

    Two lines wait: those who hold a sandbox, who come first, and newcomers. None of them wants
    anything while it waits, so there is room for the first one when all that run have ended.
    """

    def __init__(self, cores: int | None) -> None:
        self._cores = cores
        self._wanted = 0.0
        self._holders: deque[tuple[Ticket, anyio.Event]] = deque()
        self._newcomers: deque[tuple[Ticket, anyio.Event]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._holders) + len(self._newcomers)

    async def enter(self) -> Ticket:
        """Wait for room for a snippet that has no sandbox yet."""
        ticket = Ticket()
        await self._wait(self._newcomers, ticket)
        return ticket

    async def start(self, ticket: Ticket) -> None:
        """Wait for room once more, if a sandbox had to be opened in between."""
        if ticket.cpus < AT_START:
            await self._wait(self._holders, ticket)

    def want(self, ticket: Ticket, cpus: float) -> None:
        if ticket.has_left:
            return  # told too late
        self._wanted += cpus - ticket.cpus
        ticket.cpus = cpus
        self._let_in()

    def leave(self, ticket: Ticket) -> None:
        self.want(ticket, 0.0)
        ticket.has_left = True

    async def _wait(self, line: deque[tuple[Ticket, anyio.Event]], ticket: Ticket) -> None:
        place = ticket, anyio.Event()
        line.append(place)
        self.want(ticket, 0.0)
        try:
            await place[1].wait()
        except BaseException:
            if place in line:
                line.remove(place)
            self.leave(ticket)
            raise

    def _let_in(self) -> None:
        while (line := self._holders or self._newcomers) and self._has_room():
            ticket, turn = line.popleft()
            self._wanted += AT_START - ticket.cpus
            ticket.cpus = AT_START
            turn.set()

    def _has_room(self) -> bool:
        return self._cores is None or self._wanted + AT_START <= self._cores + TOLERANCE
