"""Folders: small run folders with chosen verdicts, written by the journal itself."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import anyio

from mlbench_exec.journal import DatasetFacts, InputFile, Journal, Manifest, RepoFacts
from mlbench_exec.submissions import output_hash
from mlbench_exec.verdicts import PASSING, Status, Unjudged, Verdict

REPOS = {
    9: RepoFacts(name="External-Attention-pytorch", rows=24),
    2: RepoFacts(name="bert", rows=2),
}
Row = tuple[int, int]


def verdict(row: Row, index: int, status: Status, code: str = "", **fields: Any) -> Verdict:
    return Verdict(
        github_id=row[0],
        id=row[1],
        index=index,
        status=status,
        passed=status in PASSING,
        arguments_ok=status != "wrong_arguments",
        type_ok=status != "wrong_type",
        output_hash=output_hash(code or f"{row} {index}"),
        **fields,
    )


def write_run(
    folder: Path,
    rows: Mapping[Row, Iterable[Status]] | None = None,
    *,
    verdicts: Iterable[Verdict] = (),
    unjudged: Iterable[Unjudged] = (),
    **manifest: Any,
) -> Path:
    """A run folder with these statuses by row, or these very verdicts."""
    told = [
        verdict(row, index, status)
        for row, statuses in (rows or {}).items()
        for index, status in enumerate(statuses)
    ]
    facts: dict[str, Any] = {
        "created_at": "2026-01-02T03:04:05.000+00:00",
        "inputs": (InputFile(path=str(folder / "gone.jsonl"), sha256="0" * 64),),
        "dataset": DatasetFacts(source="gone", split="full", digest="d", repos=REPOS),
        "settings": {},
        "verdict_settings": {"backend": "local", "network": "none"},
    }

    async def write() -> None:
        async with Journal(folder, Manifest(**{**facts, **manifest})) as journal:
            for one in (*told, *verdicts):
                await journal.append(one)
            for reason in unjudged:
                await journal.append_unjudged(reason)

    anyio.run(write)
    return folder
