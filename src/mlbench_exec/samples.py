"""Sample: one row of the benchmark, as the dataset gives it."""

import ast
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import msgspec

from mlbench_exec.errors import InputError

Language = Literal["python", "bash"]
Key = tuple[int, int]  # (github_id, id): unique over a split, while `id` alone is not

BASH_TYPE = "Bash Script"


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One row. `arguments` are the values an output must name, by the dataset's own keys."""

    github_id: int
    id: int
    repository: str  # the last part of the row's GitHub address, for messages
    path: str  # relative to the environment's workdir
    arguments: Mapping[str, str]
    type: str  # "Bash Script", or anything else for Python
    instruction: str = ""
    gold: str = ""

    @property
    def key(self) -> Key:
        return (self.github_id, self.id)

    @property
    def wants(self) -> Language:
        """The language ML-Bench's type check asks for."""
        return "bash" if self.type == BASH_TYPE else "python"


def parse_sample(row: Mapping[str, Any], *, place: str) -> Sample:
    """Read one dataset row; `place` (file and line) leads the message of any `InputError`."""
    try:
        github_id, row_id = _integer(row, "github_id"), _integer(row, "id")
        return Sample(
            github_id=github_id,
            id=row_id,
            repository=str(row.get("github") or "").rstrip("/").rsplit("/", 1)[-1],
            path=str(row.get("path") or ""),
            arguments=parse_arguments(row.get("arguments")),
            type=str(row["type"]),
            instruction=str(row.get("instruction") or ""),
            gold=str(row.get("output") or ""),
        )
    except KeyError as error:
        raise InputError(f"{place}: the row has no {error.args[0]!r} column") from None
    except ValueError as error:
        raise InputError(f"{place}: {error}") from None


def parse_arguments(value: object) -> dict[str, str]:
    """The `arguments` column: a dict, or the text of one (never evaluated, only parsed).

    Raises `ValueError` for anything that is not a dict.
    """
    if isinstance(value, str):
        return dict(_parse_text(value))
    return _as_texts(value)


@lru_cache(maxsize=1024)  # many rows have the same
def _parse_text(text: str) -> dict[str, str]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"arguments are not a literal dict ({type(error).__name__})") from None
    return _as_texts(value)


def _as_texts(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"arguments are a {type(value).__name__}, not a dict")
    return {str(name): str(argument) for name, argument in value.items()}


def _integer(row: Mapping[str, Any], name: str) -> int:
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is {value!r}, not an integer")
    return value
