"""The fair clock: from what was seen between two looks to the time that was stolen. Pure.

In an interval, `ready` threads wanted to run, R seconds of CPU time were got and D seconds were
waited for. With p the mean number of ready threads and c the CPUs they may use, the program was
active for (R + D) / p, and would have needed R / min(p, c) if nobody else had been there: what is
between the two was stolen. It is linear in D, which the kernel tells in lumps, when a wait is over.

Threads that were not there at both looks take their figures with them. Where the machine is busy,
such an interval is taken as active by its two ends, and R comes from the cgroup, which forgets
nothing; what that can be wrong by is kept as uncertainty. docs/fair-clock.md has the theory.
"""

from __future__ import annotations

import math

PARALLEL_S = 0.1  # over which what ran and waited tells how many threads were ready
BUSY = 0.05  # below this share of waiting nobody is in the way
MEMORY_S = 0.3  # over which that share is averaged
CROWDED = 0.3  # above it waits are longer than looks are apart
SLACK_S = 0.05  # a tick: waits that are not over, times that are told late
SLACK = 0.05  # of the CPU time: caches and memory shared with others, time stolen from the machine


class FairClock:
    """Adds up what was stolen. `has_usage`: `used_s` is the cgroup's own count, None elsewhere."""

    def __init__(self) -> None:
        self.busy = 0.0  # share of waiting, lately
        self.ran_s = 0.0
        self.stalled_s = 0.0  # in which the program could have run and was not let
        self.uncertain_s = 0.0  # what that may be wrong by; next to nothing where nobody was there
        self._parallel = 0.0  # threads that ran or waited to, lately
        self._wall_s = 0.0
        self._stolen_s = 0.0
        self._needed_s = 0.0  # for what it ran, if nobody else had been there
        self._floor_s = 0.0  # no program needs less than its CPU time on all its CPUs
        self._sampled = Sampled()
        self._unknown_s = 0.0
        self._single_s = math.inf  # since when there is one thread only

    def add(
        self,
        dt: float,
        ran_s: float,
        delayed_s: float,
        ready: tuple[int, int],
        cpus: float,
        *,
        runners: int,
        worked_s: float,
        used_s: float | None,
        is_complete: bool,
        own_delay_s: float,
    ) -> None:
        """One interval of `dt` seconds.

        `ran_s` and `delayed_s` are sums over the threads that were seen; `ready` how many wanted
        to run at either end; `cpus` how many these may use. `worked_s` is what they ran and waited
        for to run more than a moment. `is_complete`: no thread came or went
        and none was missed. `own_delay_s`: what the observer itself waited for a CPU.
        """
        share = max(0.0, min(1.0, (delayed_s + own_delay_s) / dt))
        self.busy += (share - self.busy) * dt / (dt + MEMORY_S)
        threads = [float(count) for count in ready if count]
        parallel = sum(threads) / len(threads) if threads else 1.0
        used = ran_s if is_complete or used_s is None else max(ran_s, used_s)
        parallel = max(parallel, self._at_least(dt, max(used, worked_s), runners, is_complete))
        speed = min(parallel, cpus)
        self._single_s = self._single_s + dt if is_complete and runners < 2 else 0.0
        is_told = self._single_s > MEMORY_S or self.busy < CROWDED
        if self.busy < BUSY or (is_complete and is_told):
            stolen = (ran_s + delayed_s) / parallel - ran_s / speed
            if not is_complete:  # what is new may have waited before this interval
                stolen = min(stolen, dt)
        else:
            active = dt * len(threads) / 2
            stolen = active - used / speed
            self._sampled.add(dt, len(threads))
            if used_s is None:  # all that is missing may be CPU time
                seen = delayed_s / parallel
                self._unknown_s += max(0.0, stolen - seen)
                stolen = seen
            if not ready[0]:  # what came after a long sleep began at any moment since
                self._unknown_s += max(0.0, dt - SLACK_S) / 2
        self.ran_s += used
        self._needed_s += used / speed
        self._wall_s += dt
        self._stolen_s += stolen
        self._floor_s += used / cpus
        self.stalled_s = max(0.0, min(self._stolen_s, self._wall_s - self._floor_s))
        slack = min(SLACK_S + SLACK * self._needed_s, self.stalled_s)
        self.uncertain_s = slack + 2 * self._sampled.deviation_s + self._unknown_s

    def _at_least(self, dt: float, worked_s: float, runners: int, is_complete: bool) -> float:
        """How many threads were ready lately at least, whatever was seen at the looks.

        An observer that takes a CPU from one thread may find the other one at its lock.
        """
        self._parallel += (worked_s / dt - self._parallel) * dt / (dt + PARALLEL_S)
        return min(self._parallel, runners) if is_complete else self._parallel

    @property
    def is_sampling(self) -> bool:
        """Whether the result depends on how often one looks."""
        return self.busy >= BUSY and self._single_s == 0


class Sampled:
    """How far off the time is that was taken from the two ends of intervals.

    Where the ends say as little of each other as coins, an interval with one of them ready was
    active for all of it or for nothing, which is dt / sqrt(2) off. Where what happens is slower
    than that, a change came once, at any moment: dt / sqrt(12).
    """

    def __init__(self) -> None:
        self._ends = [0, 0, 0]  # intervals with none, one or both of them ready
        self._changing = 0.0  # sum of dt² where one was

    def add(self, dt: float, ready_ends: int) -> None:
        self._ends[ready_ends] += 1
        if ready_ends == 1:
            self._changing += dt * dt

    @property
    def deviation_s(self) -> float:
        """The standard deviation of the sum."""
        count = sum(self._ends)
        if not count:
            return 0.0
        share = (self._ends[1] / 2 + self._ends[2]) / count
        by_chance = 2 * share * (1 - share) * count  # changes, if the ends were coins
        likeness = min(1.0, self._ends[1] / by_chance) if by_chance else 1.0
        return math.sqrt(self._changing * (1 + 5 * likeness) / 12)


def reachable(masks: list[frozenset[int]], cpus: float) -> float:
    """How many CPUs threads with these affinity masks can use at once, `cpus` at most."""
    if not masks:
        return cpus
    most = float(len(frozenset().union(*masks)))
    for mask in set(masks):
        outside = sum(not other <= mask for other in masks)
        most = min(most, len(mask) + outside)
    return min(most, cpus)
