"""Admission: whether the CPUs have time for one more snippet. Pure.

Snippets that sleep, download or wait for a GPU may be many at once; those that compute get no more
done by sharing a core, and only make each other's clocks less certain.
"""

# Until an agent tells more: one core's worth would leave the cores idle between short snippets.
AT_START = 2 / 3
TOLERANCE = 0.01  # three times AT_START is two cores
WHILE_OPENING = 0.25  # a sandbox: mostly waiting


class Ticket:
    """What one borrower wants of the CPUs at this moment."""

    def __init__(self) -> None:
        self.cpus = AT_START


class Admission:
    """Adds up what is wanted of so many `cores`; of None, there is always room."""

    def __init__(self, cores: int | None) -> None:
        self._cores = cores
        self._tickets: set[Ticket] = set()

    def has_room(self, ticket: Ticket | None = None) -> bool:
        """Whether a snippet can start, for the holder of this ticket or for somebody new."""
        if self._cores is None:
            return True
        others = sum(one.cpus for one in self._tickets if one is not ticket)
        return others + AT_START <= self._cores + TOLERANCE

    def enter(self) -> Ticket:
        ticket = Ticket()
        self._tickets.add(ticket)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        self._tickets.remove(ticket)
