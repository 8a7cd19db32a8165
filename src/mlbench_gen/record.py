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
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from mlbench_exec import InputError, RunFolderError, Submission
from mlbench_gen.extraction import extract
from mlbench_gen.files import Appended, Line, explained, replace, whole_lines
from mlbench_gen.replies import Answer, Reply
from mlbench_gen.rows import Key
from mlbench_gen.tally import Tally, usage_by_model, without_usage

__all__ = ["Finished", "Record", "open_record", "output_line_of"]

LINES = ("answers", "partial", "failed")  # the files that are appended to, but for the outputs


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
        self._files: dict[str, Appended] = {}
        self._lock: int | None = None

    def __repr__(self) -> str:
        return f"<Record {self.folder} {len(self._finished)} rows>"

    # Opening and closing.

    def open(self, manifest: Mapping[str, Any], restart: bool) -> None:
        """See `open_record`."""
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_outputs()
            self._claim()
            if restart:
                for name in LINES:
                    (self.folder / f"{name}.jsonl").unlink(missing_ok=True)
                (self.folder / "manifest.json").unlink(missing_ok=True)
            self._check(manifest)
            self._load()
            (self.folder / "failed.jsonl").unlink(missing_ok=True)
            for name in LINES:
                self._files[name] = Appended(self.folder / f"{name}.jsonl")
            self.write_outputs(list(self._finished))
            self._files["outputs"] = Appended(self.outputs)
            for key in [key for key in self._partial if not self.missing(key)]:
                self._finish(key, self._partial[key])  # fewer samples are wanted than before

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

    def conclude(self, order: list[Key]) -> None:
        """Put the outputs into the dataset's order, and write what it cost."""
        with explained(self.folder):
            self.write_outputs(order)
            if not self._partial:
                self._files["partial"].clear()
            content = json.dumps(self.tally.usage_report(), indent=2) + "\n"
            replace(self.folder / "usage.json", [content.encode()])

    def write_outputs(self, keys: list[Key]) -> None:
        """Write outputs.jsonl anew with the finished ones of these rows, whole or not at all."""
        rows = (output_line(*key, self.texts(key)) for key in keys if self.is_complete(key))
        replace(self.outputs, rows)

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
        """Keep a reply, also when cancelled: its answers are on the disk in the end."""
        line = _line_of(key, prompt, reply)
        self.tally.replied(line)
        with anyio.CancelScope(shield=True):  # what has come is paid for
            async with self._writing:
                await anyio.to_thread.run_sync(self._add, key, line)

    async def fail(self, key: Key, reason: str) -> None:
        """Note why a row has no answers; the next run asks again."""
        line = {"github_id": key[0], "id": key[1], "reason": reason}
        async with self._writing:
            await anyio.to_thread.run_sync(self._append, "failed", line)

    def _add(self, key: Key, line: Line) -> None:
        missing = self.missing(key)
        if len(line["answers"]) >= missing:
            self._finish(key, [*self._partial.get(key, ()), line])
            return
        known = self._finished.get(key)
        numbered = {**line, "finished_before": known.answers if known else 0}
        self._append("partial", numbered)
        self._partial.setdefault(key, []).append(line)

    def _finish(self, key: Key, parts: list[Line]) -> None:
        if key in self._finished:
            parts = [self._line(key), *parts]
        line = _joined(parts)
        offset = self._append("answers", line)
        self._finished[key] = Finished(offset, len(line["answers"]), line["prompt"])
        self._partial.pop(key, None)
        self._files["outputs"].append(output_line(*key, line["answers"][: self.samples]))

    def _append(self, name: str, line: Line) -> int:
        """Append one line; where it begins."""
        return self._files[name].append(json.dumps(line).encode() + b"\n", durably=True)

    # Reading.

    def _check_outputs(self) -> None:
        """What is replaced is a file, and none of those that answers are kept in."""
        kept = [self.folder / f"{name}.jsonl" for name in LINES]
        kept += [self.folder / name for name in ("manifest.json", "usage.json", "lock")]
        if self.outputs.exists() and not self.outputs.is_file():
            raise InputError(f"{self.outputs} is no file: give one to -o, or - for stdout")
        if os.path.realpath(self.outputs) in [os.path.realpath(path) for path in kept]:
            raise InputError(f"{self.outputs} is where answers are kept: give another file to -o")

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
        replace(path, [content.encode()])

    def _load(self) -> None:
        for line, offset in whole_lines(self.folder / "answers.jsonl"):
            key = (line["github_id"], line["id"])
            if key in self._finished:  # with more samples since: the later line holds them all
                self.tally.had(self._line(key), times=-1)
            self._finished[key] = Finished(offset, len(line["answers"]), line["prompt"])
            self.tally.had(line)
        for line, _ in whole_lines(self.folder / "partial.jsonl"):
            key = (line["github_id"], line["id"])
            known = self._finished.get(key)
            if line.pop("finished_before", 0) == (known.answers if known else 0):
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
    by_model: dict[str, list[int]] = {}
    for part in parts:
        for model, counts in usage_by_model(part).items():
            before = by_model.get(model, [0, 0])
            by_model[model] = [one + more for one, more in zip(before, counts, strict=True)]
    usage = [sum(each) for each in zip(*by_model.values(), strict=True)]
    return {
        **parts[-1],
        "answers": [answer for part in parts for answer in part["answers"]],
        "details": [detail for part in parts for detail in part["details"]],
        "usage": usage if any(part["usage"] for part in parts) else None,
        "usage_by_model": by_model,
        "without_usage": sum(without_usage(part) for part in parts),
        "requests": sum(part["requests"] for part in parts),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
