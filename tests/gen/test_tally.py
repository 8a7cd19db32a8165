"""Tally: what a generation cost, by model, and what prices are believed."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlbench_exec import InputError
from mlbench_gen.progress import last_words
from mlbench_gen.record import _joined
from mlbench_gen.tally import Price, Tally, load_prices

PRICES = {"small": Price(input=1.0, output=2.0), "large": Price(input=10.0, output=30.0)}


class Clock:
    """A clock that is set by hand."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def line(model: str | None, usage: list[int] | None, kind: str = "answered") -> dict[str, Any]:
    return {"model": model, "usage": usage, "details": [{"kind": kind}]}


def test_the_cost_is_the_sum_over_models() -> None:
    """Each model's tokens are paid at its own price, earlier runs' tokens too."""
    tally = Tally()
    tally.prices = PRICES
    tally.had(line("small", [500_000, 0]))
    tally.replied(line("small", [500_000, 250_000]))
    tally.replied(line("large", [0, 100_000]))
    report = tally.usage_report()
    assert report["models"]["small"] == {
        "prompt_tokens": 1_000_000,
        "completion_tokens": 250_000,
        "cost": 1.5,
    }
    assert report["models"]["large"]["cost"] == 3.0
    assert report["cost"] == tally.cost() == 4.5
    assert "cost 4.50" in tally.words()
    assert "cost 4.50" in last_words(tally)


def test_a_row_of_two_models_is_paid_to_both() -> None:
    """Also when it's read again, and taken out again; replies without usage stay counted."""
    fields = {"answers": ["a"], "requests": 1}
    parts = [
        line("old", [100, 50]) | fields,
        line("new", [100, 70]) | fields,
        line("new", None) | fields,
    ]
    joined = json.loads(json.dumps(_joined([_joined(parts[:2]), parts[2]])))
    assert joined["usage"] == [200, 120]
    tally = Tally()
    tally.had(joined)
    models = tally.usage_report()["models"]
    assert {name: one["completion_tokens"] for name, one in models.items()} == {
        "old": 50,
        "new": 70,
    }
    assert tally.uncounted == 1
    tally.had(joined, times=-1)
    assert not any(one["prompt_tokens"] for one in tally.usage_report()["models"].values())
    assert tally.uncounted == 0


def test_a_model_without_a_price_is_named_instead_of_a_cost() -> None:
    """No sum is shown that lacks a part; the models that have prices keep their own."""
    tally = Tally()
    tally.prices = PRICES
    tally.replied(line("small", [1_000_000, 0]))
    tally.replied(line("small-2026-01", [1_000_000, 0]))
    assert tally.cost() is None
    assert "cost 1" not in last_words(tally)
    assert "no cost: the price file has no 'small-2026-01'" in last_words(tally)
    report = tally.usage_report()
    assert report["cost"] is None
    assert [report["models"][name]["cost"] for name in ("small", "small-2026-01")] == [1.0, None]


def test_without_a_price_file_nothing_is_said_of_costs() -> None:
    """Who gives no prices isn't told that they are missing."""
    tally = Tally()
    tally.replied(line("small", [10, 10]))
    assert "cost" not in last_words(tally)
    assert tally.usage_report()["cost"] is None


def test_replies_that_tell_no_tokens_are_counted() -> None:
    """Where the server gave no usage, the last words say how often."""
    tally = Tally()
    tally.replied(line("small", [10, 10]))
    tally.replied(line(None, None))
    assert "1 replies came without usage" in last_words(tally)
    assert tally.usage_report()["replies_without_usage"] == 1


def test_tokens_are_counted_by_the_second() -> None:
    """The rate is that of this run, and of what models wrote."""
    clock = Clock()
    tally = Tally(clock)
    tally.had(line("small", [5, 1000]))
    tally.replied(line("small", [5, 300]))
    clock.now_s = 2.0
    assert tally.tokens_per_s() == 150
    assert "150 tokens/s" in tally.words()


def test_a_price_file_gives_prices_by_model(tmp_path: Path) -> None:
    """A table for each model, by the name that its server gives it."""
    path = tmp_path / "prices.toml"
    path.write_text('["gpt-4o-2024-08-06"]\ninput = 2.5\noutput = 10\n')
    assert load_prices(path) == {"gpt-4o-2024-08-06": Price(input=2.5, output=10.0)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[small\ninput = 1\n", "line 1"),
        (b"[small]\ninput = 1\n", "output"),
        (b"[small]\ninput = 1\noutput = 'free'\n", "[small]: Expected `float`"),
        (b"[small]\ninput = 1\noutput = 2\ncached = 0.5\n", "cached"),
        (b"[gpt-4.1]\ninput = 1\noutput = 2\n", "[gpt-4]: "),
        (b"[small]\ninput = -1\noutput = 2\n", "from 0 upward"),
        (b"[small]\ninput = nan\noutput = 2\n", "from 0 upward"),
        (b"input = 1\noutput = 2\n", "[input]: "),
        (b"\xff\xfe", "can't decode"),
        (None, "No such file"),
    ],
)
def test_a_malformed_price_file_is_named_with_the_place(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    """The message has the file, the place in it, and how it is written."""
    path = tmp_path / "prices.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_prices(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert reason in said
    assert 'write tables like ["model"]' in said
