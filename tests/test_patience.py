from mlbench_exec.patience import LONGEST_S, SHORTEST_S, Patience, pause_s


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_what_is_lost_is_waited_for_longer_and_longer_until_the_time_is_up() -> None:
    """The pauses grow to their longest, add up to the bound, and then there is none."""
    clock = Clock()
    patience = Patience(60.0, clock=clock, draw=lambda: 0.5)
    waits = []
    while (wait_s := patience.next_wait_s()) is not None:
        waits.append(wait_s)
        clock.now_s += wait_s
    assert (waits[0], max(waits), sum(waits)) == (SHORTEST_S, LONGEST_S, 60.0)
    assert waits[:-1] == sorted(waits[:-1])
    assert patience.waited_s == 60.0


def test_what_came_back_is_waited_for_anew() -> None:
    """A second loss has the whole time again."""
    clock = Clock()
    patience = Patience(10.0, clock=clock)
    assert patience.next_wait_s() is not None
    clock.now_s += 9.0
    patience.is_back()
    assert patience.waited_s == 0.0
    assert patience.next_wait_s() is not None
    clock.now_s += 9.0
    assert patience.next_wait_s() is not None


def test_attempts_are_spread_and_further_and_further_apart() -> None:
    """The first comes at once; two engines don't try again at the same moment."""
    assert pause_s(1) == 0.0
    assert pause_s(2, lambda: 0.0) < pause_s(2, lambda: 1.0) < pause_s(3, lambda: 0.0) < 1.0
