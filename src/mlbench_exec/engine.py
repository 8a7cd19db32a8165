"""Engine: the only module that knows the whole chain, from submissions to verdicts."""

import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import anyio
import anyio.to_thread
import msgspec
import structlog
from anyio.abc import TaskGroup

from mlbench_exec import rules, schedule
from mlbench_exec.backends.choice import find_gpus, start_backend
from mlbench_exec.backends.gpus import GpuSlots
from mlbench_exec.dataset import Dataset, load_dataset
from mlbench_exec.environments import Environment, Environments, load_environments, offline
from mlbench_exec.errors import (
    BackendLost,
    EnvironmentUnusable,
    InputError,
    MachineTooBusy,
    MLBenchExecError,
    SandboxFailed,
)
from mlbench_exec.patience import Patience, pause_s
from mlbench_exec.pool import SPARES, Pool, Running, Statistics
from mlbench_exec.samples import Key, Sample
from mlbench_exec.sandbox import Backend, Job, Observation
from mlbench_exec.schedule import Chain, Execution
from mlbench_exec.settings import Settings
from mlbench_exec.submissions import output_hash
from mlbench_exec.verdict_stream import JudgedRows, Outcome, VerdictStream
from mlbench_exec.verdicts import Unjudged, Verdict
from mlbench_exec.weights import Manifest, Missing, Store, load_manifest, missing, mounted

ATTEMPTS = 3
NOTES_KEPT = 20  # of an environment
NOT_OPEN = "the engine is not open: use `async with Engine(...)`"

log: structlog.stdlib.BoundLogger = structlog.wrap_logger(
    logging.getLogger("mlbench_exec"),
    processors=[
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    wrapper_class=structlog.stdlib.BoundLogger,
)


class Snippet(msgspec.Struct, frozen=True, kw_only=True):
    """One output of one row, for `Engine.run`."""

    github_id: int
    id: int
    output: str
    index: int = 0


class UnjudgedError(MLBenchExecError):
    """`Engine.run` could reach no verdict: never the program's failure."""

    def __init__(self, unjudged: Unjudged) -> None:
        super().__init__(unjudged.reason)
        self.unjudged = unjudged


class Engine:
    """Judges outputs in sandboxes, many at once.

    An async context manager: leaving it leaves no container, process, mount or temporary file.
    Entering it raises `InputError` for a dataset or environments file that can't be used, and
    `BackendUnavailable` where no backend starts. `samples`, `environments` and `backend` replace
    what the settings would load.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        samples: Mapping[Key, Sample] | None = None,
        environments: Environments | None = None,
        backend: Backend | None = None,
        run_name: str = "",
    ) -> None:
        self.settings = settings or Settings()
        self.dataset: Dataset | None = None
        self.why_backend = "given"
        self.gpus: GpuSlots | None = None
        self.weights: Manifest = {}
        self.weights_present: frozenset[str] = frozenset()
        self._samples = samples
        self._environments = environments
        self._backend = self._given_backend = backend
        self._run_name = run_name
        self._checked: set[str] = set()  # environments that are here, as far as can be seen
        self.not_warm: dict[str, tuple[str, ...]] = {}  # by environment: what can't be, and why
        self._ran_again: set[str] = set()  # environments of which that was said
        self._refused: dict[str, str] = {}  # by environment: why it can't be opened
        self._running: dict[int, Running] = {}  # by slot
        self._patience = Patience(self.settings.patience_s)
        self._pool: Pool | None = None
        self._tasks: TaskGroup | None = None
        self._stack = AsyncExitStack()
        self._streams: set[VerdictStream] = set()

    def __repr__(self) -> str:
        return f"<Engine {self._backend.name if self._backend else 'closed'} {self._pool!r}>"

    @property
    def backend(self) -> Backend:
        if self._backend is None:
            raise RuntimeError(NOT_OPEN)
        return self._backend

    @property
    def samples(self) -> Mapping[Key, Sample]:
        return self._samples or {}

    @property
    def environments(self) -> list[Environment]:
        """The environments of the dataset's rows, in the dataset's order; all, if it has none."""
        if not self.samples:
            return list(self._environments or ())
        found = (self.environment_of(github_id) for github_id, _ in self.samples)
        return list({e.name: e for e in found if e is not None}.values())

    @property
    def bad_rows(self) -> dict[Key, str]:
        """Rows of the dataset that can't be used, as far as they can be told apart."""
        rejected = self.dataset.rejected if self.dataset else ()
        return {
            (row.github_id, row.id): row.reason
            for row in rejected
            if row.github_id is not None and row.id is not None
        }

    @property
    def size(self) -> int:
        """Sandboxes at once: with GPUs, no more than there are devices."""
        size = self.settings.resolved_concurrency()
        return min(size, len(self.gpus.devices)) if self.gpus else size

    def missing_weights(self, outputs: Mapping[Key, int]) -> list[Missing]:
        """Files that so many outputs, counted by row, need and that aren't here. May block."""
        if self._environments is None or not self.weights:
            return []
        return missing(
            self.weights,
            self.weights_present,
            outputs,
            self.samples,
            self._environments,
            is_there=os.path.exists if self.backend.name == "local" else lambda place: False,
        )

    def environment_of(self, github_id: int) -> Environment | None:
        return self._environments.for_github_id(github_id) if self._environments else None

    @property
    def lost_s(self) -> float:
        """For how many seconds the backend hasn't answered; 0 where it does."""
        return self._patience.waited_s

    def statistics(self) -> Statistics:
        """How the sandboxes stand at this moment, and what they run."""
        if self._pool is None:
            return Statistics(0, 0, 0, 0)
        running = tuple(self._running.values())
        return msgspec.structs.replace(self._pool.statistics(), running=running)

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise RuntimeError("the engine is open already: one block at a time")
        try:
            await self._load()
            if self._backend is None:
                self.gpus = await anyio.to_thread.run_sync(find_gpus, self.settings)
                self._backend, self.why_backend = await start_backend(
                    self._stack, self.settings, self.environments, self.gpus, self._run_name
                )
            else:
                await self._stack.enter_async_context(self._backend)
            # A spare sandbox would need a device of its own.
            is_fair = self.settings.limits.clock == "fair"
            pool = Pool(
                self._backend,
                self.size,
                spares=0 if self.gpus else SPARES,
                cores=self._backend.cores if is_fair else None,
            )
            self._pool = await self._stack.enter_async_context(pool)
            self._tasks = anyio.create_task_group()
            await self._tasks.__aenter__()
            self._stack.push_async_callback(self._end_tasks)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._close()

    async def _close(self) -> None:
        try:
            await self._stack.aclose()  # each part shields what a cancellation must not cut short
        finally:
            self._tasks = self._pool = None
            self._checked.clear()
            self._refused.clear()
            self._backend = self._given_backend

    async def _end_tasks(self) -> None:
        """Not told of the body's exception: that leaves the block by itself, in no group."""
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            for stream in tuple(self._streams):
                stream.discard()

    async def run(self, snippet: Snippet) -> Verdict:
        """Judge one output. Raises `UnjudgedError`, or `InputError` for an unknown row."""
        if self._tasks is None:
            raise RuntimeError(NOT_OPEN)
        sample = self.samples.get((snippet.github_id, snippet.id))
        if sample is None:
            raise InputError(
                f"github_id {snippet.github_id}, id {snippet.id} is not in the dataset "
                f"({self.settings.dataset}, split {self.settings.split})"
            )
        checks, code_hash = rules.check(sample, snippet.output), output_hash(snippet.output)
        if not checks.ok:
            return rules.static_verdict(sample, snippet.index, code_hash, checks)
        execution = Execution(
            sample=sample,
            indices=(snippet.index,),
            code=snippet.output,
            code_hash=code_hash,
            checks=checks,
        )
        (outcome,) = await self._execute(execution)
        if isinstance(outcome, Unjudged):
            raise UnjudgedError(outcome)
        return outcome

    def stream(
        self,
        submissions: Iterable[object] | AsyncIterable[object],
        *,
        judged: JudgedRows | None = None,
    ) -> VerdictStream:
        """Judge submissions as they come; iterate over the result for outcomes as completed.

        `submissions` may be any sync or async iterable of `Submission`, `Rejected` or dicts
        like a line of outputs.jsonl; it is read only as fast as outcomes are taken. What gets no
        verdict comes as `Unjudged`. Outputs in `judged` are left out. Stopping early is fine: the
        engine owns the work, and ends it when it is left or the stream is closed.
        """
        if self._tasks is None:
            raise RuntimeError(NOT_OPEN)
        stream = VerdictStream(self, submissions, judged or {})
        self._streams.add(stream)
        self._tasks.start_soon(stream.drive)
        return stream

    def forget(self, stream: VerdictStream) -> None:
        """A stream that has ended holds nothing that is to be closed."""
        self._streams.discard(stream)

    async def _load(self) -> None:
        settings = self.settings
        if self._environments is None:
            self._environments = await anyio.to_thread.run_sync(
                load_environments, settings.environments_file
            )
        if settings.weights is not None:
            self.weights, self.weights_present = await anyio.to_thread.run_sync(
                _look_for_weights, settings.weights
            )
            self._environments = mounted(
                self.weights, self.weights_present, settings.weights, self._environments
            )
        if settings.network == "none":
            self._environments = Environments(
                tuple(offline(one, settings.mounts) for one in self._environments)
            )
        if self._samples is None:
            self.dataset = await anyio.to_thread.run_sync(
                load_dataset, settings.dataset, settings.split
            )
            self._samples = self.dataset.samples

    async def _execute(self, execution: Execution) -> tuple[Outcome, ...]:
        """Run one program; the same outcome for each of its indices."""
        sample = execution.sample
        environment = self.environment_of(sample.github_id)
        if environment is None:
            reason = (
                f"github_id {sample.github_id} has no environment; add one with "
                f"`github_ids = [{sample.github_id}]` to an environments file (--environments)"
            )
            return self._unjudged(execution, "environment", reason)
        job = Job(
            environment=environment,
            path=sample.path,
            language=sample.wants,
            code=execution.code.encode("utf-8", "surrogatepass"),
            time_limit_s=self.settings.time_limit_s or environment.time_limit_s[sample.wants],
            limits=self.settings.limits,
        )
        reason = ""
        alone = False
        uncertain = 0  # attempts whose verdicts were too close to the limit to count
        attempt = 1
        while attempt <= ATTEMPTS:
            if attempt > 1:
                await anyio.sleep(pause_s(attempt))
            try:
                observation, slot, started_at = await self._observe(
                    job, execution, fresh=attempt > 1, alone=alone
                )
            except EnvironmentUnusable as error:
                return self._unjudged(execution, "environment", str(error))
            except BackendLost as error:  # no attempt: there was nothing to try it on
                if await self._wait_for_backend(str(error)):
                    continue
                reason = f"{error}; it did not come back within {self._patience.within_s:g} s"
                return self._unjudged(execution, "infrastructure", reason)
            except SandboxFailed as error:
                reason = str(error)
                alone = alone or isinstance(error, MachineTooBusy)
                log.warning("sandbox_failed", key=sample.key, attempt=attempt, reason=reason)
                attempt += 1
                continue
            self._patience.is_back()
            is_close = rules.is_too_close(observation, job.time_limit_s)
            if is_close and uncertain < ATTEMPTS and self.settings.resolved_concurrency() > 1:
                alone, uncertain = True, uncertain + 1  # the last one counts
                continue
            return tuple(
                rules.executed_verdict(
                    sample,
                    index,
                    execution.code_hash,
                    execution.checks,
                    observation,
                    environment=environment.name,
                    attempts=attempt + uncertain,
                    contended=alone,
                    started_at=started_at,
                    slot=slot,
                )
                for index in execution.indices
            )
        return self._unjudged(
            execution, "infrastructure", f"{ATTEMPTS} sandboxes failed; the last: {reason}"
        )

    async def _wait_for_backend(self, reason: str) -> bool:
        """Wait a while before the next look; False when the patience is at its end."""
        if self._patience.waited_s == 0:
            log.warning("backend_lost", reason=reason, waits_s=self._patience.within_s)
        wait_s = self._patience.next_wait_s()
        if wait_s is None:
            return False
        await anyio.sleep(wait_s)
        return True

    async def _observe(
        self, job: Job, execution: Execution, *, fresh: bool, alone: bool
    ) -> tuple[Observation, int, str]:
        """Borrow a sandbox and run the job; an environment that can't be opened stays refused."""
        pool, name = self._pool, job.environment.name
        if pool is None:  # left while this was under way in another task
            raise RuntimeError(NOT_OPEN)
        if name in self._refused:
            raise EnvironmentUnusable(self._refused[name])
        unusable: EnvironmentUnusable | None = None
        try:
            if name not in self._checked:
                await anyio.to_thread.run_sync(self.backend.check, job.environment)
                self._checked.add(name)
            async with pool.lend(job.environment, fresh=fresh, alone=alone) as lease:
                started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
                try:
                    self._running[lease.slot] = _running(execution, lease.slot)
                    observation = await lease.sandbox.run(job, lease.tell)
                    self._log_notes(name, observation)
                    return observation, lease.slot, started_at
                except EnvironmentUnusable as error:  # the sandbox itself is as good as before
                    unusable = error
                finally:
                    self._running.pop(lease.slot, None)
        except EnvironmentUnusable as error:
            self._refused[name] = str(error)
            raise
        raise unusable

    def _log_notes(self, name: str, observation: Observation) -> None:
        """What keeps an environment from being fast is said once."""
        known = self.not_warm.get(name, ())
        for note in observation.notes:
            if note not in known and len(known) < NOTES_KEPT:
                known = self.not_warm[name] = (*known, note)
                log.warning("not_warm", environment=name, reason=note)
        if observation.ran_again and name not in self._ran_again:
            self._ran_again.add(name)
            log.warning("ran_again_cold", environment=name, reason=observation.ran_again)

    def _unjudged(self, execution: Execution, kind: str, reason: str) -> tuple[Outcome, ...]:
        sample = execution.sample
        return tuple(
            Unjudged(
                reason=reason,
                kind="environment" if kind == "environment" else "infrastructure",
                github_id=sample.github_id,
                id=sample.id,
                index=index,
            )
            for index in execution.indices
        )

    async def judge_chain(self, chain: Chain) -> AsyncGenerator[Outcome, None]:
        """A chain's outcomes in order: with `until_pass`, those after a pass are skipped.

        Equal programs of a chain wait for their turn to share an outcome: a chain that is cut
        off and continued then comes to the same end.
        """
        has_passed = False
        shared: dict[str, Outcome] = {}
        for execution in chain:
            if has_passed and self.settings.until_pass:
                for verdict in schedule.skip(execution):
                    yield verdict
                continue
            known = shared.get(execution.code_hash) if self.settings.share_identical else None
            outcomes = [msgspec.structs.replace(known, index=i) for i in execution.indices if known]
            for outcome in outcomes or await self._execute(execution):
                has_passed = has_passed or (isinstance(outcome, Verdict) and outcome.passed)
                shared[execution.code_hash] = outcome
                yield outcome


def _running(execution: Execution, slot: int) -> Running:
    github_id, row_id = execution.sample.key
    index = execution.indices[0]
    return Running(slot=slot, github_id=github_id, id=row_id, index=index, since_s=time.monotonic())


def _look_for_weights(folder: Path) -> tuple[Manifest, frozenset[str]]:
    manifest = load_manifest(folder)
    return manifest, frozenset(Store(folder).present(manifest))
