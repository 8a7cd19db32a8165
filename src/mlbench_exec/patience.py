"""Patience: how long to wait for what comes back, and how often to look. Pure."""

import random
import time
from collections.abc import Callable

__all__ = ["Patience", "pause_s"]

FIRST_PAUSE_S = 0.05  # before the second attempt; each later one waits five times as long
SHORTEST_S = 0.25
LONGEST_S = 5.0


def pause_s(attempt: int, draw: Callable[[], float] = random.random) -> float:
    """How long to wait before this attempt (they count from 1), spread so that not all meet."""
    return 0.0 if attempt < 2 else FIRST_PAUSE_S * 5.0 ** (attempt - 2) * (0.5 + draw())


class Patience:
    """Bounds how long a lost backend is waited for; all who wait for it share one."""

    def __init__(
        self,
        within_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.within_s = within_s
        self._clock = clock
        self._draw = draw
        self._since: float | None = None

    def __repr__(self) -> str:
        return f"<Patience {self.waited_s:.1f} of {self.within_s:.0f} s>"

    @property
    def waited_s(self) -> float:
        """Since the loss was first seen; 0 where nothing is lost."""
        return 0.0 if self._since is None else self._clock() - self._since

    def next_wait_s(self) -> float | None:
        """Until the next look, longer and longer; None when the time is up."""
        now = self._clock()
        if self._since is None:
            self._since = now
        left_s = self._since + self.within_s - now
        if left_s <= 0:
            return None
        wait_s = min(max((now - self._since) / 2, SHORTEST_S), LONGEST_S) * (0.5 + self._draw())
        return min(wait_s, left_s)

    def is_back(self) -> None:
        """It answered: the next loss is a new one."""
        self._since = None
