"""Files: lines appended durably and read back, and files replaced whole."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlbench_exec import InputError, RunFolderBroken

__all__ = ["Appended", "Line", "explained", "replace", "whole_lines"]

Line = dict[str, Any]


class Appended:
    """A file that is only ever added to. Methods block.

    Nothing is buffered: what fails to be written is not written by a later call either.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o644)
        self.size_bytes = os.fstat(self._descriptor).st_size

    def append(self, line: bytes, *, durably: bool = False) -> int:
        """Add one line, whole or not at all; where it begins. Raises `RunFolderBroken`."""
        start, rest = self.size_bytes, memoryview(line)
        with explained(self.path):
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
                if durably:
                    os.fsync(self._descriptor)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._descriptor, start)
                raise
        self.size_bytes += len(line)
        return start

    def clear(self) -> None:
        os.ftruncate(self._descriptor, 0)
        self.size_bytes = 0

    def close(self) -> None:
        os.close(self._descriptor)


def whole_lines(path: Path) -> Iterator[tuple[Line, int]]:
    """Each whole line and where it begins. A torn last line is cut off: it is asked for again.

    Raises `InputError` where a line isn't one that a record wrote.
    """
    if not path.exists():
        return
    start = 0
    with path.open("rb+") as file:
        for number, text in enumerate(iter(file.readline, b""), start=1):
            if not text.endswith(b"\n"):
                file.truncate(start)
                return
            try:
                line = json.loads(text)
                _ = line["github_id"], line["id"], line["prompt"], line["details"], line["requests"]
                answers, usage = line["answers"], line["usage"]
                if not isinstance(answers, list) or not (usage is None or len(usage) == 2):
                    raise ValueError("answers or usage have another form")
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path}:{number}: not a line that mlbench-gen wrote ({error}): remove that "
                    "line to have its row asked again, or use --restart"
                ) from None
            yield line, start
            start += len(text)


def replace(path: Path, lines: Iterable[bytes]) -> None:
    """Write a file anew, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)


class explained:  # noqa: N801 - used as a verb
    """Turns an `OSError` into a `RunFolderBroken` that says what to do."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError):
            raise RunFolderBroken(
                f"can't write {error.filename or self._path}: {error.strerror or error}. What was "
                "answered before is safe: make room or see to the rights, and the same command "
                "goes on"
            ) from error
