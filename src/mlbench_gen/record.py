"""Record: the folder in which answers are kept, so that none is asked for twice.

answers.jsonl   one line for each finished row: whole answers and how they came about
partial.jsonl   replies to rows that aren't finished yet; gone once all are
outputs.jsonl   the code in the answers, as mlbench-exec takes it; made from answers.jsonl
failed.jsonl    rows that got no answer in the last run, each with the reason
manifest.json   what was asked; usage.json: tokens and cost
"""

import fcntl
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import anyio.to_thread

from mlbench_exec import InputError, RunFolderError, Submission
from mlbench_gen.extraction import extract
from mlbench_gen.replies import Answer, Reply, Usage
from mlbench_gen.rows import Key
from mlbench_gen.tally import Tally

__all__ = ["Finished", "Record", "open_record", "output_line_of"]

Line = dict[str, Any]


class Finished:
    """Where the line of a finished row stands, and what it is about."""

    __slots__ = ("answers", "offset", "prompt")

    def __init__(self, offset: int, answers: int, prompt: str) -> None:
        self.offset = offset
        self.answers = answers
        self.prompt = prompt


@asynccontextmanager
async def open_record(
    folder: Path,
    manifest: Mapping[str, Any],
    *,
    samples: int,
    restart: bool = False,
    outputs: Path | None = None,
) -> AsyncIterator["Record"]:
    """Open a folder to continue it, or to begin. Raises `RunFolderError`.

    Of `manifest`, what stands under "asked" must be as it was, unless `restart` forgets it all.
    """
    record = Record(folder, samples, outputs or folder / "outputs.jsonl")
    try:
        await anyio.to_thread.run_sync(record.open, manifest, restart)
        yield record
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(record.close)


class Record:
    """The answers of one model to one task. Methods without `await` in front block."""

    def __init__(self, folder: Path, samples: int, outputs: Path) -> None:
        self.folder = folder
        self.samples = samples
        self.outputs = outputs
        self.tally = Tally()
        self._finished: dict[Key, Finished] = {}
        self._partial: dict[Key, list[Line]] = {}
        self._writing = anyio.Lock()
        self._files: dict[str, BinaryIO] = {}
        self._lock: int | None = None

    def __repr__(self) -> str:
        return f"<Record {self.folder} {len(self._finished)} rows>"

    # Opening and closing.

    def open(self, manifest: Mapping[str, Any], restart: bool) -> None:
        """See `open_record`."""
        with _explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._claim()
            if restart:
                for name in ("answers", "partial", "failed"):
                    (self.folder / f"{name}.jsonl").unlink(missing_ok=True)
                (self.folder / "manifest.json").unlink(missing_ok=True)
            self._check(manifest)
            self._load()
            (self.folder / "failed.jsonl").unlink(missing_ok=True)
            for name in ("answers", "partial", "failed"):
                self._files[name] = (self.folder / f"{name}.jsonl").open("ab")
            self.write_outputs(list(self._finished))
            self._files["outputs"] = self.outputs.open("ab")

    def close(self) -> None:
        """Close the files; those that hold nothing go."""
        for file in self._files.values():
            file.close()
        for name in ("partial", "failed"):
            path = self.folder / f"{name}.jsonl"
            if name in self._files and path.exists() and path.stat().st_size == 0:
                path.unlink()
        self._files.clear()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def conclude(self, order: list[Key], prices: Mapping[str, Any] | None = None) -> None:
        """Put the outputs into the dataset's order, and write what it cost."""
        with _explained(self.folder):
            self.write_outputs(order)
            if not self._partial:
                os.truncate(self.folder / "partial.jsonl", 0)
            content = json.dumps(self.tally.usage_report(prices or {}), indent=2) + "\n"
            _replace(self.folder / "usage.json", iter([content.encode()]))

    def write_outputs(self, keys: list[Key]) -> None:
        """Write outputs.jsonl anew with the finished ones of these rows, whole or not at all."""
        rows = (output_line(*key, self.texts(key)) for key in keys if self.is_complete(key))
        _replace(self.outputs, rows)

    # What is there.

    def is_complete(self, key: Key) -> bool:
        known = self._finished.get(key)
        return known is not None and known.answers >= self.samples

    def prompt_of(self, key: Key) -> str | None:
        """The digest of the prompt that a row's answers are to."""
        if known := self._finished.get(key):
            return known.prompt
        partial = self._partial.get(key)
        return partial[0]["prompt"] if partial else None

    def texts(self, key: Key) -> list[str]:
        """The first answers of a finished row, as many as are wanted."""
        texts: list[str] = self._line(key)["answers"][: self.samples]
        return texts

    def missing(self, key: Key) -> int:
        """How many answers a row lacks."""
        known = self._finished.get(key)
        had = (known.answers if known else 0) + sum(
            len(line["answers"]) for line in self._partial.get(key, ())
        )
        return max(0, self.samples - had)

    # What is new.

    async def add(self, key: Key, prompt: str, reply: Reply) -> None:
        """Keep a reply: once this returns, its answers are on the disk."""
        line = _line_of(key, prompt, reply)
        self.tally.replied(line)
        async with self._writing:
            if len(reply.answers) >= self.missing(key):
                parts = [*self._partial.get(key, ()), line]
                await anyio.to_thread.run_sync(self._finish, key, parts)
            else:
                await anyio.to_thread.run_sync(self._append, "partial", line)
                self._partial.setdefault(key, []).append(line)

    async def fail(self, key: Key, reason: str) -> None:
        """Note why a row has no answers; the next run asks again."""
        line = {"github_id": key[0], "id": key[1], "reason": reason}
        async with self._writing:
            await anyio.to_thread.run_sync(self._append, "failed", line)

    def _finish(self, key: Key, parts: list[Line]) -> None:
        if key in self._finished:
            parts = [self._line(key), *parts]
        line = _joined(parts)
        offset = self._append("answers", line)
        self._finished[key] = Finished(offset, len(line["answers"]), line["prompt"])
        self._partial.pop(key, None)
        file = self._files["outputs"]
        with _explained(self.outputs):
            file.write(output_line(*key, line["answers"][: self.samples]))
            file.flush()

    def _append(self, name: str, line: Line) -> int:
        """Append one line, durably; where it begins."""
        file = self._files[name]
        with _explained(self.folder):
            start = file.tell()
            try:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
            except OSError:
                with suppress(OSError):
                    file.truncate(start)
                raise
            os.fsync(file.fileno())
        return start

    # Reading.

    def _claim(self) -> None:
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = None
            raise RunFolderError(
                f"{self.folder} is in use by another run: wait, or take another --out"
            ) from None

    def _check(self, manifest: Mapping[str, Any]) -> None:
        path = self.folder / "manifest.json"
        if path.exists():
            try:
                before = json.loads(path.read_bytes())["asked"]
            except (ValueError, KeyError, TypeError):
                raise RunFolderError(
                    f"{path}: can't be read: use --restart to begin anew"
                ) from None
            others = [
                f"{name} was {before.get(name)!r}, now {value!r}"
                for name, value in manifest["asked"].items()
                if before.get(name) != value
            ]
            if others:
                raise RunFolderError(
                    f"{self.folder} holds answers to other questions: {'; '.join(others)}. "
                    "Take another --out, or --restart to ask everything anew"
                )
        content = json.dumps({**manifest, "started_at": _now()}, indent=2) + "\n"
        _replace(path, iter([content.encode()]))

    def _load(self) -> None:
        for line, offset in _whole_lines(self.folder / "answers.jsonl"):
            key = (line["github_id"], line["id"])
            self._finished[key] = Finished(offset, len(line["answers"]), line["prompt"])
            self.tally.had(line)
        for line, _ in _whole_lines(self.folder / "partial.jsonl"):
            key = (line["github_id"], line["id"])
            if not self.is_complete(key):
                self._partial.setdefault(key, []).append(line)
                self.tally.had(line)
        if not self._partial:
            (self.folder / "partial.jsonl").unlink(missing_ok=True)

    def _line(self, key: Key) -> Line:
        with (self.folder / "answers.jsonl").open("rb") as file:
            file.seek(self._finished[key].offset)
            line: Line = json.loads(file.readline())
        return line


def output_line(github_id: int, row_id: int, answers: list[str]) -> bytes:
    """The line that mlbench-exec takes, with the code in the answers."""
    return _output(github_id, row_id, [extract(answer) for answer in answers])


def output_line_of(submission: Submission) -> bytes:
    """The same line, from a submission."""
    return _output(submission.github_id, submission.id, list(submission.outputs))


def _output(github_id: int, row_id: int, output: Sequence[str | None]) -> bytes:
    return json.dumps({"github_id": github_id, "id": row_id, "output": output}).encode() + b"\n"


def _line_of(key: Key, prompt: str, reply: Reply) -> Line:
    return {
        "github_id": key[0],
        "id": key[1],
        "answers": [answer.text for answer in reply.answers],
        "details": [_detail(answer) for answer in reply.answers],
        "model": reply.model,
        "usage": [reply.usage.prompt_tokens, reply.usage.completion_tokens]
        if reply.usage
        else None,
        "requests": 1,
        "prompt": prompt,
        "at": _now(),
    }


def _detail(answer: Answer) -> Line:
    detail: Line = {"kind": answer.kind, "finish_reason": answer.finish_reason}
    return {**detail, "refusal": answer.refusal} if answer.refusal else detail


def _joined(parts: list[Line]) -> Line:
    """The line of a row whose answers came in several replies."""
    usages = [Usage(prompt_tokens=u[0], completion_tokens=u[1]) for p in parts if (u := p["usage"])]
    total = sum(usages, Usage())
    return {
        **parts[-1],
        "answers": [answer for part in parts for answer in part["answers"]],
        "details": [detail for part in parts for detail in part["details"]],
        "usage": [total.prompt_tokens, total.completion_tokens] if usages else None,
        "requests": sum(part["requests"] for part in parts),
    }


def _whole_lines(path: Path) -> Iterator[tuple[Line, int]]:
    """Each whole line and where it begins. A torn last line is cut off: it is asked for again."""
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


def _replace(path: Path, lines: Iterator[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class _explained:  # noqa: N801 - used as a verb
    """Turns an `OSError` into a `RunFolderError` that says what to do."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError):
            raise RunFolderError(
                f"can't write {error.filename or self._path}: {error.strerror or error}. What was "
                "answered before is safe: make room or see to the rights, and the same command "
                "goes on"
            ) from error
