"""Generate: many rows at once become answers, in a stream that an engine can judge."""

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Self

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream

from mlbench_exec import Handover, InputError, Rejected, RunFolderError, Submission
from mlbench_gen.clients import Message, Server, open_server
from mlbench_gen.errors import AskFailed, Passing, RowRefused, ServerRefused
from mlbench_gen.extraction import extract
from mlbench_gen.pacing import Pacer, backoff_s
from mlbench_gen.prompts import Template, template_of
from mlbench_gen.record import Record
from mlbench_gen.replies import Reply
from mlbench_gen.rows import Key, Row
from mlbench_gen.settings import Sampling, Service
from mlbench_gen.tally import Tally

__all__ = ["AnswerStream", "Client"]

CHARACTERS_PER_TOKEN = 3.125  # an estimate: ML-Bench counts 100,000 characters as 32,000 tokens
NOT_OPEN = "the client is not open: use `async with Client(...)`"
Item = Submission | Rejected
Keep = Callable[[Reply], Awaitable[int]]  # returns how many answers are missing after it


class Client:
    """Asks a model about rows, many at once.

    An async context manager: leaving it ends what is under way. Entering it raises `InputError`
    where the key or the `gen` extra is missing. With a `record`, what it holds is not asked again,
    and what is answered is kept in it. `server` replaces the one that `service` names.
    """

    def __init__(
        self,
        sampling: Sampling,
        service: Service | None = None,
        *,
        template: Template | None = None,
        record: Record | None = None,
        server: Server | None = None,
        pacer: Pacer | None = None,
    ) -> None:
        self.sampling = sampling
        self.service = service or Service()
        self.template = template or template_of(3)
        self.record = record
        self.tally = record.tally if record else Tally()
        self._server = server
        self._pacer = pacer or Pacer(
            self.service.requests_per_minute, self.service.tokens_per_minute
        )
        self._places = anyio.CapacityLimiter(self.service.concurrency)
        self._gives_one = self.service.one_at_a_time  # so much for asking for several at once
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            if self._server is None:
                self._server = await stack.enter_async_context(
                    open_server(self.sampling, self.service)
                )
            tasks = anyio.create_task_group()
            self._tasks = await stack.enter_async_context(tasks)
            stack.callback(tasks.cancel_scope.cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._tasks = None
        await self._stack.aclose()

    def generate(self, rows: Iterable[Row]) -> "AnswerStream":
        """Answer rows; iterate over the result for `Submission`s as they are finished.

        A row that can't be answered comes as `Rejected`, with the reason. Rows that the record
        holds come first. `rows` is advanced in a worker thread, only as fast as the answers are
        taken. Iterating raises `InputError` where the server refuses everything.
        """
        if self._tasks is None:
            raise RuntimeError(NOT_OPEN)
        stream = AnswerStream(self, rows if not isinstance(rows, Iterator) else list(rows))
        self._tasks.start_soon(stream.drive)
        return stream

    async def answer(self, row: Row) -> Item:
        """Ask until the row has all its answers. Raises `InputError` as `generate` does."""
        messages = self.template.render(row)
        digest = prompt_digest(messages)
        self.tally.under_way += 1
        try:
            if self.record is None:
                texts = await self._texts(row.key, messages)
            else:
                await self._complete(self.record, row.key, messages, digest)
                texts = await anyio.to_thread.run_sync(self.record.texts, row.key)
        except ServerRefused as error:
            raise InputError(str(error)) from None
        except AskFailed as error:
            return await self._failed(row, str(error))
        finally:
            self.tally.under_way -= 1
        self.tally.done += 1
        return self.submission(row.key, texts)

    def submission(self, key: Key, texts: Sequence[str]) -> Submission:
        return Submission(
            github_id=key[0],
            id=key[1],
            outputs=tuple(extract(text) for text in texts),
            place=self.sampling.model,
        )

    async def _failed(self, row: Row, reason: str) -> Rejected:
        self.tally.failed += 1
        if self.record is not None:
            await self.record.fail(row.key, reason)
        return Rejected(
            place=self.sampling.model,
            reason=f"{self.sampling.model} gave no answer: {reason}",
            github_id=row.github_id,
            id=row.id,
        )

    async def _texts(self, key: Key, messages: Sequence[Message]) -> list[str]:
        texts: list[str] = []

        async def keep(reply: Reply) -> int:
            texts.extend(answer.text for answer in reply.answers)
            return self.sampling.samples - len(texts)

        await self._gather(messages, self.sampling.samples, keep)
        return texts[: self.sampling.samples]

    async def _complete(
        self, record: Record, key: Key, messages: Sequence[Message], digest: str
    ) -> None:
        async def keep(reply: Reply) -> int:
            await record.add(key, digest, reply)
            return record.missing(key)

        await self._gather(messages, record.missing(key), keep)

    async def _gather(self, messages: Sequence[Message], missing: int, keep: Keep) -> None:
        """Ask for all that is missing at once; for what doesn't come so, one by one, at once."""
        if missing > 1 and not self._gives_one:
            reply = await self._ask(messages, missing)
            self._gives_one = len(reply.answers) == 1
            missing = await keep(reply)
        failures: list[AskFailed] = []

        async def one() -> None:
            try:
                await keep(await self._ask(messages, 1))
            except AskFailed as error:  # the others' answers are kept all the same
                failures.append(error)

        async with anyio.create_task_group() as tasks:
            for _ in range(missing):
                tasks.start_soon(one)
        if failures:
            raise next((f for f in failures if isinstance(f, ServerRefused)), failures[0])

    async def _ask(self, messages: Sequence[Message], count: int) -> Reply:
        """One request, repeated while its failures are passing ones."""
        assert self._server is not None
        estimate = self._estimate(messages, count)
        failed = 0
        while True:
            async with self._places:
                await self._pacer.admit(estimate)
                self.tally.requests += 1
                try:
                    reply = await self._server.ask(messages, count)
                except Passing as error:
                    failure = error
                else:
                    if reply.usage is not None:
                        used = reply.usage.prompt_tokens + reply.usage.completion_tokens
                        self._pacer.settle(used - estimate)
                    return _at_most(reply, count)
            failed += 1
            self.tally.retries[failure.cause] += 1
            if failed >= self.service.attempts:
                raise RowRefused(f"{failed} attempts failed; the last: {failure}")
            if failure.retry_after_s is not None:
                self._pacer.hold(failure.retry_after_s)
            await anyio.sleep(backoff_s(failed, self.service.backoff_s, failure.retry_after_s))

    def _estimate(self, messages: Sequence[Message], count: int) -> float:
        prompt = sum(len(message["content"]) for message in messages) / CHARACTERS_PER_TOKEN
        return prompt + count * (self.sampling.max_tokens or 0)


class AnswerStream(Handover[Item]):
    """The answers of one `Client.generate` call, as completed. One consumer at a time."""

    def __init__(self, client: Client, rows: Iterable[Row]) -> None:
        super().__init__(client.service.concurrency, "client")
        self.order: list[Key] = []  # every row read so far
        self._client = client
        self._rows = rows

    async def make(self) -> None:
        """What is there first, then what is missing."""
        await self._send_known()
        await self._ask_missing()

    async def _send_known(self) -> None:
        """Rows of the record, after a look whether any was answered for another prompt."""
        record, client = self._client.record, self._client
        if record is None:
            return
        others = await anyio.to_thread.run_sync(self._look, record)
        client.tally.rows = len(self.order)
        if others:
            shown = ", ".join(f"{github_id}/{row_id}" for github_id, row_id in others[:10])
            raise RunFolderError(
                f"{record.folder} holds answers of {len(others)} rows to other prompts than "
                f"these ({shown}): has the dataset changed? Take another --out, or --restart"
            )
        for key in self.order:
            if record.is_complete(key):
                texts = await anyio.to_thread.run_sync(record.texts, key)
                client.tally.done += 1
                await self._send.send(client.submission(key, texts))

    def _look(self, record: Record) -> list[Key]:
        """Read all rows once; those of the record whose prompts are others now. Blocks."""
        others: list[Key] = []
        for row in self._rows:
            self.order.append(row.key)
            known = record.prompt_of(row.key)
            if known is not None and prompt_digest(self._client.template.render(row)) != known:
                others.append(row.key)
        return others

    async def _ask_missing(self) -> None:
        record = self._client.record
        send, receive = anyio.create_memory_object_stream[Row](0)
        async with anyio.create_task_group() as tasks:
            for _ in range(self.size):
                tasks.start_soon(self._work, receive.clone())
            receive.close()
            with send:
                async for row in _in_thread(self._rows):
                    if record is None or not record.is_complete(row.key):
                        try:
                            await send.send(row)
                        except anyio.BrokenResourceError:
                            break  # all have failed; the group raises why, once it has heard

    async def _work(self, receive: MemoryObjectReceiveStream[Row]) -> None:
        with receive:
            async for row in receive:
                await self._send.send(await self._client.answer(row))


def prompt_digest(messages: Sequence[Message]) -> str:
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:32]


async def _in_thread(rows: Iterable[Row]) -> AsyncIterator[Row]:
    """The rows, each read in a worker thread: datasets block."""
    iterator = iter(rows)
    end = object()
    while True:
        row = await anyio.to_thread.run_sync(next, iterator, end)
        if not isinstance(row, Row):
            return
        yield row


def _at_most(reply: Reply, count: int) -> Reply:
    """Servers may give more than they were asked for; the usage is theirs."""
    return Reply(answers=reply.answers[:count], usage=reply.usage, model=reply.model)
