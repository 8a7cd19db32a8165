"""Figures: what measurements come to, and the targets they are held to. Pure."""

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One number. `value` is None where it wasn't measured, and `note` then says why."""

    name: str
    value: float | None
    unit: str = ""
    note: str = ""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What a figure is to reach. A ratio's two sides come from the same run."""

    name: str
    value: float | None
    unit: str
    wanted: float
    sense: Literal["at least", "at most", "below"]

    @property
    def is_met(self) -> bool | None:
        """None where it wasn't measured."""
        match self.value, self.sense:
            case None, _:
                return None
            case value, "at least":
                return value >= self.wanted
            case value, "at most":
                return value <= self.wanted
            case value, _:
                return value < self.wanted


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What one measurement came to."""

    figures: tuple[Figure, ...]
    targets: tuple[Target, ...] = ()


def median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else sum(ordered[middle - 1 : middle + 1]) / 2


def ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def steady_rate(starts_s: Sequence[float], *, skip: float = 0.25) -> float | None:
    """Starts a second once the first part of them has gone by: opening sandboxes is not in it."""
    ordered = sorted(starts_s)
    first = int(len(ordered) * skip)
    if len(ordered) - first < 2 or ordered[-1] <= ordered[first]:
        return None
    return (len(ordered) - 1 - first) / (ordered[-1] - ordered[first])
