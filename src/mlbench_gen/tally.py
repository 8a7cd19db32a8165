"""Tally: what a generation has asked, got and cost, for the progress line and the last words."""

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


def load_prices(path: Path) -> dict[str, Price]:
    """Prices by model, from a TOML file of `["model"] input = …, output = …`.

    Raises `InputError`.
    """
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), dict[str, Price])
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InputError(
            f'{path}: is no price file ({error}): write tables like ["model"] with input and '
            "output, in money for a million tokens"
        ) from None


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
        self._tokens: dict[str, list[int]] = {}
        self._written = 0  # tokens that this run got
        self._clock = clock
        self._started = clock()

    def had(self, line: Mapping[str, Any]) -> None:
        """Count a line of an earlier run."""
        self.kinds.update(detail["kind"] for detail in line["details"])
        tokens = self._tokens.setdefault(line["model"] or "unknown", [0, 0])
        for place, count in enumerate(line["usage"] or (0, 0)):
            tokens[place] += count

    def replied(self, line: Mapping[str, Any]) -> None:
        """Count a reply of this run."""
        self.had(line)
        self._written += line["usage"][1] if line["usage"] else 0

    def cost(self) -> float | None:
        """What the tokens cost; None without a price for one of the models."""
        if not self._tokens or not all(model in self.prices for model in self._tokens):
            return None
        return sum(
            (tokens[0] * self.prices[model].input + tokens[1] * self.prices[model].output) / MILLION
            for model, tokens in self._tokens.items()
        )

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

    def usage_report(self, prices: Mapping[str, Price]) -> dict[str, Any]:
        """The content of usage.json: over all runs into the folder."""
        self.prices = prices or self.prices
        models: dict[str, Any] = {}
        for model, (asked, written) in sorted(self._tokens.items()):
            price = self.prices.get(model)
            models[model] = {
                "prompt_tokens": asked,
                "completion_tokens": written,
                "cost": price and (asked * price.input + written * price.output) / MILLION,
            }
        return {"models": models, "answers": dict(self.kinds), "cost": self.cost()}
