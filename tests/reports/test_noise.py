"""The chance that a difference is noise, against closed forms and plain enumeration."""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbench_exec.report import noise

fractions = st.fractions(-1, 1, max_denominator=10)


@pytest.mark.parametrize("lost", range(12))
def test_one_way_flips_are_coins_that_all_fell_alike(lost: int) -> None:
    """With flips one way alone the chance is twice that of so many heads."""
    assert noise.mcnemar(0, lost) == pytest.approx(min(1.0, 2 * 0.5**lost))
    assert noise.mcnemar(lost, 0) == noise.mcnemar(0, lost)


def test_even_flips_say_nothing() -> None:
    """As many gained as lost, or nothing flipped: the chance is 1."""
    assert noise.mcnemar(7, 7) == noise.mcnemar(0, 0) == 1.0


def test_a_known_table() -> None:
    """Ten flips of which two go the other way: 2 * (1 + 10 + 45) / 1024."""
    assert noise.mcnemar(8, 2) == pytest.approx(112 / 1024)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_binomial_tail(gained: int, lost: int) -> None:
    """The chance is the two-sided tail of a fair coin, term by term."""
    flipped = gained + lost
    tail = sum(math.comb(flipped, i) for i in range(min(gained, lost) + 1))
    assert noise.mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail / 2**flipped))


@settings(deadline=None, max_examples=50)
@given(st.lists(fractions, max_size=6))
def test_sign_flips_are_all_counted(differences: list[Fraction]) -> None:
    """The chance is the share of all assignments of signs whose sum is as far from 0."""
    start = Fraction()
    seen = abs(sum(differences, start))
    signs = list(itertools.product((1, -1), repeat=len(differences)))
    totals = (
        sum((sign * one for sign, one in zip(row, differences, strict=True)), start)
        for row in signs
    )
    extreme = sum(abs(total) >= seen for total in totals)
    assert noise.sign_flip(differences) == pytest.approx(extreme / len(signs))


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_on_rows_that_pass_or_fail_both_tests_are_one(gained: int, lost: int) -> None:
    """With differences of 1 alone the permutation test is McNemar's."""
    differences = [Fraction(1)] * gained + [Fraction(-1)] * lost
    assert noise.sign_flip(differences) == pytest.approx(noise.mcnemar(gained, lost))


def test_many_rows_are_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where counting would take too long, the normal distribution gives nearly the same."""
    differences = [Fraction((i * 7) % 11 - 4, 10) for i in range(400)]
    exact = noise.sign_flip(differences)
    monkeypatch.setattr(noise, "EXACT_STEPS", 0)
    assert noise.sign_flip(differences) == pytest.approx(exact, abs=0.01)
    assert 0 < exact < 0.1


def test_holm_multiplies_the_smallest_most() -> None:
    """Holm's correction, by hand; never above 1, never out of order."""
    assert noise.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert noise.holm([0.9, 0.8]) == [1.0, 1.0]
    assert noise.holm([]) == []


def test_an_interval_holds_the_mean_and_shrinks() -> None:
    """Equal differences have no spread; more rows make the interval narrower."""
    assert noise.difference_interval([0.25] * 20) == (0.25, 0.25)
    few, many = (noise.difference_interval([0.0, 1.0] * n) for n in (10, 200))
    assert few[0] < many[0] < 0.5 < many[1] < few[1]
