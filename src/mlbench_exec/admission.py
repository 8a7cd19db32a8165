"""Admission: lets snippets start while the CPUs have time for them.

Snippets that sleep, download or wait for a GPU may be many at once; those that compute get no more
done by sharing a core, and only make each other's clocks less certain.
"""

from collections import deque

import anyio

# CPUs that a snippet is reckoned with until its agent tells, where others' example speaks for less
# than one.
BRIEF = 0.6  # they had ended by then: a start and an end have gaps
SLEEPER = 0.3  # they slept, for most of the time until that was sure
MOSTLY = 0.75  # of them, or busy ones that are let in with sleepers are too many
RECENT = 8  # snippets whose example the next ones are taken to follow
WHILE_OPENING = 0.25  # CPUs: mostly waiting
TOLERANCE = 0.01  # sums of fractions


class Ticket:
    """What one borrower wants of the CPUs at this moment."""

    cpus = 0.0
    is_in = False  # and need not wait again
    has_told = False
    has_left = False


class _Place:
    """In a line."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.turn: anyio.Event | None = None  # of who has to wait for it


class Admission:
    """Adds up what is wanted of so many `cores`; of None, there is always room.

    Two lines wait: those who hold a sandbox, who come first, and newcomers. None of them wants
    anything while it waits, so there is room for the first one when all that run have ended.
    """

    def __init__(self, cores: int | None) -> None:
        self._cores = cores
        self._wanted = 0.0
        self._brief = 0.0  # share of the recent ones that ended before anything was told
        self._sleepers = 0.0  # share of those that slept when something was told first
        self._holders: deque[_Place] = deque()
        self._newcomers: deque[_Place] = deque()

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
        if not ticket.is_in:
            await self._wait(self._holders, ticket)

    def step_back(self, ticket: Ticket, cpus: float = 0.0) -> None:
        """It has no sandbox yet, and has to wait for room again when it has.

        What waits for others, who may wait for room themselves, keeps none from them.
        """
        ticket.is_in = False
        self._want(ticket, cpus)

    def tell(self, ticket: Ticket, cpus: float) -> None:
        """What its snippet could use now."""
        if ticket.has_left:
            return
        if not ticket.has_told:
            ticket.has_told = True
            self._learn(sleeps=cpus == 0.0)
        self._want(ticket, cpus)

    def leave(self, ticket: Ticket) -> None:
        ticket.has_left = True
        if ticket.is_in and not ticket.has_told:
            self._learn(is_brief=True)
        self._want(ticket, 0.0)

    def _learn(self, *, is_brief: bool = False, sleeps: bool = False) -> None:
        self._brief += (is_brief - self._brief) / RECENT
        self._sleepers += (sleeps - self._sleepers) / RECENT

    @property
    def _at_start(self) -> float:
        """CPUs for one of which nothing is known yet."""
        return SLEEPER if self._sleepers > MOSTLY else 1 - (1 - BRIEF) * self._brief

    def _want(self, ticket: Ticket, cpus: float) -> None:
        if self._cores is not None:
            cpus = min(cpus, self._cores)  # no wild tale outweighs what the others want
        self._wanted += cpus - ticket.cpus
        ticket.cpus = cpus
        self._let_in()

    async def _wait(self, line: deque[_Place], ticket: Ticket) -> None:
        place = _Place(ticket)
        line.append(place)
        self._want(ticket, 0.0)
        if ticket.is_in:
            return
        place.turn = anyio.Event()
        try:
            await place.turn.wait()
        except BaseException:
            if place in line:
                line.remove(place)
            self._want(ticket, 0.0)
            raise

    def _let_in(self) -> None:
        while (line := self._holders or self._newcomers) and self._has_room():
            place = line.popleft()
            ticket = place.ticket
            self._wanted += self._at_start - ticket.cpus
            ticket.cpus, ticket.is_in = self._at_start, True
            if place.turn is not None:
                place.turn.set()

    def _has_room(self) -> bool:
        return self._cores is None or self._wanted + self._at_start <= self._cores + TOLERANCE
