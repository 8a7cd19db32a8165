"""Preparation: repositories read on all cores, splits saved with their contexts, changes only.

The folder that is made holds what `datasets.load_from_disk` takes, and beside it:

    contexts/<name>.txt    a repository's text, cut as asked
    contexts/<name>.json   what it was made from, and the segments by instruction
    prepare.json           options, commits, and what each split was made from
"""

import hashlib
import importlib
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import msgspec

from mlbench_exec import InputError, read_rows
from mlbench_gen.prepare.readme import CHARACTERS_PER_TOKEN, cut_tokens, readable_text
from mlbench_gen.prepare.repositories import Pin, RepositoryMissing, ensure
from mlbench_gen.prepare.segments import Segments, sentence_splitter

__all__ = ["ESTIMATE", "Options", "Preparation", "Report"]

ESTIMATE = "estimate"
FORMAT = 1  # raise it when the same input shall give another output
BATCH = 4  # rows held at once while a split is written: one may have megabytes

Row = Mapping[str, Any]
Tell = Callable[[str, str], None]  # a repository's or split's name, and what became of it
Expect = Callable[[int], None]  # how many repositories and splits there are


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How texts are cut: not, after so many characters, or after so many tokens."""

    max_chars: int | None = None
    max_tokens: int | None = None
    tokenizer: str = ESTIMATE  # or an encoding of tiktoken's, cl100k_base for instance
    sentences: str = "rule"  # or "punkt"

    def cut(self, text: str) -> str:
        """Raises `InputError` where the tokenizer can't be had."""
        if self.max_chars is not None:
            text = text[: self.max_chars]
        if self.max_tokens is None:
            return text
        if self.tokenizer == ESTIMATE:
            return text[: int(self.max_tokens * CHARACTERS_PER_TOKEN)]
        encoding = _tiktoken(self.tokenizer)
        return cut_tokens(text, self.max_tokens, encoding.encode_ordinary, encoding.decode)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One repository's share of the work, for a process of its own."""

    pin: Pin
    repos: Path
    contexts: Path
    instructions: tuple[str, ...]
    options: Options
    as_is: bool


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a job. `digest` covers all that its rows get; a problem means none."""

    name: str
    digest: str = ""
    changed: bool = False
    problem: str | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a preparation has done."""

    made: tuple[str, ...]  # repositories
    unchanged: tuple[str, ...]
    problems: Mapping[str, str]
    written: tuple[str, ...]  # splits
    rows: Mapping[str, int]  # of each split
    without_context: int  # rows


class Preparation:
    """Prepares splits into a folder. `sources` are where each split's rows come from."""

    def __init__(
        self,
        sources: Mapping[str, str],
        pins: Mapping[int, Pin],
        repos: Path,
        out: Path,
        options: Options,
        *,
        as_is: bool = False,
        jobs: int = 1,
    ) -> None:
        self._sources = sources
        self._pins = pins
        self._repos = repos
        self._out = out
        self._options = options
        self._as_is = as_is
        self._jobs = jobs

    def run(
        self, tell: Tell = lambda name, what: None, expect: Expect = lambda things: None
    ) -> Report:
        """Do what has changed since the last time. Blocks. Raises `InputError`."""
        datasets = _datasets()
        sentence_splitter(self._options.sentences)  # raises before anything is done
        self._options.cut("")
        instructions: dict[int, set[str]] = {}
        for split, source in self._sources.items():
            for row in read_rows(source, split):
                instructions.setdefault(row["github_id"], set()).add(_instruction(row))
        contexts = self._out / "contexts"
        contexts.mkdir(parents=True, exist_ok=True)
        jobs = self._plan(instructions, contexts)
        expect(len(jobs) + len(self._sources))
        done = list(self._work(jobs, tell))
        good = {one.name: one for one in done if one.problem is None}
        written, rows, without = [], {}, 0
        before = _read_json(self._out / "prepare.json")
        digests: dict[str, str] = {}
        for split, source in self._sources.items():
            digest, rows[split], missing = self._digest(split, source, good)
            without += missing
            digests[split] = digest
            is_there = (self._out / split / "state.json").exists()
            if is_there and before.get("splits", {}).get(split) == digest:
                tell(split, "unchanged")
                continue
            self._save(datasets, split, source, good)
            written.append(split)
            tell(split, f"{rows[split]} rows written")
        _write(self._out / "dataset_dict.json", json.dumps({"splits": list(self._sources)}))
        self._write_facts(digests, done)
        return Report(
            made=tuple(one.name for one in done if one.changed),
            unchanged=tuple(one.name for one in good.values() if not one.changed),
            problems={one.name: one.problem for one in done if one.problem is not None},
            written=tuple(written),
            rows=rows,
            without_context=without,
        )

    def _plan(self, instructions: Mapping[int, set[str]], contexts: Path) -> list[Job]:
        wanted: dict[str, set[str]] = {}
        for github_id, some in instructions.items():
            if pin := self._pins.get(github_id):
                wanted.setdefault(pin.name, set()).update(some)
        pins = {pin.name: pin for pin in self._pins.values()}
        return [
            Job(
                pin=pins[name],
                repos=self._repos,
                contexts=contexts,
                instructions=tuple(sorted(some)),
                options=self._options,
                as_is=self._as_is,
            )
            for name, some in wanted.items()
        ]

    def _work(self, jobs: Sequence[Job], tell: Tell) -> Iterator[Done]:
        if self._jobs == 1 or len(jobs) < 2:
            for job in jobs:
                yield _told(prepare_repository(job), tell)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(self._jobs, len(jobs)), mp_context=context) as pool:
            try:
                for ended in as_completed([pool.submit(prepare_repository, job) for job in jobs]):
                    yield _told(ended.result(), tell)
            finally:
                pool.shutdown(cancel_futures=True)

    def _digest(self, split: str, source: str, good: Mapping[str, Done]) -> tuple[str, int, int]:
        """What a split would be made from; its rows, and how many of them get no context."""
        digest = hashlib.sha256(str(FORMAT).encode())
        rows = without = 0
        for row in read_rows(source, split):
            rows += 1
            done = self._done(row, good)
            without += done is None
            digest.update(json.dumps([row, done and done.digest], default=str).encode())
        return digest.hexdigest(), rows, without

    def _done(self, row: Row, good: Mapping[str, Done]) -> Done | None:
        pin = self._pins.get(row["github_id"])
        return good.get(pin.name) if pin else None

    def _save(self, datasets: Any, split: str, source: str, good: Mapping[str, Done]) -> None:
        """Write one split beside its place, then put it there."""
        working = self._out / f".{split}.new"
        shutil.rmtree(working, ignore_errors=True)
        columns = _columns(read_rows(source, split))
        kinds = {name: datasets.Value(kind) for name, kind in columns.items()}
        large = datasets.Value("large_string")
        features = datasets.Features({**kinds, "readme_content": large, "bm25_result": large})
        bars_were_on = datasets.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        try:
            made = datasets.Dataset.from_generator(
                lambda: self._rows(split, source, good, columns),
                features=features,
                cache_dir=str(working / "cache"),
                writer_batch_size=BATCH,
            )
            made.save_to_disk(str(working / "saved"))
            del made
        finally:
            if bars_were_on:
                datasets.enable_progress_bars()
        shutil.rmtree(self._out / split, ignore_errors=True)
        (working / "saved").rename(self._out / split)
        shutil.rmtree(working, ignore_errors=True)

    def _rows(
        self, split: str, source: str, good: Mapping[str, Done], columns: Mapping[str, str]
    ) -> Iterator[dict[str, Any]]:
        name, text = "", ""
        segments: Mapping[str, str] = {}
        for row in read_rows(source, split):
            plain = {column: _value(row.get(column), kind) for column, kind in columns.items()}
            done = self._done(row, good)
            if done is None:
                yield {**plain, "readme_content": None, "bm25_result": None}
                continue
            if done.name != name:  # rows of a repository stand together
                name = done.name
                place = self._out / "contexts" / name
                text = _beside(place, ".txt").read_text(encoding="utf-8")
                segments = _read_json(_beside(place, ".json"))["segments"]
            segment = segments[_hash(_instruction(row))]
            yield {**plain, "readme_content": text, "bm25_result": segment}

    def _write_facts(self, digests: Mapping[str, str], done: Sequence[Done]) -> None:
        facts = {
            "format": FORMAT,
            "options": msgspec.to_builtins(self._options),
            "sources": dict(self._sources),
            "commits": {pin.name: pin.commit for pin in self._pins.values()},
            "as_is": self._as_is,
            "problems": {one.name: one.problem for one in done if one.problem is not None},
            "splits": dict(digests),
        }
        _write(self._out / "prepare.json", json.dumps(facts, indent=2))


def prepare_repository(job: Job) -> Done:
    """Read one repository, and find what its rows need of it."""
    try:
        folder = ensure(job.pin, job.repos, as_is=job.as_is)
    except RepositoryMissing as error:
        return Done(name=job.pin.name, problem=str(error))
    text = readable_text(folder)
    options = json.dumps([FORMAT, msgspec.to_builtins(job.options)])
    source = _hash(options + _hash(text))
    place = job.contexts / job.pin.name
    known = _read_json(_beside(place, ".json"))
    is_same = known.get("source") == source and _beside(place, ".txt").exists()
    segments = known["segments"] if is_same else {}
    wanted = {_hash(instruction): instruction for instruction in job.instructions}
    if missing := wanted.keys() - segments.keys():
        search = Segments(text, sentence_splitter(job.options.sentences))
        segments = {name: found for name, found in segments.items() if name in wanted}
        segments |= {name: search.best(wanted[name]) for name in sorted(missing)}
    if not is_same:
        _write(_beside(place, ".txt"), job.options.cut(text))
    changed = bool(missing) or not is_same
    if changed:
        content = {"source": source, "commit": job.pin.commit, "segments": segments}
        _write(_beside(place, ".json"), json.dumps(content, indent=1))
    digest = _hash(source + json.dumps({name: segments[name] for name in sorted(wanted)}))
    return Done(name=job.pin.name, digest=digest, changed=changed)


def _told(done: Done, tell: Tell) -> Done:
    tell(done.name, done.problem or ("prepared" if done.changed else "unchanged"))
    return done


def _columns(rows: Iterator[Row]) -> dict[str, str]:
    """The dataset's own columns: whole numbers where all of a column are, else texts."""
    kinds: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            kinds.setdefault(name, set()).update(() if value is None else (type(value),))
    ours = ("readme_content", "bm25_result")
    return {
        name: "int64" if some == {int} else "string"
        for name, some in kinds.items()
        if name not in ours
    }


def _value(value: object, kind: str) -> object:
    return value if value is None or kind == "int64" else str(value)


def _instruction(row: Row) -> str:
    return str(row.get("instruction") or "")


def _beside(place: Path, suffix: str) -> Path:
    return place.with_name(place.name + suffix)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _read_json(path: Path) -> dict[str, Any]:
    """What was written before; nothing where it isn't there or was damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _datasets() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise InputError(
            'preparing needs the hub extra: pip install "mlbench-exec[gen,hub]"'
        ) from None


def _tiktoken(encoding: str) -> Any:
    try:
        return importlib.import_module("tiktoken").get_encoding(encoding)
    except ImportError:
        raise InputError(
            f"--tokenizer {encoding} needs tiktoken: pip install tiktoken, or take "
            f"--tokenizer {ESTIMATE}"
        ) from None
    except Exception as error:  # unknown name, or its table can't be fetched
        raise InputError(f"--tokenizer {encoding}: tiktoken can't load it ({error})") from error
