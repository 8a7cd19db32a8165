"""Rows: what of the dataset a prompt is made from."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from mlbench_exec import read_rows

__all__ = ["Key", "Row", "Rows"]

Key = tuple[int, int]  # (github_id, id)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One row. A context that the dataset has no column for is None."""

    github_id: int
    id: int
    instruction: str
    oracle: str | None = None
    readme: str | None = None
    segment: str | None = None

    @property
    def key(self) -> Key:
        return (self.github_id, self.id)


class Rows:
    """The rows of a split in the dataset's order, read anew, one by one, each time. Blocks."""

    def __init__(self, source: str, split: str, *, limit: int | None = None) -> None:
        self.source = source
        self.split = split
        self.limit = limit

    def __iter__(self) -> Iterator[Row]:
        for number, row in enumerate(read_rows(self.source, self.split)):
            if number == self.limit:
                return
            yield _row(row)


def _row(row: Mapping[str, Any]) -> Row:
    return Row(
        github_id=row["github_id"],
        id=row["id"],
        instruction=str(row.get("instruction") or ""),
        oracle=_text(row.get("oracle")),
        readme=_text(row.get("readme_content")),
        segment=_text(row.get("bm25_result")),
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)
