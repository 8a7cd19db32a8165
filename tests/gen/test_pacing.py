"""Pacing: limits by the minute, and waiting between attempts."""

import pytest

from mlbench_gen.pacing import Pace, Pacer, backoff_s


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_debt_drains_with_time() -> None:
    """After a charge, the next one has to wait as long as the charge takes to drain."""
    pace = Pace(60)
    assert pace.wait_s(0) == 0
    pace.charge(3, 0)
    assert pace.wait_s(1) == pytest.approx(2)
    pace.charge(-1, 1)  # it was less, as it turned out
    assert pace.wait_s(1) == pytest.approx(1)
    assert pace.wait_s(100) == 0


def test_no_limit_never_waits() -> None:
    """Without a limit there is nothing to wait for."""
    pace = Pace(None)
    pace.charge(1e9, 0)
    assert pace.wait_s(0) == 0


@pytest.mark.asyncio
async def test_requests_keep_to_the_minute() -> None:
    """In any minute no more requests pass than are allowed, and one."""
    clock = Clock()
    pacer = Pacer(30, None, clock=clock, sleep=clock.sleep)
    times = []
    for _ in range(100):
        await pacer.admit(0)
        times.append(clock.now)
    most = max(sum(start <= t < start + 60 for t in times) for start in times)
    assert most <= 31
    assert times[-1] - times[0] == pytest.approx(99 * 2)


@pytest.mark.asyncio
async def test_tokens_are_settled_by_what_was_used() -> None:
    """What a request used beyond its estimate is waited for by the next one."""
    clock = Clock()
    pacer = Pacer(None, 600, clock=clock, sleep=clock.sleep)
    await pacer.admit(10)
    pacer.settle(40)
    await pacer.admit(10)
    assert clock.now == pytest.approx(1005)


@pytest.mark.asyncio
async def test_a_hold_holds_everybody() -> None:
    """What a server asked one request to wait, all wait."""
    clock = Clock()
    pacer = Pacer(None, None, clock=clock, sleep=clock.sleep)
    pacer.hold(7)
    await pacer.admit(0)
    assert clock.now == pytest.approx(1007)


def test_backoff_doubles_and_leaves_half_to_chance() -> None:
    """Waiting grows up to a minute, and never is the same for all."""
    assert [backoff_s(n, 1, None, lambda: 1.0) for n in (1, 2, 3, 7, 99)] == [1, 2, 4, 60, 60]
    assert backoff_s(3, 1, None, lambda: 0.0) == 2


def test_backoff_is_never_shorter_than_the_server_asked() -> None:
    """Retry-After goes before our own wait, where it is longer."""
    assert backoff_s(1, 1, 30, lambda: 0.0) == 30
    assert backoff_s(1, 1, 30, lambda: 1.0) == pytest.approx(33)
    assert backoff_s(6, 1, 2, lambda: 1.0) == 32
