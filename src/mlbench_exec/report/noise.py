"""Noise: how often chance alone would make two runs differ as much as they do. Pure functions.

Both tests are paired: the same rows under both runs. Both are exact where that is cheap, two-sided,
and ask how often a difference at least as large comes about if, for each row, it were a coin's toss
which of the two runs got the better result.
"""

import math
import random
from collections.abc import Sequence
from fractions import Fraction

__all__ = ["difference_interval", "holm", "mcnemar", "sign_flip"]

EXACT_STEPS = 4_000_000  # above it, a sum of so many terms is normal for every purpose
RESAMPLES = 2000


def mcnemar(gained: int, lost: int) -> float:
    """The exact McNemar test: of the rows that flipped, were the two ways equally likely?

    1.0 where none flipped.
    """
    flipped, fewer = gained + lost, min(gained, lost)
    if flipped == 0:
        return 1.0
    term, tail = 1, 1
    for i in range(1, fewer + 1):
        term = term * (flipped - i + 1) // i
        tail += term
    return min(1.0, 2 * tail / (1 << flipped))


def sign_flip(differences: Sequence[Fraction]) -> float:
    """The paired permutation test on the sum of the rows' differences.

    Exact, by counting all sums that flips of signs can give; by the normal distribution where that
    would take too long.
    """
    scale = math.lcm(*(one.denominator for one in differences)) if differences else 1
    steps = [abs(int(one * scale)) for one in differences if one]
    seen = abs(sum(int(one * scale) for one in differences))
    if not steps:
        return 1.0
    if len(steps) * sum(steps) > EXACT_STEPS:
        return math.erfc(seen / math.sqrt(2 * math.fsum(step * step for step in steps)))
    ways = {0: 1}
    for step in steps:
        grown: dict[int, int] = {}
        for total, count in ways.items():
            for moved in (total - step, total + step):
                grown[moved] = grown.get(moved, 0) + count
        ways = grown
    extreme = sum(count for total, count in ways.items() if abs(total) >= seen)
    return extreme / (1 << len(steps))


def holm(chances: Sequence[float]) -> list[float]:
    """Holm's correction: of many comparisons some look remarkable by chance alone."""
    adjusted = [0.0] * len(chances)
    highest = 0.0
    order = sorted(range(len(chances)), key=lambda position: chances[position])
    for rank, position in enumerate(order):
        highest = max(highest, min(1.0, (len(chances) - rank) * chances[position]))
        adjusted[position] = highest
    return adjusted


def difference_interval(differences: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean difference: a percentile bootstrap, always the same draws."""
    n = len(differences)
    choose = random.Random(20210707).choices
    means = sorted(math.fsum(choose(differences, k=n)) / n for _ in range(RESAMPLES))
    return means[round(0.025 * (RESAMPLES - 1))], means[round(0.975 * (RESAMPLES - 1))]
