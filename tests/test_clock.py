"""The fair clock's rule: what was stolen from a program, from what was seen of it."""

import random
import statistics

import pytest

from mlbench_exec.agent.clock import FairClock, Sampled, reachable


def run_clock(
    intervals: int,
    dt: float,
    ran: float,
    delayed: float,
    ready: tuple[int, int],
    cpus: float = 2.0,
    *,
    used: float | None = None,
    is_complete: bool = True,
    own_delay: float = 0.0,
    runners: int | None = None,
    worked: float | None = None,
) -> FairClock:
    """So many equal intervals; `used` is the cgroup's count, by default all that was seen."""
    clock = FairClock()
    for _ in range(intervals):
        clock.add(
            dt,
            ran,
            delayed,
            ready,
            cpus,
            runners=max(ready) if runners is None else runners,
            worked_s=ran if worked is None else worked,
            used_s=ran if used is None else used,
            is_complete=is_complete,
            own_delay_s=own_delay,
        )
    return clock


def test_a_thread_that_gets_a_sixteenth_of_a_core_is_counted_by_what_it_ran() -> None:
    """Its waits don't count, however late the kernel tells of them."""
    clock = FairClock()
    for number in range(320):  # 16 s of wall-clock time, 1 s of it on a core
        delayed = 0.15 - 0.0125 if number % 4 == 3 else 0.05 / 3 * 0.7125
        clock.add(
            0.05,
            0.05 / 16,
            delayed,
            (1, 1),
            2.0,
            runners=1,
            worked_s=0.05 / 16,
            used_s=0.05 / 16,
            is_complete=True,
            own_delay_s=0.0,
        )
    total = 80 * (0.1375 + 3 * 0.05 / 3 * 0.7125)
    assert clock.stalled_s == pytest.approx(min(total, 16 - 0.5))
    assert clock.ran_s == pytest.approx(1.0)


@pytest.mark.parametrize("threads", [1, 2, 4, 9])
def test_waiting_for_ones_own_threads_is_not_stolen(threads: int) -> None:
    """A program alone on its two CPUs counts as long as the clock on the wall."""
    ran = min(threads, 2) * 0.05
    clock = run_clock(40, 0.05, ran, threads * 0.05 - ran, (threads, threads))
    assert clock.stalled_s == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("threads", "speed"), [(1, 1), (2, 2), (6, 2)])
def test_threads_that_could_run_side_by_side_are_counted_side_by_side(
    threads: int, speed: int
) -> None:
    """With a tenth of what they could use, a tenth of the time counts."""
    ran = 0.005 * speed
    clock = run_clock(200, 0.05, ran, threads * 0.05 - ran, (threads, threads))
    assert 10 - clock.stalled_s == pytest.approx(1.0)


def test_what_a_limit_of_its_own_holds_back_counts() -> None:
    """Half a CPU, used to the full, is nothing stolen; a quarter instead is half stolen."""
    assert run_clock(40, 0.05, 0.025, 0.025, (1, 1), 0.5).stalled_s == pytest.approx(0, abs=1e-9)
    assert run_clock(40, 0.05, 0.0125, 0.0375, (1, 1), 0.5).stalled_s == pytest.approx(1.0)


@pytest.mark.parametrize(("worked", "expected"), [(0.01, 4.0), (0.02, 2.0), (0.03, 2.0)])
def test_what_two_threads_did_says_that_they_were_two(worked: float, expected: float) -> None:
    """Though a look takes the CPU from one, and finds the other at its lock, time after time."""
    clock = run_clock(
        800, 0.01, 0.005, 0.005, (1, 1), runners=2, worked=worked, own_delay=0.005,
        is_complete=False,
    )  # fmt: skip
    assert 8 - clock.stalled_s == pytest.approx(expected, abs=0.1)


def test_two_threads_on_two_cpus_lose_nothing_though_one_is_seen() -> None:
    """They ran for twice the time that passed: no time is given back that was stolen before."""
    busy = {"own_delay": 0.01, "is_complete": False}
    clock = run_clock(800, 0.01, 0.02, 0.0, (1, 1), runners=2, **busy)  # type: ignore[arg-type]
    assert clock._stolen_s == pytest.approx(0.0, abs=0.2)


def test_sleep_counts() -> None:
    """A program that wants no CPU loses nothing, however busy the machine is."""
    clock = run_clock(40, 0.05, 0.0, 0.0, (0, 0), own_delay=0.04)
    assert clock.stalled_s == 0
    assert clock.uncertain_s == 0


def test_children_that_were_never_seen_count_by_the_cgroup() -> None:
    """They take their figures with them; the cgroup keeps what they ran, the ends say the rest."""
    clock = run_clock(400, 0.05, 0.0005, 0.03, (1, 1), used=0.005, is_complete=False)
    assert 20 - clock.stalled_s == pytest.approx(2.0, abs=0.1)
    assert clock.ran_s == pytest.approx(2.0)


def test_without_a_cgroup_unseen_children_make_the_clock_uncertain() -> None:
    """What may have been stolen from them is not corrected, but said."""
    clock = FairClock()
    for _ in range(100):
        clock.add(
            0.05,
            0.0005,
            0.01,
            (1, 1),
            2.0,
            runners=1,
            worked_s=0.0005,
            used_s=None,
            is_complete=False,
            own_delay_s=0.0,
        )
    assert clock.stalled_s == pytest.approx(1.0)
    assert clock.uncertain_s > 3.0


def test_what_children_do_after_a_long_sleep_makes_the_clock_uncertain() -> None:
    """They began at any moment since the look before, unless that was a moment ago."""
    for dt, ready, expected in ((0.1, (0, 0), 0.25), (0.1, (1, 1), 0.0), (0.05, (0, 0), 0.0)):
        clock = run_clock(10, dt, 0, 0, ready, used=0.01, is_complete=False, own_delay=dt)
        sampled = 2 * clock._sampled.deviation_s
        slack = min(0.05 + 0.05 * 0.1, clock.stalled_s)
        assert clock.uncertain_s - sampled - slack == pytest.approx(expected), (dt, ready)


def test_a_quiet_machine_leaves_nothing_to_correct() -> None:
    """Children that come and go cost nothing of the clock's certainty where nobody waits."""
    clock = run_clock(40, 0.05, 0.001, 0.0, (1, 0), used=0.03, is_complete=False, own_delay=5e-5)
    assert clock.stalled_s == pytest.approx(0.0, abs=1e-9)
    assert clock.uncertain_s == pytest.approx(0.0, abs=1e-9)


def test_where_idleness_was_sampled_on_a_busy_machine_the_clock_says_how_uncertain_it_is() -> None:
    """The more often a program with children is found idle, the less is known."""
    steady = run_clock(100, 0.05, 0.0005, 0.03, (1, 1), used=0.005, is_complete=False)
    changing = run_clock(100, 0.05, 0.0005, 0.03, (1, 0), used=0.005, is_complete=False)
    assert steady.uncertain_s < 0.2 < changing.uncertain_s


def test_no_program_gets_more_cpu_time_than_its_limit_on_all_its_cpus() -> None:
    """Whatever was waited for: the clock counts at least the CPU time by the CPUs allowed."""
    clock = run_clock(100, 0.05, 0.05, 0.9, (1, 1))
    assert 5 - clock.stalled_s >= 2.5 - 1e-9


@pytest.mark.parametrize(
    ("masks", "cpus", "expected"),
    [
        ([], 2.0, 2.0),
        ([{0, 1}], 2.0, 2.0),
        ([{0}, {0}, {0}], 2.0, 1.0),
        ([{0}, {0}, {0}, {0, 1, 2, 3}], 4.0, 2.0),
        ([{0}, {1}], 2.0, 2.0),
        ([{0, 1, 2, 3}] * 8, 1.5, 1.5),
    ],
)
def test_threads_reach_the_cpus_that_they_are_pinned_to(
    masks: list[set[int]], cpus: float, expected: float
) -> None:
    """Threads that share one core on purpose wait for each other, not for somebody else."""
    assert reachable([frozenset(mask) for mask in masks], cpus) == expected


@pytest.mark.parametrize(
    ("ready_ends", "least", "most"),
    [
        ([2] * 100, 0.0, 0.0),
        ([0, 0, 1, 2, 2, 2, 1, 0], 0.004, 0.01),
        ([0, 1, 2, 1] * 25, 0.04, 0.06),
    ],
    ids=["steady", "slow", "like coins"],
)
def test_what_is_sampled_says_how_far_off_it_is(
    ready_ends: list[int], least: float, most: float
) -> None:
    """Ends like coins are far off, a change now and then is not, and steadiness not at all."""
    sampled = Sampled()
    for count in ready_ends:
        sampled.add(0.01, count)
    assert least <= sampled.deviation_s <= most


def test_a_sampled_time_is_within_its_deviation() -> None:
    """Looks at a program that turns on and off at random, against the time that it was on."""
    chance = random.Random(7)
    off = []
    for mean_s in (0.002, 0.01, 0.05):
        for _ in range(60):
            sampled, estimate, truth, is_on, now, change = Sampled(), 0.0, 0.0, True, 0.0, 0.0
            was_on = True
            while now < 1.0:
                end = now + 0.01
                while change < end:
                    truth += is_on * (change - now)
                    now, is_on = change, not is_on
                    change += chance.expovariate(1 / mean_s)
                truth += is_on * (end - now)
                now = end
                estimate += 0.01 * (was_on + is_on) / 2
                sampled.add(0.01, was_on + is_on)
                was_on = is_on
            off.append(abs(estimate - truth) / max(sampled.deviation_s, 1e-9))
    assert sum(one > 2 for one in off) / len(off) < 0.1
    assert statistics.median(off) > 0.3  # nor is it much too careful
