"""Pacing: when a request may be sent, so that a server's limits by the minute are kept."""

import math
import random
import time
from collections.abc import Awaitable, Callable

import anyio

__all__ = ["Pace", "Pacer", "backoff_s"]

LONGEST_BACKOFF_S = 60.0
LONGEST_HOLD_S = 600.0
ROUNDING_S = 1e-6


class Pace:
    """A debt that drains at so many units a minute. While it is there, nothing more may go.

    Over any stretch of time, no more passes than its minutes allow and one request.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._per_s = per_minute / 60 if per_minute else math.inf
        self._debt = 0.0
        self._at = 0.0

    def wait_s(self, now: float) -> float:
        """How long until the debt is paid."""
        self._drain(now)
        wait_s = self._debt / self._per_s
        return wait_s if wait_s > ROUNDING_S else 0.0

    def charge(self, units: float, now: float) -> None:
        """Add to the debt, or take from it what was charged too much."""
        self._drain(now)
        if self._per_s < math.inf:
            self._debt += units

    def _drain(self, now: float) -> None:
        if self._per_s < math.inf:
            self._debt = max(0.0, self._debt - (now - self._at) * self._per_s)
        self._at = now


class Pacer:
    """Lets requests through: by number and tokens a minute, and not while the server wants rest."""

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._requests = Pace(requests_per_minute)
        self._tokens = Pace(tokens_per_minute)
        self._held_until = -math.inf
        self._clock = clock
        self._sleep = sleep

    async def admit(self, tokens: float) -> None:
        """Wait until a request of about so many tokens may go, and charge it."""
        while (wait := self._wait_s()) > 0:
            await self._sleep(wait)
        now = self._clock()  # no await since the look: what one is let through for, no other is
        self._requests.charge(1, now)
        self._tokens.charge(tokens, now)

    def settle(self, tokens: float) -> None:
        """Charge so many tokens more (or less) than `admit` was told."""
        self._tokens.charge(tokens, self._clock())

    def hold(self, seconds: float) -> None:
        """Let nothing through for a while, as the server asked."""
        until = self._clock() + min(seconds, LONGEST_HOLD_S)
        self._held_until = max(self._held_until, until)

    def _wait_s(self) -> float:
        now = self._clock()
        return max(
            self._held_until - now, self._requests.wait_s(now), self._tokens.wait_s(now), 0.0
        )


def backoff_s(
    failed: int,
    first_s: float,
    retry_after_s: float | None,
    chance: Callable[[], float] = random.random,
) -> float:
    """How long to wait after so many failed attempts (from 1).

    Doubled each time up to a minute, of which half is left to chance; never less than the server
    asked for, and up to a tenth more.
    """
    doubled = min(LONGEST_BACKOFF_S, first_s * 2.0 ** min(failed - 1, 32))
    own = doubled * (0.5 + 0.5 * chance())
    asked = min(retry_after_s or 0.0, LONGEST_HOLD_S)
    return max(own, asked * (1 + 0.1 * chance()))
