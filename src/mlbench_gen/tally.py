"""Tally: what a generation has asked, got and cost, for the progress line and the last words."""

import math
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from mlbench_exec import InputError

__all__ = ["Price", "Tally", "load_prices"]

MILLION = 1_000_000


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model costs, for a million tokens. The currency is that of the file."""

    input: float
    output: float

    def __post_init__(self) -> None:
        if not (0 <= self.input < math.inf and 0 <= self.output < math.inf):
            raise ValueError("a price is a number from 0 upward")

    def of(self, asked: int, written: int) -> float:
        """What so many tokens of prompts and answers cost."""
        return (asked * self.input + written * self.output) / MILLION


def load_prices(path: Path) -> dict[str, Price]:
    """Prices by model, from a TOML file of `["model"] input = …, output = …`.

    Raises `InputError`.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _no_prices(path, str(error)) from None
    return {model: _price(path, model, table) for model, table in tables.items()}


def _price(path: Path, model: str, table: object) -> Price:
    try:
        return msgspec.convert(table, Price)
    except msgspec.ValidationError as error:
        raise _no_prices(path, f"[{model}]: {error}") from None


def _no_prices(path: Path, why: str) -> InputError:
    return InputError(
        f'{path}: is no price file ({why}): write tables like ["model"], the name in quotes, with '
        "input and output, in money for a million tokens"
    )


def usage_by_model(line: Mapping[str, Any]) -> dict[str, list[int]]:
    """Tokens of the prompts and the answers; a row's replies may come from several models."""
    model: str = line["model"] or "unknown"
    found: dict[str, list[int]] = line.get("usage_by_model") or {model: line["usage"] or [0, 0]}
    return found


def without_usage(line: Mapping[str, Any]) -> int:
    """For how many of its replies the server told no tokens."""
    return int(line.get("without_usage", line["usage"] is None))


class Tally:
    """Counts. `rows` is None where their number isn't known."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.rows: int | None = None
        self.done = 0  # rows with all their answers, earlier runs' included
        self.failed = 0
        self.under_way = 0
        self.requests = 0  # sent by this run
        self.retries: Counter[str] = Counter()  # by cause
        self.kinds: Counter[str] = Counter()  # of answers, earlier runs' included
        self.prices: Mapping[str, Price] = {}
        self.uncounted = 0  # replies for which the server told no tokens, earlier runs' included
        self._tokens: dict[str, list[int]] = {}
        self._written = 0  # tokens that this run got
        self._clock = clock
        self._started = clock()

    def had(self, line: Mapping[str, Any], *, times: int = 1) -> None:
        """Count a line of an earlier run; -1 times takes it out again."""
        for detail in line["details"]:
            self.kinds[detail["kind"]] += times
        self.uncounted += times * without_usage(line)
        for model, counts in usage_by_model(line).items():
            tokens = self._tokens.setdefault(model, [0, 0])
            for place, count in enumerate(counts):
                tokens[place] += times * count

    def replied(self, line: Mapping[str, Any]) -> None:
        """Count a reply of this run."""
        self.had(line)
        self._written += line["usage"][1] if line["usage"] else 0

    def cost(self) -> float | None:
        """What the tokens cost; None without a price for one of the models."""
        if not self._tokens or not all(model in self.prices for model in self._tokens):
            return None
        return sum(self.prices[model].of(*tokens) for model, tokens in self._tokens.items())

    def without_price(self) -> list[str]:
        """Models that the price file, where one was given, doesn't name."""
        return sorted(self._tokens.keys() - self.prices.keys()) if self.prices else []

    def tokens_per_s(self) -> float | None:
        """Tokens that models wrote in this run, by the second; None in its first second."""
        passed = self._clock() - self._started
        return self._written / passed if passed >= 1 and self._written else None

    def words(self) -> str:
        """The numbers of the moment, in words for a progress line."""
        parts = [
            f"answered {self.done}" if self.rows is None else f"answered {self.done}/{self.rows}"
        ]
        if self.under_way:
            parts.append(f"{self.under_way} asked")
        return "  ".join(parts + self.details())

    def details(self) -> list[str]:
        """What there is to say beside the number of rows."""
        parts = []
        if rate := self.tokens_per_s():
            parts.append(f"{rate:.0f} tokens/s")
        if (cost := self.cost()) is not None:
            parts.append(f"cost {cost:.2f}")
        if self.retries:
            parts.append(f"retries {self.retries.total()}")
        if self.failed:
            parts.append(f"failed {self.failed}")
        return parts

    def usage_report(self) -> dict[str, Any]:
        """The content of usage.json: over all runs into the folder."""
        models: dict[str, Any] = {}
        for model, tokens in sorted(self._tokens.items()):
            price = self.prices.get(model)
            models[model] = {
                "prompt_tokens": tokens[0],
                "completion_tokens": tokens[1],
                "cost": price and price.of(*tokens),
            }
        return {
            "models": models,
            "replies_without_usage": self.uncounted,
            "answers": dict(+self.kinds),
            "cost": self.cost(),
        }
