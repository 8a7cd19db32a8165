"""Files of a run folder: lines that are whole or absent, and errors that say what to do."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from mlbench_exec.errors import RunFolderBroken, RunFolderError

T = TypeVar("T")


class Lines:
    """A file of lines that grows at its end by whole lines only. Every call blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self._whole_bytes = 0
        self._unsynced = False
        # A thread may outlive an await that asyncio itself cancels.
        self._lock = threading.Lock()

    def open(self, whole_bytes: int) -> None:
        """Keep the file's first `whole_bytes`, and drop what follows them."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self.path, flags, 0o644)
        os.ftruncate(self._fd, whole_bytes)
        self._whole_bytes = whole_bytes
        self._unsynced = True

    @property
    def is_open(self) -> bool:
        return self._fd is not None

    def open_at_end(self) -> None:
        """Keep everything; a torn last line is left alone on its line."""
        self.open(self.path.stat().st_size if self.path.exists() else 0)
        if self._whole_bytes and not _ends_a_line(self.path):
            self.append(b"\n")

    def append(self, lines: bytes) -> None:
        """Whole lines: all of them, or an `OSError`, as a `RunFolderError`, and none."""
        with self._lock, explained(self.path, "write"):
            fd = self._opened()
            if os.fstat(fd).st_size != self._whole_bytes:
                os.ftruncate(fd, self._whole_bytes)
            try:
                rest = memoryview(lines)
                while rest:
                    rest = rest[os.write(fd, rest) :]
            except OSError:
                with suppress(OSError):  # if this fails too, the next append tries again
                    os.ftruncate(fd, self._whole_bytes)
                raise
            self._whole_bytes += len(lines)
            self._unsynced = True

    def sync(self) -> None:
        if self._fd is not None and self._unsynced:
            self._unsynced = False
            with explained(self.path, "write"):
                os.fsync(self._fd)

    def close(self) -> None:
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _opened(self) -> int:
        if self._fd is None:
            raise ValueError(f"{self.path} is not open")
        return self._fd


def read_lines(path: Path, line_type: type[T]) -> Iterator[tuple[T, int]]:
    """Each whole line, and where it ends in the file; a torn last line is left out."""
    decode = msgspec.json.Decoder(line_type).decode
    end = 0
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                decoded = decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                if not file.read(1):
                    return
                raise RunFolderBroken(
                    f"{path}:{number}: not a line that mlbench-exec wrote ({error}): remove that "
                    "line to have its output judged again, or use --restart to judge everything "
                    "anew"
                ) from None
            end += len(line)
            yield decoded, end


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class explained:  # noqa: N801 - used as a verb
    """Turns an `OSError` into a `RunFolderError` that says what to do."""

    def __init__(self, path: Path, verb: str) -> None:
        self._path, self._verb = path, verb

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not isinstance(error, OSError):
            return
        path = error.filename or self._path
        message = f"can't {self._verb} {path}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message += (
                ". Every verdict before it is safe: make room, and the same command goes on from "
                "there"
            )
            raise RunFolderBroken(message) from error
        message += ": see to the folder's place and rights, or name another with --out"
        if error.errno == errno.EIO:
            raise RunFolderBroken(message) from error
        raise RunFolderError(message) from error
