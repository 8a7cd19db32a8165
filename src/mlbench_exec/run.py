"""Run: one evaluation into one run folder: resume, judge, journal, score, report."""

import hashlib
import os
import stat
import sys
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Mapping,
)
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import anyio
import anyio.to_thread
import msgspec
from rich.console import Console

from mlbench_exec.dataset import Dataset
from mlbench_exec.engine import Engine
from mlbench_exec.environments import Environment
from mlbench_exec.errors import InputError, RunFolderError
from mlbench_exec.failures import classify
from mlbench_exec.journal import (
    DatasetFacts,
    InputFile,
    Journal,
    Known,
    Manifest,
    Recorded,
    RepoFacts,
    host,
    now,
    versions,
)
from mlbench_exec.report import (
    Progress,
    plain,
    render_header,
    write_page,
    write_results,
    write_summary,
)
from mlbench_exec.run_log import log_to
from mlbench_exec.samples import Key, Sample
from mlbench_exec.sandbox import Backend
from mlbench_exec.scores import Tally, summarize
from mlbench_exec.settings import Settings, host_memory_bytes
from mlbench_exec.submissions import (
    STDIN,
    Rejected,
    Submission,
    as_submissions,
    gold_submissions,
    output_hash,
    read_submissions,
    screen,
)
from mlbench_exec.summary import Summary
from mlbench_exec.verdicts import PASSING, Unjudged, Verdict
from mlbench_exec.weights import Missing

WEIGHTS_SHOWN = 5
GOLD = "the dataset's own answers"
GIB = 1 << 30
START_TOLD_EVERY_S = 10.0
# Verdicts that share a write: of many by rules alone, or of what ends within so short a time.
WRITTEN_AT_ONCE = 256
WRITTEN_WITHIN_S = 0.02
EMPTY_HASH = output_hash("")


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows of the outputs to judge: all, unless told otherwise."""

    only: tuple[tuple[int, int | None], ...] = ()  # github_id, and a row's id or all of them
    limit: int | None = None  # rows

    def wants(self, key: Key) -> bool:
        return not self.only or any(
            github_id == key[0] and row_id in {None, key[1]} for github_id, row_id in self.only
        )

    async def read(
        self, outputs: str | AsyncIterable[object] | None, samples: Mapping[Key, Sample]
    ) -> AsyncGenerator[Submission | Rejected, None]:
        """The selected rows of a file, pipe or stream; nothing is read beyond the last of them.

        None stands for the answers that the dataset's `samples` have themselves.
        """
        taken = 0
        source: AsyncIterator[Submission | Rejected]
        if outputs is None:
            wanted = {key: sample for key, sample in samples.items() if self.wants(key)}
            source = as_submissions(gold_submissions(wanted))
        elif isinstance(outputs, str):
            source = read_submissions(outputs)
        else:
            source = as_submissions(outputs)
        async with _closing(source) as rows:
            async for row in rows:
                if isinstance(row, Rejected):
                    yield row
                elif self.wants(row.key):
                    yield row
                    taken += 1
                    if taken == self.limit:
                        return


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended."""

    summary: Summary
    unjudged: int  # outputs and rows without a verdict
    usable: int  # rows of the input that could be used


class Evaluation:
    """Judges one file of outputs into one folder; no file: the dataset's own answers.

    `backend` replaces the one that settings name.

    `source` replaces the file, of which `outputs` is then only the name: submissions as
    `Engine.stream` takes them, each key in the same form as before where a run is continued.
    `total` is how many outputs they hold, where that is known. `beside` gives words for the
    progress line about what stands before this run.
    """

    def __init__(
        self,
        outputs: str | None,
        folder: Path,
        settings: Settings,
        *,
        selection: Selection | None = None,
        restart: bool = False,
        stderr: TextIO | None = None,
        backend: Backend | None = None,
        source: AsyncIterable[object] | None = None,
        total: int | None = None,
        beside: Callable[[], str] | None = None,
    ) -> None:
        self.outputs = outputs
        self.folder = folder
        self.settings = settings
        self.selection = selection or Selection()
        self._restart = restart
        self._stderr = stderr or sys.stderr
        self._backend = backend
        self._can_reread = False  # a file can be read twice, and the dataset; a pipe can't
        self._judged = Known()
        self._given = source
        self._beside = beside
        self._open: dict[Key, int] = {}  # outputs without a verdict, where that is known
        self._total: int | None = total
        self._done = 0
        self._absent = 0  # rows that were judged, and are not in OUTPUTS any more
        self._usable = 0
        self._has_started = False

    async def run(self) -> Outcome:
        """Run to the end, or to an interruption that another run can continue.

        Raises `InputError`, `RunFolderError` and `BackendUnavailable`.
        """
        if self._given is None:
            self._can_reread = await anyio.to_thread.run_sync(can_reread, self.outputs)
        async with (
            _in_background(self._tell_slow_start),
            Engine(self.settings, run_name=str(self.folder), backend=self._backend) as engine,
        ):
            self._has_started = True
            assert engine.dataset is not None
            manifest = await anyio.to_thread.run_sync(self._manifest, engine, engine.dataset)
            tally = Tally(until_pass=self.settings.until_pass)
            async with Journal(
                self.folder, manifest, restart=self._restart, known=self._resume(tally)
            ) as journal:
                digests = getattr(engine.backend, "digests", None)
                if digests:
                    await journal.set_images(digests)
                await self._refuse_changed(engine)
                await anyio.to_thread.run_sync(self._show_header, engine, journal.manifest)
                async with log_to(self.folder):
                    unjudged = await self._judge(engine, journal, tally)
                await journal.set_not_warm(engine.not_warm)
                broken = engine.gpus.broken.values() if engine.gpus else ()
                with suppress(OSError):  # the terminal is gone
                    for words in (*not_warm_words(engine.not_warm), *broken):
                        self._stderr.write(f"{plain(words, limit=1000)}\n")
                summary = await anyio.to_thread.run_sync(self._score, tally, journal.manifest)
                await anyio.to_thread.run_sync(write_page, self.folder, engine.samples)
        return Outcome(summary=summary, unjudged=unjudged, usable=self._usable)

    async def _tell_slow_start(self) -> None:
        """A daemon that takes long over each call must not look like a hang."""
        waited_s = 0.0
        while True:
            await anyio.sleep(START_TOLD_EVERY_S)
            if self._has_started:
                return
            waited_s += START_TOLD_EVERY_S
            words = f"Still starting the sandboxes' backend, after {waited_s:.0f} s.\n"
            await anyio.to_thread.run_sync(self._stderr.write, words)

    def _resume(self, tally: Tally) -> Callable[[Recorded], None]:
        """What takes in each verdict of earlier runs."""

        def take(recorded: Recorded) -> None:
            key, index = recorded.key, recorded.index
            passed = recorded.status in PASSING
            self._judged.add(key, index, passed=passed, output_hash=recorded.output_hash)
            _count(tally, recorded)

        return take

    async def _refuse_changed(self, engine: Engine) -> None:
        """A first pass where one is free: count, and name outputs that differ from judged ones."""
        self._done = self._judged.outputs
        if not self._can_reread:
            return
        total = done = found = 0
        changed: list[str] = []
        selected = self.selection.read(self.outputs, engine.samples)
        async with aclosing(screen(selected, engine.samples)) as rows:
            async for row in rows:
                if isinstance(row, Rejected):
                    total += 1
                    continue
                total += len(row.outputs)
                found += row.key in self._judged
                judged = len(self._judged.hashes(row.key))
                done += judged
                self._open[row.key] = len(row.outputs) - judged
                changed += self._changes(row)
        self._done = done
        if changed:
            raise _changed_outputs(self.folder, changed)
        self._total = total
        if self.selection == Selection():
            self._absent = len(self._judged) - found

    def _changes(self, row: Submission) -> list[str]:
        """Judged outputs of this row that are others now, or gone."""
        hashes = self._judged.hashes(row.key)
        now = dict(enumerate(row.outputs)) if hashes else {}
        return [
            f"{row.place}: github_id {row.github_id}, id {row.id}, output {index}"
            for index, known in hashes
            if (code := now.get(index)) is None or output_hash(code) != known
        ]

    async def _judge(self, engine: Engine, journal: Journal, tally: Tally) -> int:
        unjudged = 0
        progress = Progress(
            self._stderr,
            total=self._total,
            slots=engine.statistics,
            size=engine.size,
            note=lambda: _note(engine),
            beside=self._beside,
        )
        progress.resumed(self._done)
        async with _in_background(progress.show):
            for rejected in engine.dataset.rejected if engine.dataset else ():
                unjudged += 1
                bad_row = Unjudged(
                    reason=rejected.reason,
                    kind="input",
                    github_id=rejected.github_id,
                    id=rejected.id,
                    place=rejected.place,
                )
                await journal.append_unjudged(bad_row)
                tally.add_unjudged(bad_row)
            stream = engine.stream(self._source(engine, journal), judged=self._judged)
            while outcomes := await stream.gathered(WRITTEN_AT_ONCE, WRITTEN_WITHIN_S):
                verdicts = [one for one in outcomes if isinstance(one, Verdict)]
                others = [one for one in outcomes if isinstance(one, Unjudged)]
                await journal.append(*verdicts)
                await journal.append_unjudged(*others)
                unjudged += len(others)
                for verdict in verdicts:
                    _count(tally, verdict)
                    progress.judged(verdict)
                for other in others:
                    tally.add_unjudged(other)
                    progress.unjudged()
                if engine.not_warm.keys() - journal.manifest.not_warm.keys():
                    await journal.set_not_warm(engine.not_warm)
            self._usable = len(stream.rows)
            for key, outputs in stream.rows.items():
                tally.declare(key, outputs)
        return unjudged

    async def _source(
        self, engine: Engine, journal: Journal
    ) -> AsyncIterator[Submission | Rejected]:
        """The selected rows; from stdin, changed ones are found only as they arrive."""
        given = self._given or self.outputs
        async with aclosing(self.selection.read(given, engine.samples)) as rows:
            async for row in rows:
                if self._can_reread or isinstance(row, Rejected):  # compared already
                    yield row
                    continue
                if changed := self._changes(row):
                    raise _changed_outputs(self.folder, changed)
                if self.outputs == STDIN and isinstance(row, Submission):
                    await self._keep(journal, row)
                yield row

    async def _keep(self, journal: Journal, row: Submission) -> None:
        if len(self._judged.hashes(row.key)) < len(row.outputs):
            await journal.keep(row)

    def _score(self, tally: Tally, manifest: Manifest) -> Summary:
        facts = manifest.dataset
        summary = summarize(tally, split_rows=facts.split_rows, names=facts.names)
        write_results(self.folder, tally)
        write_summary(self.folder, summary)
        return summary

    def _manifest(self, engine: Engine, dataset: Dataset) -> Manifest:
        settings = self.settings
        repos: dict[int, RepoFacts] = {}
        for sample in dataset.samples.values():
            known = repos.get(sample.github_id)
            environment = engine.environment_of(sample.github_id)
            name = environment.repo if environment else sample.repository
            repos[sample.github_id] = RepoFacts(name=name, rows=known.rows + 1 if known else 1)
        return Manifest(
            created_at=now(),
            inputs=(
                InputFile(
                    path=self.outputs or GOLD,
                    sha256=_file_hash(self.outputs) if self.outputs and self._can_reread else None,
                ),
            ),
            dataset=DatasetFacts(
                source=dataset.source, split=dataset.split, digest=dataset.digest, repos=repos
            ),
            settings=msgspec.to_builtins(settings, enc_hook=str),
            verdict_settings=_verdict_settings(settings, engine),
            versions=versions(),
            host=host(),
            until_pass=settings.until_pass,
        )

    def _show_header(self, engine: Engine, manifest: Manifest) -> None:
        facts = {
            "outputs": self.outputs or GOLD,
            "dataset": _dataset_words(engine),
            **_backend_facts(engine),
        }
        lacking = engine.missing_weights(self._open)
        if lacking:
            facts["weights"] = weights_words(lacking, self.settings.weights)
        if saved := _saved_words(self.settings):
            facts["saves work"] = saved
        if self.settings.preload and manifest.not_warm:  # known from an earlier start
            facts["not warm"] = "; ".join(not_warm_words(manifest.not_warm))
        facts["folder"] = str(self.folder)
        if self._judged:
            done = self._judged.outputs
            facts["continues"] = f"{done} outputs are judged already"
        if self._absent:
            facts["beside them"] = (
                f"{self._absent} judged rows that are not in {self.outputs or GOLD} any more: "
                "they still count; --restart forgets them"
            )
        Console(file=self._stderr, width=None if self._stderr.isatty() else 120).print(
            render_header(facts)
        )


def _count(tally: Tally, verdict: Verdict | Recorded) -> None:
    tally.add(
        verdict,
        empty=verdict.output_hash == EMPTY_HASH,
        failure=classify(verdict),
    )


def not_warm_words(reasons: Mapping[str, tuple[str, ...]]) -> list[str]:
    """What can't be warm, a line for each reason."""
    return [f"{name}: {one}" for name, found in reasons.items() for one in found]


def weights_words(lacking: list[Missing], folder: Path | None) -> str:
    """What outputs need and isn't here, in one line."""
    named = ", ".join(f"{one.name} ({one.outputs} outputs)" for one in lacking[:WEIGHTS_SHOWN])
    more = f" and {len(lacking) - WEIGHTS_SHOWN} more" if len(lacking) > WEIGHTS_SHOWN else ""
    return (
        f"missing in {folder}: {named}{more}. Unless the image has them, outputs will fail for it: "
        "mlbench-exec weights pull"
    )


def _dataset_words(engine: Engine) -> str:
    dataset = engine.dataset
    assert dataset is not None
    return f"{dataset.source}, split {dataset.split}, {len(dataset.samples)} rows"


def _saved_words(settings: Settings) -> str:
    words = []
    if settings.until_pass:
        words.append("stops a row where no pass@k can change (--until-pass)")
    if settings.share_identical:
        words.append("executes equal outputs of a row once (--share-identical)")
    return "; ".join(words)


def _backend_facts(engine: Engine) -> dict[str, str]:
    settings, size = engine.settings, engine.size
    facts = {
        "backend": f"{engine.backend.name} ({engine.why_backend})",
        "isolation": engine.backend.level,
        "sandboxes": f"{size} at once",
    }
    if engine.gpus is not None:
        numbers = ", ".join(str(device.index) for device in engine.gpus.devices)
        facts["gpus"] = f"{numbers}: one for each sandbox, which sees it as device 0"
        if not engine.gpus.is_checked:
            facts["gpus"] += '; memory is not checked: pip install "mlbench-exec[gpu]" does that'
    memory = settings.limits.memory_bytes
    if memory is not None:
        facts["sandboxes"] += f", {memory / GIB:g} GiB of memory each"
        if size * memory > host_memory_bytes():
            facts["sandboxes"] += (
                f"; together more than this machine's {host_memory_bytes() / GIB:.0f} GiB: "
                "programs that really use it may fail for others' needs"
            )
    return facts


def _note(engine: Engine) -> str:
    """What a person who looks at the progress should know besides."""
    if engine.lost_s:
        return f"{engine.backend.name} doesn't answer for {engine.lost_s:.0f} s: waiting for it"
    return ""


@asynccontextmanager
async def _closing(
    rows: AsyncIterator[Submission | Rejected],
) -> AsyncIterator[AsyncIterator[Submission | Rejected]]:
    """Close an iterator in time, where it can be closed: not when it happens to be collected."""
    try:
        yield rows
    finally:
        if isinstance(rows, AsyncGenerator):
            await rows.aclose()


@asynccontextmanager
async def _in_background(task: Callable[[], Coroutine[Any, Any, Any]]) -> AsyncIterator[None]:
    """Run a task beside the block and cancel it after; the block's exceptions stay bare."""
    tasks = anyio.create_task_group()
    await tasks.__aenter__()
    tasks.start_soon(task)
    try:
        yield
    finally:
        tasks.cancel_scope.cancel()
        await tasks.__aexit__(None, None, None)


def _verdict_settings(settings: Settings, engine: Engine) -> dict[str, Any]:
    """What another run must share to continue this one."""
    return {
        "backend": engine.backend.name,
        "limits": msgspec.to_builtins(settings.limits),
        "time_limit_s": settings.time_limit_s,
        "network": settings.network,
        "gpus": settings.gpus,
        "runtime": settings.runtime,
        "mounts": msgspec.to_builtins(settings.mounts),
        "until_pass": settings.until_pass,
        "share_identical": settings.share_identical,
        "environments": {e.name: _of_weight(e) for e in engine.environments},
    }


def _of_weight(environment: Environment) -> dict[str, Any]:
    """An environment without its name in reports, and what only makes it faster."""
    fields: dict[str, Any] = msgspec.to_builtins(environment)
    return {name: value for name, value in fields.items() if name not in {"repo", "preload"}}


def _changed_outputs(folder: Path, changed: list[str]) -> RunFolderError:
    shown = "\n  ".join(changed[:10])
    more = f"\n  and {len(changed) - 10} more" if len(changed) > 10 else ""
    return RunFolderError(
        f"{folder} holds verdicts on other outputs than these:\n  {shown}{more}\n"
        "Start over with --restart, or choose another folder with --out"
    )


def can_reread(outputs: str | None) -> bool:
    """Whether OUTPUTS is no pipe, such as stdin: that gives its rows only once.

    Raises `InputError` where it can't be read, before anything is started or written for it.
    """
    if outputs is None:
        return True
    if outputs == STDIN:
        return False
    try:
        kind = os.stat(outputs).st_mode
        if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
            Path(outputs).open("rb").close()
    except (OSError, ValueError) as error:  # a NUL byte in a path is a ValueError
        raise _unreadable(outputs, error) from error
    return stat.S_ISREG(kind)


def _file_hash(outputs: str) -> str:
    try:
        with open(outputs, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(outputs, error) from error


def _unreadable(outputs: str, error: OSError | ValueError) -> InputError:
    why = getattr(error, "strerror", None) or error
    return InputError(f"{outputs}: can't be read ({why}): check the path of OUTPUTS")
