import itertools
import random
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbench_exec.samples import Key
from mlbench_exec.scores import BOOTSTRAP_ROWS, DISTINCT, OTHER, Tally, pass_at_k, summarize
from mlbench_exec.summary import STATUSES, Summary
from mlbench_exec.verdicts import PASSING, Status, Unjudged, Verdict

CODES: dict[str, Status | None] = {
    "P": "passed",
    "L": "passed_at_limit",
    "F": "failed",
    "A": "wrong_arguments",
    "T": "wrong_type",
    "M": "out_of_memory",
    "K": "killed",
    "S": "skipped",
    ".": None,
}


def verdict(key: Key, index: int, status: Status, **changes: Any) -> Verdict:
    return Verdict(
        github_id=key[0],
        id=key[1],
        index=index,
        status=status,
        passed=status in PASSING,
        arguments_ok=True,
        type_ok=True,
        output_hash="h",
        **changes,
    )


def tally_of(rows: dict[Key, str], **options: Any) -> Tally:
    """A tally of rows written as letters, one an output; a dot has no verdict."""
    tally = Tally(**options)
    for key, letters in rows.items():
        tally.declare(key, len(letters))
        for index, letter in enumerate(letters):
            if status := CODES[letter]:
                tally.add(verdict(key, index, status))
    return tally


def summary_of(*rows: str, split: int | None = None) -> Summary:
    tally = tally_of({(1, number): row for number, row in enumerate(rows)})
    return summarize(tally, split_rows=None if split is None else {1: split})


@pytest.mark.parametrize(
    ("row", "scores"),
    [
        ("PFFFF", (1, 1, 1)),
        ("FLFFF", (0, 1, 1)),
        ("FFFFP", (0, 0, 1)),
        ("ATMKF", (0, 0, 0)),
        ("FPSSS", (0, 1, 1)),
        (".PFFF", (None, 1, 1)),
        ("F.FFF", (0, None, None)),
        ("FFFF.", (0, 0, None)),
        ("F", (0, None, None)),
        ("P", (1, 1, 1)),
        ("FFF", (0, 0, None)),
        ("FFFFFP", (0, 0, 0)),
        (".....", (None, None, None)),
    ],
)
def test_a_row_is_right_when_one_of_its_first_k_is(
    row: str, scores: tuple[int | None, int | None, int | None]
) -> None:
    """Known passes decide, missing verdicts and missing outputs leave it open, else it is 0."""
    line = tally_of({(9, 7): row}).row_score((9, 7))
    assert (line.pass1, line.pass2, line.pass5) == scores
    assert (line.github_id, line.id) == (9, 7)


def _possible(row: str, k: int) -> int | None:
    """By brute force: a row's pass@k, if it is the same whatever its unknown outputs are."""
    padded = row[:k].replace("S", ".").ljust(k, ".")
    outcomes = {
        any(CODES[letter] in PASSING for letter in filled)
        for filled in itertools.product(*("PF" if one == "." else one for one in padded))
    }
    return int(outcomes.pop()) if len(outcomes) == 1 else None


LETTERS = st.text(alphabet="".join(CODES), min_size=1, max_size=7)


@given(LETTERS)
def test_a_row_is_null_exactly_where_unknown_outputs_could_change_it(row: str) -> None:
    """The three-valued rule is the one that trying every possibility gives."""
    tally = tally_of({(1, 1): row})
    for k in (1, 2, 5):
        assert tally.passed((1, 1), k) == _possible(row, k)


@pytest.mark.slow
@given(st.lists(LETTERS, max_size=12), st.integers(0, 5), st.randoms())
def test_totals_are_means_over_the_known_rows(
    rows: list[str], missing: int, order: random.Random
) -> None:
    """Totals equal a plain count over rows, in whatever order the verdicts came."""
    events = [
        verdict((1, number), index, status)
        for number, row in enumerate(rows)
        for index, letter in enumerate(row)
        if (status := CODES[letter])
    ]
    order.shuffle(events)
    tally = Tally()
    for number, row in enumerate(rows):
        tally.declare((1, number), len(row))
    for event in events:
        tally.add(event)
    summary = summarize(tally, split_rows={1: len(rows) + missing})

    for k in (1, 2, 5):
        whole = [_possible(row, k) for row in rows if len(row) >= k]
        known = [one for one in whole if one is not None]
        total = summary.submitted[f"pass{k}"]
        assert total.rate == (sum(known) / len(known) if known else None)
        assert total.passed == sum(known)
        assert total.short == sum(1 for row in rows if len(row) < k and _known(row))
        assert total.unknown == len(rows) - total.rows - total.short
        assert summary.all_rows is not None
        over_all = summary.all_rows[f"pass{k}"]
        assert over_all.passed == sum(_possible(row, k) == 1 for row in rows)
        assert over_all.rows == len(rows) + missing - over_all.unknown
    assert sum(summary.statuses.values()) == len(events) == summary.judged
    assert summary.unjudged == sum(row.count(".") for row in rows)


def _known(row: str) -> bool:
    return "." not in row or bool({"P", "L"} & set(row))


def test_short_rows_do_not_raise_the_mean() -> None:
    """Where a row has one output, its pass@5 is in no mean: only passes could be known."""
    summary = summary_of("P", "F", "F", "F")
    assert summary.eval_pass1 == 0.25
    assert summary.eval_pass5 is None
    assert summary.submitted["pass5"].short == 4


def test_rows_that_were_not_submitted_count_as_nothing_right_over_the_split() -> None:
    """Leaving out rows raises ML-Bench's mean, and not the one over all rows."""
    summary = summary_of("PFFFF", "FFFFF", split=8)
    assert summary.eval_pass1 == 0.5
    assert summary.all_rows is not None
    assert summary.all_rows["pass1"].rate == 0.125
    assert summary.coverage.share == 0.25


def test_missing_verdicts_show_in_the_totals() -> None:
    """A row that infrastructure left open is neither right nor wrong, and is counted."""
    summary = summary_of("PFFFF", "FF...", split=2)
    assert summary.submitted["pass5"].unknown == 1
    assert summary.submitted["pass5"].rows == 1
    assert summary.unjudged == 3


def test_a_second_verdict_on_one_output_is_refused() -> None:
    """Nothing is counted twice."""
    tally = tally_of({(1, 1): "PF"})
    with pytest.raises(ValueError, match=r"output 1 of \(1, 1\) already has a verdict"):
        tally.add(verdict((1, 1), 1, "passed"))
    with pytest.raises(ValueError, match="counts from 0"):
        tally.add(verdict((1, 1), -1, "passed"))
    with pytest.raises(ValueError, match="at most"):
        tally.add(verdict((1, 1), 10**9, "passed"))
    assert tally.judged == 2
    assert tally.status((1, 1), 1) == "failed"
    assert tally.status((1, 1), 5) is None
    assert repr(tally) == "<Tally rows=1 judged=2>"


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_the_unbiased_estimate_is_a_mean_over_subsets(case: tuple[int, int]) -> None:
    """The closed form equals drawing every k of the n outputs."""
    n, c = case
    outputs = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        draws = [any(draw) for draw in itertools.combinations(outputs, k)]
        assert pass_at_k(n, c, k) == pytest.approx(sum(draws) / len(draws))


@pytest.mark.slow
def test_unbiased_estimates_hold_their_interval() -> None:
    """The interval surrounds the mean, narrows with more rows, and is the same each time."""
    few = summary_of(*(["PFFFF", "FFFFF"] * 10)).unbiased
    more = summary_of(*(["PFFFF", "FFFFF"] * 200)).unbiased
    assert few is not None
    assert more is not None
    one, other = few["pass1"], more["pass1"]
    assert one is not None
    assert other is not None
    assert one.rate == other.rate == pytest.approx(0.1)
    assert one.low < other.low < 0.1 < other.high < one.high
    assert few == summary_of(*(["PFFFF", "FFFFF"] * 10)).unbiased


@pytest.mark.slow
def test_bootstrap_and_normal_intervals_agree() -> None:
    """The way that many rows are counted gives what resampling them would."""
    below = summary_of(*(["PFFFF", "FFFFF"] * (BOOTSTRAP_ROWS // 2))).unbiased
    above = summary_of(*(["PFFFF", "FFFFF"] * (BOOTSTRAP_ROWS // 2 + 1))).unbiased
    assert below is not None
    assert above is not None
    for k in ("pass1", "pass2", "pass5"):
        resampled, normal = below[k], above[k]
        assert resampled is not None
        assert normal is not None
        assert resampled.low == pytest.approx(normal.low, abs=0.003)
        assert resampled.high == pytest.approx(normal.high, abs=0.003)


def test_unbiased_estimates_need_every_output() -> None:
    """Skipped outputs make them null, and rows with fewer than k outputs are left out."""
    assert summarize(tally_of({(1, 1): "FFFFF"}, until_pass=True)).unbiased is None
    assert summary_of("PSSSS").unbiased is None
    unbiased = summary_of("PF", "FFFFF").unbiased
    assert unbiased is not None
    assert (one := unbiased["pass5"]) is not None
    assert one.rows == 1
    assert summary_of().unbiased == {"pass1": None, "pass2": None, "pass5": None}


def test_repositories_are_reported_by_name() -> None:
    """Each repository has its own rows, figures and statuses, in the order of github_id."""
    tally = tally_of({(9, 1): "PFFFF", (2, 1): "AAAA.", (9, 2): "FFFFF", (70, 1): "P"})
    repos = summarize(
        tally, split_rows={2: 22, 9: 24}, names={9: "External-Attention-pytorch", 2: "bert"}
    ).repos
    assert list(repos) == ["bert", "External-Attention-pytorch", "github_id 70"]
    nine = repos["External-Attention-pytorch"]
    assert (nine.rows, nine.split_rows, nine.outputs) == (2, 24, 10)
    assert (nine.pass1.rate, nine.statuses["passed"], nine.statuses["failed"]) == (0.5, 1, 9)
    assert (repos["bert"].unjudged, repos["bert"].pass5.unknown) == (1, 1)


def test_reasons_errors_and_empty_passes_are_counted() -> None:
    """What went wrong is grouped, and empty answers that passed are known."""
    tally = Tally()
    tally.add(verdict((1, 1), 0, "failed", error="KeyError"))
    tally.add(verdict((1, 1), 1, "failed", error="KeyError"))
    tally.add(verdict((1, 1), 2, "passed"), empty=True)
    tally.add(verdict((1, 1), 3, "failed"), empty=True)
    for index in (0, 1):
        tally.add_unjudged(
            Unjudged(reason="no image", kind="environment", github_id=2, id=1, index=index)
        )
    tally.add_unjudged(Unjudged(reason="bad JSON", kind="input", place="a.jsonl:3"))
    tally.add_unjudged(Unjudged(reason="not in it", kind="input", github_id=5, id=5))
    summary = summarize(tally)
    assert summary.errors == {"KeyError": 2}
    assert summary.empty_passed == 1
    assert [(one.reason, one.count) for one in summary.unjudged_reasons] == [
        ("no image", 2),
        ("bad JSON", 1),
        ("not in it", 1),
    ]
    assert (summary.counts, summary.outputs, summary.unjudged) == (2, 6, 2)


def test_programs_cannot_fill_the_memory_with_names() -> None:
    """Beyond a number of distinct error names the rest are counted together."""
    tally = Tally()
    for index in range(DISTINCT + 10):
        tally.add(verdict((1, 1), index, "failed", error=f"E{index}"))
    assert len(tally.errors) == DISTINCT + 1
    assert tally.errors[OTHER] == 10


def test_timings_are_sums_over_what_was_executed() -> None:
    """Static verdicts take no time; the run's length is known from starts and ends."""
    tally = Tally()
    tally.add(verdict((1, 1), 0, "wrong_type"))
    for index, second in enumerate((0, 8)):
        tally.add(
            verdict(
                (1, 2),
                index,
                "failed",
                wall_s=2.0,
                counted_s=1.5,
                cpu_s=1.0,
                stalled_s=0.5,
                warm=True,
                attempts=1 + index,
                contended=bool(index),
                started_at=f"2026-01-01T00:00:0{second}Z",
            )
        )
    timings = summarize(tally).timings
    assert (timings.executed, timings.wall_s, timings.executed_per_s) == (2, 10.0, 0.2)
    assert (timings.snippet_wall_s, timings.counted_s, timings.cpu_s) == (4.0, 3.0, 2.0)
    assert (timings.warm, timings.retried, timings.contended) == (2, 1, 1)


@pytest.mark.slow
def test_a_hundred_thousand_outputs_take_little_memory_and_time() -> None:
    """A large run is counted in a few megabytes, and summed up in moments."""
    tracemalloc.start()
    tally = Tally()
    started = time.perf_counter()
    for number in range(20_000):
        for index in range(5):
            status = STATUSES[(number + index) % 7]
            tally.add(verdict((number % 14, number), index, status, error="KeyError"))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    summary = summarize(tally, split_rows={0: 20_000})
    assert summary.judged == 100_000
    assert kept < 12e6
    assert time.perf_counter() - started < 20


def test_an_output_that_is_no_text_belongs_to_its_row() -> None:
    """A null among a row's outputs leaves the row open; a rejected row isn't submitted at all."""
    tally = Tally()
    null = Unjudged(reason="not a string", kind="input", github_id=1, id=1, index=1)
    rejected = Unjudged(reason="not in the dataset", kind="input", github_id=1, id=2)
    tally.add_unjudged(null)
    tally.add_unjudged(rejected)
    assert set(tally.keys()) == {(1, 1)}
    assert tally.passed((1, 1), 2) is None
