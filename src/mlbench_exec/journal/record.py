"""Journal: the append-only record of a run in its folder, and how a later run continues it.

Invariant: between two calls `verdicts.jsonl` holds whole lines, and never two for one output.
A machine that stops in the middle of a write leaves a torn last line, which the next run drops.
"""

import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread
import msgspec

from mlbench_exec.errors import RunFolderBroken, RunFolderError
from mlbench_exec.failures import classify
from mlbench_exec.journal.files import Lines, explained, read_lines, sync_folder
from mlbench_exec.journal.manifest import (
    MANIFEST,
    Manifest,
    check_same_run,
    read_manifest,
    write_manifest,
)
from mlbench_exec.samples import Key
from mlbench_exec.scores import OUTPUTS, Tally
from mlbench_exec.submissions import Submission, output_hash
from mlbench_exec.verdicts import Status, Unjudged, Verdict

VERDICTS, UNJUDGED, LOCK = "verdicts.jsonl", "unjudged.jsonl", "lock"
KEPT = "outputs.jsonl"  # what standard input gave
# What --restart removes. The lock stays: another run might hold a removed one.
RUN_FILES = (
    VERDICTS,
    UNJUDGED,
    KEPT,
    MANIFEST,
    "results.jsonl",
    "summary.json",
    "log.jsonl",
    "report.html",
)
SYNC_EVERY_S = 0.5

T = TypeVar("T")


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of a line of verdicts.jsonl, one at a time: none is kept."""

    github_id: int
    id: int
    index: Annotated[int, msgspec.Meta(ge=0, lt=OUTPUTS)]
    status: Status
    output_hash: str
    error: str | None = None
    wall_s: float | None = None
    counted_s: float | None = None
    cpu_s: float | None = None
    stalled_s: float | None = None
    warm: bool = False
    attempts: int = 0
    contended: bool = False
    started_at: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    limit: str | None = None
    stderr: str = ""

    @property
    def key(self) -> Key:
        return (self.github_id, self.id)


class LoadedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run as its folder tells it."""

    manifest: Manifest
    tally: Tally


V = TypeVar("V", Recorded, Verdict)


class Journal:
    """The record of one run, which holds its folder against other runs while it is open.

    Entering it raises `RunFolderError` where the folder is in use, damaged, or belongs to a run
    with other verdict settings or another dataset. `restart` removes what an old run left.
    Entering it calls `known`, in a worker thread, with each verdict of earlier runs in the
    file's order.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        restart: bool = False,
        known: Callable[[Recorded], None] = lambda verdict: None,
        sync_every_s: float = SYNC_EVERY_S,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self._restart = restart
        self._sync_every_s = sync_every_s
        self._lock: int | None = None
        self._place = threading.Lock()  # held while the folder is taken or given back
        self._is_closed = False
        self._known = known
        self._has_executed = False
        self._seen = _Seen()
        self._verdicts = Lines(folder / VERDICTS)
        self._unjudged = Lines(folder / UNJUDGED)
        self._kept = Lines(folder / KEPT)
        self._writing = anyio.CapacityLimiter(1)
        self._syncing = anyio.CapacityLimiter(1)
        self._dirty = anyio.Event()
        self._closing = anyio.Event()
        self._sync_error: RunFolderError | None = None
        self._tasks: anyio.abc.TaskGroup | None = None

    def __repr__(self) -> str:
        return f"<Journal {str(self.folder)!r} verdicts={len(self._seen)}>"

    async def __aenter__(self) -> Self:
        try:
            await self._in_thread(self._open)
            self._tasks = anyio.create_task_group()
            await self._tasks.__aenter__()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._in_thread(self._close)
            raise
        self._tasks.start_soon(self._keep_synced)
        return self

    async def __aexit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        assert self._tasks is not None
        self._closing.set()
        self._dirty.set()
        try:
            # Not told of the body's exception: it leaves this block by itself, in no group.
            await self._tasks.__aexit__(None, None, None)
        finally:
            with anyio.CancelScope(shield=True):
                await self._in_thread(self._sync_and_close)
        if error_type is None and self._sync_error is not None:
            raise self._sync_error

    async def append(self, *verdicts: Verdict) -> None:
        """Write verdicts; when this returns, they outlive this process (not yet the machine).

        Raises `RunFolderError` when the disk refuses them (the file then ends as before), and
        `ValueError` for a second verdict on one output. A cancelled scope waits for that; where
        asyncio itself cancels, they are there or not at all.
        """
        self._raise_sync_error()
        added: list[Verdict] = []
        try:
            for verdict in verdicts:
                self._seen.add(verdict.github_id, verdict.id, verdict.index)
                added.append(verdict)
            await self._append(self._verdicts, verdicts)
            added.clear()
        except anyio.get_cancelled_exc_class():
            added.clear()  # perhaps they are: a second one must not follow in this run
            raise
        finally:
            for verdict in added:
                self._seen.discard(verdict.github_id, verdict.id, verdict.index)

    async def append_unjudged(self, *unjudged: Unjudged) -> None:
        """Write why outputs have no verdict. The file starts empty in each run."""
        self._raise_sync_error()
        await self._append(self._unjudged, unjudged)

    async def keep(self, row: Submission) -> None:
        """Write a row that standard input gave, which nobody could read again."""
        fields = {"github_id": row.github_id, "id": row.id, "output": row.outputs}
        line = json.dumps(fields).encode() + b"\n"  # as ASCII: lone surrogates are kept
        await self._in_thread(lambda: self._append_kept(line))

    async def set_images(self, images: Mapping[str, str]) -> None:
        """Add image digests to the manifest.

        Raises `RunFolderError` where verdicts of this run came from another image of that name.
        """
        for name, digest in images.items():
            before = self.manifest.images.get(name, digest)
            if before != digest and self._has_executed:
                raise RunFolderError(
                    f"{self.folder} holds verdicts reached in {before}, and {name} is {digest} "
                    "now: start over with --restart, or choose another folder with --out"
                )
        merged = {**self.manifest.images, **images}
        if merged != self.manifest.images:
            self.manifest = msgspec.structs.replace(self.manifest, images=merged)
            await self._in_thread(self._write_manifest)

    async def set_not_warm(self, reasons: Mapping[str, tuple[str, ...]]) -> None:
        """Say in the manifest what can't be warm, by environment."""
        merged = {**self.manifest.not_warm, **reasons}
        if merged != self.manifest.not_warm:
            self.manifest = msgspec.structs.replace(self.manifest, not_warm=merged)
            await self._in_thread(self._write_manifest)

    async def _append(self, lines: Lines, outcomes: Sequence[Verdict | Unjudged]) -> None:
        if outcomes:
            content = b"".join(map(_encode, outcomes))
            with anyio.CancelScope(shield=True):  # what somebody took is written
                await self._in_thread(lambda: lines.append(content))
            self._dirty.set()
            await anyio.lowlevel.checkpoint_if_cancelled()

    async def _in_thread(self, function: Callable[[], T]) -> T:
        """One blocking call at a time, seen through to its end also on cancellation."""
        return await anyio.to_thread.run_sync(function, limiter=self._writing)

    async def _keep_synced(self) -> None:
        while not self._closing.is_set():
            await self._dirty.wait()
            with anyio.move_on_after(self._sync_every_s):
                await self._closing.wait()
            self._dirty = anyio.Event()
            await anyio.to_thread.run_sync(self._sync, limiter=self._syncing)

    def _raise_sync_error(self) -> None:
        if self._sync_error is not None:
            raise self._sync_error

    def _sync(self) -> None:
        try:
            self._verdicts.sync()
            self._unjudged.sync()
        except RunFolderError as error:
            self._sync_error = error

    def _open(self) -> None:
        """Where asyncio itself has cancelled the wait for this, `_close` waits until it is done."""
        with self._place:
            if not self._is_closed:
                self._take_place()

    def _take_place(self) -> None:
        with explained(self.folder, "open"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(self.folder)
            if self._restart:
                _remove_run(self.folder)
            stored = read_manifest(self.folder)
            whole_bytes = 0
            executed: set[int] = set()
            for record, end in _read_verdicts(self.folder / VERDICTS, self._seen, Recorded):
                if record.wall_s is not None:
                    executed.add(record.github_id)
                self._known(record)
                whole_bytes = end
            if stored is not None:
                self._has_executed = bool(executed)
                check_same_run(self.folder, stored, self.manifest, executed)
                self.manifest = msgspec.structs.replace(
                    self.manifest,
                    created_at=stored.created_at,
                    resumed_at=(*stored.resumed_at, self.manifest.created_at),
                    images={**stored.images, **self.manifest.images},
                    not_warm=stored.not_warm,
                )
            if stored is None and self._seen:
                raise RunFolderError(
                    f"{self.folder} holds verdicts, but no {MANIFEST} that says what they are "
                    "about: name another folder with --out, or use --restart to judge anew"
                )
            self._verdicts.open(whole_bytes)
            self._unjudged.open(0)
        self._write_manifest()

    def _append_kept(self, line: bytes) -> None:
        if not self._kept.is_open:
            with explained(self._kept.path, "open"):
                self._kept.open_at_end()
        self._kept.append(line)

    def _write_manifest(self) -> None:
        write_manifest(self.folder, self.manifest)

    def _sync_and_close(self) -> None:
        self._sync()
        self._close()

    def _close(self) -> None:
        with self._place:
            self._is_closed = True
            self._verdicts.close()
            self._unjudged.close()
            self._kept.close()
            if self._lock is not None:
                # Unlocked by name: a child that was forked meanwhile may hold the same lock open.
                fcntl.flock(self._lock, fcntl.LOCK_UN)
                os.close(self._lock)
                self._lock = None


def load_run(folder: Path) -> LoadedRun:
    """Everything that a folder's verdicts add up to, also while a run goes on there.

    Reads, and changes nothing. Raises `RunFolderError` where there is no run, or a damaged one.
    A row that was interrupted counts as having the outputs up to its last known one.
    """
    with explained(folder, "read"):
        manifest = read_manifest(folder)
        if manifest is None:
            raise RunFolderError(f"{folder} holds no run: there is no {MANIFEST} in it")
        tally = Tally(until_pass=manifest.until_pass)
        empty = output_hash("")
        for record, _ in _read_verdicts(folder / VERDICTS, _Seen(), Recorded):
            tally.add(record, empty=record.output_hash == empty, failure=classify(record))
        for unjudged in read_unjudged(folder):
            tally.add_unjudged(unjudged)
    return LoadedRun(manifest=manifest, tally=tally)


class _Seen:
    """Which outputs have a verdict: an integer's bits for each row."""

    def __init__(self) -> None:
        self._rows: dict[Key, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, github_id: int, row_id: int, index: int) -> None:
        seen = self._rows.get((github_id, row_id), 0)
        if seen >> index & 1:
            raise ValueError(f"output {index} of {(github_id, row_id)} already has a verdict")
        self._rows[github_id, row_id] = seen | 1 << index
        self._count += 1

    def discard(self, github_id: int, row_id: int, index: int) -> None:
        self._rows[github_id, row_id] &= ~(1 << index)
        self._count -= 1


def read_verdicts(folder: Path) -> Iterator[Verdict]:
    """Each verdict of a folder with all that was seen, one at a time, in the file's order.

    Raises `RunFolderError` for a damaged file; a torn last line is left out.
    """
    with explained(folder, "read"):
        for verdict, _ in _read_verdicts(folder / VERDICTS, _Seen(), Verdict):
            yield verdict


def read_unjudged(folder: Path) -> Iterator[Unjudged]:
    """Each line of unjudged.jsonl, as `read_verdicts` gives those of verdicts.jsonl."""
    with explained(folder, "read"):
        for unjudged, _ in read_lines(folder / UNJUDGED, Unjudged):
            yield unjudged


def _read_verdicts(path: Path, seen: _Seen, line_type: type[V]) -> Iterator[tuple[V, int]]:
    for number, (record, end) in enumerate(read_lines(path, line_type), start=1):
        try:
            seen.add(record.github_id, record.id, record.index)
        except ValueError as error:
            raise RunFolderBroken(
                f"{path}:{number}: {error}: remove one of the two lines, or use --restart to "
                "judge anew"
            ) from None
        yield record, end


def _encode(line: Verdict | Unjudged) -> bytes:
    try:
        return msgspec.json.encode(line) + b"\n"
    except UnicodeEncodeError:  # a lone surrogate, which JSON's UTF-8 has no bytes for
        fields = {
            name: value.encode(errors="replace").decode() if isinstance(value, str) else value
            for name, value in msgspec.structs.asdict(line).items()
        }
        return msgspec.json.encode(fields) + b"\n"


def _take_lock(folder: Path) -> int:
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise RunFolderError(
            f"{folder} is in use by another run: wait for it, or name another folder with --out"
        ) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _remove_run(folder: Path) -> None:
    for name in RUN_FILES:
        (folder / name).unlink(missing_ok=True)
        (folder / f"{name}.tmp").unlink(missing_ok=True)
    sync_folder(folder)
