"""A stream of verdicts: submissions are read, planned and judged as fast as outcomes are taken."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Hashable, Iterable, Mapping
from typing import Protocol

import anyio

from mlbench_exec import schedule
from mlbench_exec.environments import Environment
from mlbench_exec.handover import Handover
from mlbench_exec.samples import Key, Sample
from mlbench_exec.schedule import Chain
from mlbench_exec.settings import Settings
from mlbench_exec.submissions import Rejected, Submission, as_submissions, screen
from mlbench_exec.verdicts import Unjudged, Verdict
from mlbench_exec.waiting import Waiting

LOOK_AHEAD = 4  # chains that wait for each worker, so that an environment's come together
Outcome = Verdict | Unjudged
JudgedRows = Mapping[Key, Mapping[int, bool]]  # by row and index: whether it passed


class Judge(Protocol):
    """The engine that a stream belongs to."""

    @property
    def settings(self) -> Settings: ...
    @property
    def samples(self) -> Mapping[Key, Sample]: ...
    @property
    def bad_rows(self) -> Mapping[Key, str]: ...
    @property
    def size(self) -> int: ...

    def environment_of(self, github_id: int) -> Environment | None: ...
    def judge_chain(self, chain: Chain) -> AsyncGenerator[Outcome, None]: ...
    def forget(self, stream: "VerdictStream") -> None: ...


class VerdictStream(Handover[Outcome]):
    """The outcomes of one `Engine.stream` call, as completed. One consumer at a time.

    Iterating raises, bare, what `submissions` raised, after the outcomes that came before it; and
    `RuntimeError` where the engine was left before the end.
    """

    def __init__(
        self,
        engine: Judge,
        submissions: Iterable[object] | AsyncIterable[object],
        judged: JudgedRows,
    ) -> None:
        super().__init__(engine.size, "engine")
        self.rows: dict[Key, int] = {}  # every row read so far, with its number of outputs
        self._engine = engine
        self._submissions = submissions
        self._judged = judged

    def discard(self) -> None:
        """Let go of what nobody will take any more."""
        self._engine.forget(self)
        super().discard()

    async def make(self) -> None:
        """Read, plan, execute, hand over."""
        waiting = Waiting(LOOK_AHEAD * self.size)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._feed_all, waiting)
            for _ in range(self.size):
                tasks.start_soon(self._work, waiting)

    async def _feed_all(self, waiting: Waiting) -> None:
        """Where the submissions raise, what they gave before is judged still."""
        try:
            await self._feed(waiting)
        except Exception as error:  # noqa: BLE001 - handed to the consumer
            self._failure = error
        finally:
            waiting.close()

    async def _feed(self, waiting: Waiting) -> None:
        settings = self._engine.settings
        samples = self._engine.samples
        screened = screen(
            as_submissions(self._submissions),
            samples,
            split=settings.split,
            bad_rows=self._engine.bad_rows,
        )
        async with contextlib.aclosing(screened) as rows:
            async for row in rows:
                if isinstance(row, Rejected):
                    await self._send.send(_rejected(row))
                    continue
                self.rows[row.key] = len(row.outputs)
                await self._feed_row(row, waiting)

    async def _feed_row(self, row: Submission, waiting: Waiting) -> None:
        settings = self._engine.settings
        plan = schedule.plan(
            row,
            self._engine.samples[row.key],
            self._judged.get(row.key, {}),
            until_pass=settings.until_pass,
            share_identical=settings.share_identical,
        )
        decided: tuple[Outcome, ...] = (*plan.verdicts, *plan.unjudged)
        for outcome in decided:
            await self._send.send(outcome)
        environment = self._engine.environment_of(row.key[0])
        for chain in plan.chains:
            await waiting.put(environment and environment.name, chain)

    async def _work(self, waiting: Waiting) -> None:
        name: Hashable = None  # of the environment that the last chain ran in
        while (taken := await waiting.take(name)) is not None:
            name, chain = taken
            async with contextlib.aclosing(self._engine.judge_chain(chain)) as outcomes:
                async for outcome in outcomes:
                    await self._send.send(outcome)


def _rejected(row: Rejected) -> Unjudged:
    return Unjudged(
        reason=row.reason, kind="input", github_id=row.github_id, id=row.id, place=row.place
    )
