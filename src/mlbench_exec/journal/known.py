"""Known: what earlier runs have judged, in some bytes for each output."""

import struct
from collections.abc import Iterator, Mapping

from mlbench_exec.samples import Key

_ENTRY = struct.Struct("<I?32s")  # index, whether it passed, the output's hash


class Known(Mapping[Key, Mapping[int, bool]]):
    """By row and index: whether it passed. A run of many outputs holds little for each."""

    def __init__(self) -> None:
        self._rows: dict[Key, bytes] = {}
        self.outputs = 0

    def __repr__(self) -> str:
        return f"<Known {self.outputs} outputs of {len(self)} rows>"

    def add(self, key: Key, index: int, *, passed: bool, output_hash: str) -> None:
        entry = _ENTRY.pack(index, passed, output_hash.encode())
        self._rows[key] = self._rows.get(key, b"") + entry
        self.outputs += 1

    def hashes(self, key: Key) -> list[tuple[int, str]]:
        """Each judged output of a row, with its hash (or the first 32 bytes of one)."""
        entries = _ENTRY.iter_unpack(self._rows.get(key, b""))
        return sorted((index, text.rstrip(b"\0").decode()) for index, _, text in entries)

    def __getitem__(self, key: Key) -> Mapping[int, bool]:
        return {index: passed for index, passed, _ in _ENTRY.iter_unpack(self._rows[key])}

    def __iter__(self) -> Iterator[Key]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
