import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mlbench_exec.engine import ATTEMPTS, Engine, Snippet, UnjudgedError
from mlbench_exec.environments import Environment, Environments
from mlbench_exec.errors import BackendLost, EnvironmentUnusable, InputError, SandboxFailed
from mlbench_exec.samples import Sample
from mlbench_exec.sandbox import Job, Observation
from mlbench_exec.settings import Settings
from mlbench_exec.submissions import Rejected, Submission, output_hash
from mlbench_exec.testing.fakes import FakeBackend, FakeSandbox, observation
from mlbench_exec.verdict_stream import Outcome
from mlbench_exec.verdicts import Unjudged, Verdict

ROWS = 1000
ORPHAN = 12  # a github_id without an environment
FOREVER_S = 1000.0


def sample(github_id: int, row_id: int, type: str = "Python Code", **changes: Any) -> Sample:
    fields: dict[str, Any] = {"repository": "r", "path": "sub", "arguments": {}} | changes
    return Sample(github_id=github_id, id=row_id, type=type, **fields)


SAMPLES = {
    one.key: one
    for one in (
        *(sample(1, row_id) for row_id in range(1, ROWS + 1)),
        sample(2, 1, "Bash Script"),
        sample(2, 2, arguments={"lr": "0.1"}),
        sample(ORPHAN, 1),
    )
}
ENVIRONMENTS = Environments(
    (
        Environment(name="one", github_ids=(1,), repo="one", workdir="/srv/one"),
        Environment(
            name="two",
            github_ids=(2,),
            repo="two",
            workdir="/srv/two",
            time_limit_s={"python": 3.0, "bash": 4.0},
        ),
    )
)


def engine_on(backend: FakeBackend, **settings: Any) -> Engine:
    return Engine(
        Settings(**({"concurrency": 2} | settings)),
        samples=SAMPLES,
        environments=ENVIRONMENTS,
        backend=backend,
    )


def play(job: Job) -> Observation | Exception:
    """A program is the name of what becomes of it."""
    match job.code.split()[0]:
        case b"ok":
            return observation()
        case b"broken":
            return SandboxFailed("the agent is gone")
        case b"unusable":
            return EnvironmentUnusable("environment one: there is no folder /srv/one/sub")
        case _:
            return observation(exit_code=1, stderr="Traceback\nValueError: no")


def hang(job: Job) -> float:
    return FOREVER_S if job.code.startswith(b"hang") else 0.0


def row(row_id: int, *outputs: str | None, github_id: int = 1) -> Submission:
    return Submission(github_id=github_id, id=row_id, outputs=outputs, place=f"row {row_id}")


def line(row_id: int, *outputs: str, github_id: int = 1) -> dict[str, object]:
    return {"github_id": github_id, "id": row_id, "output": list(outputs)}


async def judge(engine: Engine, *rows: object) -> list[Outcome]:
    return [outcome async for outcome in engine.stream(rows)]


def verdicts(outcomes: list[Outcome]) -> list[Verdict]:
    assert all(isinstance(outcome, Verdict) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, Verdict)]


def unjudged(outcomes: list[Outcome]) -> list[Unjudged]:
    assert all(isinstance(outcome, Unjudged) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, Unjudged)]


async def settle() -> None:
    for _ in range(100):
        await anyio.lowlevel.checkpoint()


async def wait_for_jobs(backend: FakeBackend, count: int) -> None:
    with anyio.fail_after(5):
        while len(backend.jobs) < count:
            await anyio.lowlevel.checkpoint()


# One output.


@pytest.mark.asyncio
async def test_run_judges_one_output() -> None:
    """The verdict holds what the sandbox saw, and where and when that was."""
    backend = FakeBackend(play)
    async with engine_on(backend) as engine:
        assert backend.is_entered
        verdict = await engine.run(Snippet(github_id=1, id=7, output="bad", index=3))
    assert not backend.is_entered
    assert (verdict.key, verdict.index) == ((1, 7), 3)
    assert (verdict.status, verdict.passed, verdict.exit_code) == ("failed", False, 1)
    assert (verdict.environment, verdict.slot, verdict.attempts) == ("one", 0, 1)
    assert verdict.output_hash == output_hash("bad")
    assert verdict.started_at is not None
    (job,) = backend.jobs
    assert (job.environment.name, job.path, job.language, job.code) == (
        "one",
        "sub",
        "python",
        b"bad",
    )


@pytest.mark.asyncio
async def test_run_tells_an_unknown_row() -> None:
    """The message names the row, the dataset and the split."""
    async with engine_on(FakeBackend(), dataset="rows.jsonl") as engine:
        with pytest.raises(InputError, match=r"github_id 5, id 6 .*rows\.jsonl, split full"):
            await engine.run(Snippet(github_id=5, id=6, output="ok"))


@pytest.mark.asyncio
async def test_run_raises_where_there_is_no_verdict() -> None:
    """What could not be judged is an exception that carries why."""
    async with engine_on(FakeBackend(play)) as engine:
        with pytest.raises(UnjudgedError, match="has no environment") as caught:
            await engine.run(Snippet(github_id=ORPHAN, id=1, output="ok"))
    assert caught.value.unjudged.kind == "environment"


@pytest.mark.asyncio
async def test_static_failures_cost_no_sandbox() -> None:
    """Wrong arguments and types are known without running anything."""
    backend = FakeBackend(play)
    async with engine_on(backend) as engine:
        alone = await engine.run(Snippet(github_id=2, id=2, output="f()"))
        found = verdicts(await judge(engine, line(2, "f()", "a.py --lr 0.1", github_id=2)))
    assert alone.status == "wrong_arguments"
    assert [one.status for one in found] == ["wrong_arguments", "wrong_type"]
    assert not backend.jobs
    assert not backend.sandboxes


@pytest.mark.asyncio
async def test_lone_surrogates_are_run() -> None:
    """JSON's escapes can hold them; a program of them is that program's affair."""
    backend = FakeBackend(play)
    async with engine_on(backend) as engine:
        await engine.run(Snippet(github_id=1, id=1, output="ok \ud800"))
    assert backend.jobs[0].code == b"ok \xed\xa0\x80"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("snippet", "own_s"),
    [
        (Snippet(github_id=1, id=1, output="ok"), 10.0),
        (Snippet(github_id=2, id=2, output="ok 0.1"), 3.0),
        (Snippet(github_id=2, id=1, output="ok a.py "), 4.0),
    ],
)
async def test_time_limits_are_the_environments_unless_told(snippet: Snippet, own_s: float) -> None:
    """Each environment and language has its own; the setting goes before all of them."""
    backend = FakeBackend(play)
    for time_limit_s in (None, 1.5):
        async with engine_on(backend, time_limit_s=time_limit_s) as engine:
            await engine.run(snippet)
    assert [job.time_limit_s for job in backend.jobs] == [own_s, 1.5]


# When sandboxes and environments fail.


@pytest.mark.asyncio
async def test_a_failed_sandbox_is_replaced_and_the_attempts_are_counted() -> None:
    """The second attempt has a sandbox that nobody used, and the verdict says it is the second."""
    failures = [SandboxFailed("gone")]
    backend = FakeBackend(lambda job: failures.pop() if failures else observation())
    async with engine_on(backend) as engine:
        verdict = await engine.run(Snippet(github_id=1, id=1, output="ok"))
    assert (verdict.status, verdict.attempts) == ("passed", 2)
    assert [sandbox.runs for sandbox in backend.sandboxes] == [1, 1]


@pytest.mark.asyncio
async def test_three_failed_sandboxes_leave_an_output_unjudged() -> None:
    """It is the infrastructure's failure, and the others are judged."""
    backend = FakeBackend(play)
    async with engine_on(backend, concurrency=1) as engine:
        broken, fine = await judge(engine, line(1, "broken", "ok"))
    assert isinstance(broken, Unjudged)
    assert (broken.kind, broken.github_id, broken.id, broken.index) == ("infrastructure", 1, 1, 0)
    assert broken.reason == "3 sandboxes failed; the last: the agent is gone"
    assert isinstance(fine, Verdict)
    assert fine.passed
    assert len(backend.jobs) == ATTEMPTS + 1


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_lost_backend_is_waited_for() -> None:
    """When it comes back, nothing has been counted as an attempt, and nothing is lost."""
    looks = 0

    def script(job: Job) -> Observation | Exception:
        nonlocal looks
        looks += 1
        return BackendLost("nobody answers") if looks < 6 else observation()

    async with engine_on(FakeBackend(script)) as engine:
        (verdict,) = verdicts(await judge(engine, row(1, "ok")))
        assert engine.lost_s == 0
    assert (verdict.status, verdict.attempts) == ("passed", 1)
    assert looks == 6


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_backend_that_stays_lost_leaves_its_outputs_unjudged_in_time() -> None:
    """The wait is one for all outputs, not one for each, and the reason says what is missing."""
    backend = FakeBackend(lambda job: BackendLost("nobody answers at the socket"))
    with anyio.fail_after(10):
        async with engine_on(backend, patience_s=0.5) as engine:
            outcomes = await judge(engine, *(row(number, "ok") for number in range(1, 101)))
    reasons = {one.reason for one in unjudged(outcomes)}
    assert reasons == {"nobody answers at the socket; it did not come back within 0.5 s"}
    assert len(outcomes) == 100


@pytest.mark.asyncio
async def test_idle_sandboxes_that_died_cost_no_output() -> None:
    """Attempts after the first never take one that waited: all of these may be dead."""

    class Mortal(FakeBackend):
        dead: tuple[FakeSandbox, ...] = ()

        async def _play(self, job: Job) -> Observation:
            if any(sandbox._is_busy for sandbox in self.dead):
                raise SandboxFailed("the daemon was restarted")
            return await super()._play(job)

    backend = Mortal(play)
    async with engine_on(backend, concurrency=4) as engine:
        assert engine._pool is not None
        async with contextlib.AsyncExitStack() as leases:
            for _ in range(4):
                await leases.enter_async_context(engine._pool.lend(ENVIRONMENTS.all[0]))
        backend.dead = tuple(backend.sandboxes)
        verdict = await engine.run(Snippet(github_id=1, id=1, output="ok"))
    assert (verdict.passed, verdict.attempts) == (True, 2)


@pytest.mark.asyncio
async def test_an_unusable_environment_is_not_tried_again() -> None:
    """No retry would help; the sandbox serves the next output."""
    backend = FakeBackend(play)
    async with engine_on(backend, concurrency=1) as engine:
        missing, fine = await judge(engine, line(1, "unusable", "ok"))
    assert isinstance(missing, Unjudged)
    assert (missing.kind, missing.index) == ("environment", 0)
    assert "there is no folder" in missing.reason
    assert isinstance(fine, Verdict)
    assert fine.attempts == 1
    assert [sandbox.runs for sandbox in backend.sandboxes] == [2]


@pytest.mark.asyncio
async def test_an_environment_that_isnt_there_costs_its_own_outputs_only() -> None:
    """They stay unjudged, static verdicts are given, other environments go on."""
    backend = FakeBackend(play, unusable={"two": "it has no image"})
    async with engine_on(backend) as engine:
        found = await judge(
            engine,
            line(2, "ok 0.1", "f()", github_id=2),
            line(1, "ok"),
            line(1, "ok", github_id=ORPHAN),
        )
    by_key = {(one.github_id, one.index): one for one in found}
    missing, static = by_key[2, 0], by_key[2, 1]
    fine, orphan = by_key[1, 0], by_key[ORPHAN, 0]
    assert isinstance(missing, Unjudged)
    assert (missing.kind, missing.reason) == ("environment", "environment two: it has no image")
    assert isinstance(static, Verdict)
    assert isinstance(fine, Verdict)
    assert isinstance(orphan, Unjudged)
    assert (orphan.kind, "github_ids = [12]" in orphan.reason) == ("environment", True)
    assert len(backend.jobs) == 1


# Many outputs.


async def as_async(rows: list[Any]) -> AsyncIterator[Any]:
    for one in rows:
        await anyio.lowlevel.checkpoint()
        yield one


@pytest.mark.asyncio
@pytest.mark.parametrize("is_async", [False, True])
async def test_streams_take_any_iterable(is_async: bool) -> None:
    """Lists, generators and async iterators, of submissions, dicts and rejected lines."""
    rows = [row(1, "ok", "bad"), line(2, "ok"), Rejected(place="o.jsonl:3", reason="is no JSON"), 7]
    async with engine_on(FakeBackend(play)) as engine:
        stream = engine.stream(as_async(rows) if is_async else iter(rows))
        found = [outcome async for outcome in stream]
    judged = verdicts([one for one in found if isinstance(one, Verdict)])
    assert sorted((one.id, one.index, one.status) for one in judged) == [
        (1, 0, "passed"),
        (1, 1, "failed"),
        (2, 0, "passed"),
    ]
    rejected = unjudged([one for one in found if isinstance(one, Unjudged)])
    assert [(one.kind, one.place) for one in rejected] == [
        ("input", "o.jsonl:3"),
        ("input", "item 4"),
    ]
    assert stream.rows == {(1, 1): 2, (1, 2): 1}


@pytest.mark.asyncio
async def test_rows_that_cant_be_used_are_told_apart() -> None:
    """Unknown rows and second ones are named with their place; no output goes missing."""
    async with engine_on(FakeBackend(play), split="quarter") as engine:
        found = unjudged(
            await judge(
                engine,
                row(1, None),
                row(1, "ok"),
                row(3, "ok", github_id=99),
            )
        )
    assert [(one.place, one.index) for one in found] == [
        ("row 1", 0),
        ("row 1", None),
        ("row 3", None),
    ]
    assert {one.kind for one in found} == {"input"}
    assert "is not a string" in found[0].reason
    assert "was given at row 1 already" in found[1].reason
    assert "split quarter" in found[2].reason


@pytest.mark.asyncio
async def test_outcomes_come_as_completed() -> None:
    """A slow output holds back nobody."""
    backend = FakeBackend(play, delay_s=lambda job: 0.05 if b"slow" in job.code else 0.0)
    async with engine_on(backend) as engine:
        found = verdicts(await judge(engine, line(1, "ok slow"), line(2, "ok"), line(3, "ok")))
    assert [one.id for one in found] == [2, 3, 1]


@pytest.mark.asyncio
async def test_as_many_run_at_once_as_were_asked_for() -> None:
    """Concurrency is used, and never exceeded, by one stream or two."""
    backend = FakeBackend(play, delay_s=0.001)
    async with engine_on(backend, concurrency=3) as engine, anyio.create_task_group() as tasks:
        for start in (1, 101):
            tasks.start_soon(judge, engine, *(line(start + i, "ok", "bad") for i in range(10)))
    assert backend.statistics().runs == 40
    assert backend.statistics().peak_running == 3


@pytest.mark.asyncio
async def test_two_streams_keep_their_outcomes_apart() -> None:
    """Each consumer gets the outcomes of its own submissions, also of equal rows."""
    async with engine_on(FakeBackend(play)) as engine:
        first = engine.stream(line(i, "ok") for i in range(1, 20))
        second = engine.stream(line(i, "bad") for i in range(1, 20))
        statuses = []
        async for one in first:
            statuses.append((one, await anext(second)))
        with pytest.raises(StopAsyncIteration):
            await anext(second)
    assert len(statuses) == 19
    for one, other in statuses:
        assert isinstance(one, Verdict)
        assert isinstance(other, Verdict)
        assert (one.status, other.status) == ("passed", "failed")


@pytest.mark.asyncio
async def test_judged_outputs_are_left_out() -> None:
    """What is known already is not run, and its pass counts for the rest of its row."""
    backend = FakeBackend(play)
    async with engine_on(backend, until_pass=True) as engine:
        stream = engine.stream([row(1, "bad", "ok", "ok 2")], judged={(1, 1): {1: True}})
        found = verdicts([outcome async for outcome in stream])
    assert sorted((one.index, one.status) for one in found) == [(0, "failed"), (2, "skipped")]
    assert len(backend.jobs) == 1


@pytest.mark.asyncio
async def test_until_pass_stops_a_row_at_its_pass() -> None:
    """What follows is skipped; what was left without a verdict does not stop it."""
    backend = FakeBackend(play)
    async with engine_on(backend, until_pass=True) as engine:
        found = await judge(engine, line(1, "bad", "broken", "ok", "ok 2", "bad"))
    assert [one.status if isinstance(one, Verdict) else one.kind for one in found] == [
        "failed",
        "infrastructure",
        "passed",
        "skipped",
        "skipped",
    ]
    assert len(backend.jobs) == 1 + ATTEMPTS + 1


@pytest.mark.asyncio
async def test_equal_outputs_are_run_once_where_asked() -> None:
    """Each has a verdict of its own, with the same observation."""
    backend = FakeBackend(play)
    async with engine_on(backend, share_identical=True) as engine:
        found = verdicts(await judge(engine, line(1, "ok", "bad", "ok"), line(2, "ok")))
    assert len(found) == 4
    assert len(backend.jobs) == 3
    assert {(one.index, one.status) for one in found if one.id == 1} == {
        (0, "passed"),
        (1, "failed"),
        (2, "passed"),
    }


@pytest.mark.asyncio
async def test_equal_outputs_share_an_execution_until_a_pass() -> None:
    """Also one that came to no verdict; what follows the pass is skipped, whatever it equals."""
    backend = FakeBackend(play)
    async with engine_on(backend, share_identical=True, until_pass=True) as engine:
        found = await judge(engine, line(1, "bad", "broken", "bad", "broken", "ok", "bad", "ok"))
    named = [(one.index, one.status if isinstance(one, Verdict) else one.kind) for one in found]
    assert sorted(named) == [
        (0, "failed"),
        (1, "infrastructure"),
        (2, "failed"),
        (3, "infrastructure"),
        (4, "passed"),
        (5, "skipped"),
        (6, "skipped"),
    ]
    assert len(backend.jobs) == 1 + ATTEMPTS + 1


# Slow, lazy and leaving consumers.


class Source:
    """Counts how far it was read."""

    def __init__(self) -> None:
        self.read = 0
        self.is_closed = False

    def rows(self) -> Iterator[dict[str, object]]:
        for row_id in range(1, ROWS + 1):
            self.read += 1
            yield line(row_id, "ok")

    async def rows_async(self) -> AsyncIterator[dict[str, object]]:
        try:
            for one in self.rows():
                yield one
        finally:
            self.is_closed = True


@pytest.mark.asyncio
async def test_what_runs_in_one_environment_is_kept_together() -> None:
    """Rows that take turns between two environments don't: one slot would open for each of them."""
    samples = {one.key: one for n in range(40) for one in (sample(1, n), sample(2, n))}
    backend = FakeBackend(play)
    engine = Engine(
        Settings(concurrency=1), samples=samples, environments=ENVIRONMENTS, backend=backend
    )
    async with engine:
        rows = [row(n, "ok", github_id=github_id) for n in range(40) for github_id in (1, 2)]
        assert len(verdicts(await judge(engine, *rows))) == 80
    assert backend.statistics().opens <= 25


@pytest.mark.asyncio
async def test_a_slow_consumer_stops_the_reading() -> None:
    """Submissions are read only a little ahead of what is taken."""
    source, backend = Source(), FakeBackend(play)
    async with engine_on(backend) as engine:
        stream = engine.stream(source.rows())
        for taken in range(1, 30):
            await anext(stream)
            await settle()
            assert source.read <= taken + 2 + 2 + 2 + 8  # buffered, held, being fed, waiting
            assert len(backend.jobs) <= source.read
        assert engine.statistics().lent == 0  # nobody holds a sandbox while it waits
        await stream.aclose()


@pytest.mark.asyncio
async def test_stopping_early_leaves_nothing() -> None:
    """After a break, leaving the engine ends the work and closes the iterator."""
    source, backend = Source(), FakeBackend(play)
    async with engine_on(backend) as engine:
        async for _ in engine.stream(source.rows_async()):
            break
        async for _ in engine.stream([line(1, "hang")]):
            break
    assert source.is_closed
    assert backend.statistics().is_open == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.asyncio
async def test_a_stream_that_was_left_can_be_gone_on_with() -> None:
    """A break is no end: the stream keeps the outcomes that nobody took."""
    async with engine_on(FakeBackend(play)) as engine:
        stream = engine.stream(line(i, "ok") for i in range(1, 11))
        seen = []
        async for outcome in stream:
            seen.append(outcome.id)
            break
        seen += [outcome.id async for outcome in stream]
        assert sorted(one or 0 for one in seen) == list(range(1, 11))
        assert [outcome async for outcome in stream] == []


@pytest.mark.asyncio
async def test_closing_a_stream_ends_what_it_runs() -> None:
    """Its programs end, its iterator is closed; the engine serves others."""
    backend = FakeBackend(play, delay_s=hang)
    async with engine_on(backend) as engine:
        async with contextlib.aclosing(engine.stream([line(1, "hang", "hang", "hang")])) as stream:
            await wait_for_jobs(backend, 2)
        assert backend.statistics().running == 0
        assert [outcome async for outcome in stream] == []
        await stream.aclose()
        assert (await engine.run(Snippet(github_id=1, id=1, output="ok"))).passed
    assert backend.statistics().runs == 3


@pytest.mark.asyncio
async def test_an_ended_stream_is_forgotten() -> None:
    """An engine that serves for long does not keep every stream that it served."""
    async with engine_on(FakeBackend(play)) as engine:
        for _ in range(3):
            await judge(engine, line(1, "ok"))
        assert not engine._streams


@pytest.mark.asyncio
async def test_a_cancelled_consumer_can_leave() -> None:
    """Cancelling who waits for an outcome ends neither the engine nor other streams."""
    backend = FakeBackend(play, delay_s=hang)
    async with engine_on(backend) as engine:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(judge, engine, line(1, "hang"))
            await wait_for_jobs(backend, 1)
            tasks.cancel_scope.cancel()
        assert verdicts(await judge(engine, line(2, "ok")))[0].passed
    assert backend.statistics().is_open == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.asyncio
async def test_a_cancelled_block_leaves_nothing() -> None:
    """Cancelling the whole block is as good as leaving it."""
    backend = FakeBackend(play, delay_s=hang)
    with anyio.CancelScope() as scope:
        async with engine_on(backend) as engine:
            stream = engine.stream([line(1, "hang", "hang")])
            await wait_for_jobs(backend, 2)
            scope.cancel()
            await anext(stream)
    assert scope.cancelled_caught
    assert backend.statistics().is_open == 0
    assert not backend.is_entered
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.asyncio
async def test_asyncios_own_cancellation_leaves_nothing() -> None:
    """A task that is cancelled from outside, as by asyncio.timeout, cleans up too."""
    backend = FakeBackend(play, delay_s=hang)

    async def work() -> None:
        async with engine_on(backend) as engine:
            await judge(engine, line(1, "hang", "hang"))

    task = asyncio.ensure_future(work())
    await wait_for_jobs(backend, 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert backend.statistics().is_open == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


# Errors keep their shape.


@pytest.mark.asyncio
async def test_an_iterator_that_raises_reaches_the_consumer_bare() -> None:
    """After the outcomes of what it gave before, once, and in no exception group."""

    def rows() -> Iterator[object]:
        yield line(1, "ok", "bad", "ok")
        raise LookupError("my database is gone")

    async with engine_on(FakeBackend(play)) as engine:
        stream = engine.stream(rows())
        assert len(verdicts([await anext(stream) for _ in range(3)])) == 3
        with pytest.raises(LookupError, match="my database is gone"):
            await anext(stream)
        assert [outcome async for outcome in stream] == []
        assert len(verdicts(await judge(engine, line(2, "ok")))) == 1


@pytest.mark.asyncio
async def test_the_blocks_own_exception_leaves_it_bare() -> None:
    """While work is under way, too."""
    backend = FakeBackend(play, delay_s=hang)

    async def work() -> None:
        async with engine_on(backend) as engine:
            engine.stream([line(1, "hang")])
            await wait_for_jobs(backend, 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await work()
    assert backend.statistics().is_open == 0


@pytest.mark.asyncio
async def test_an_engine_that_isnt_open_says_so() -> None:
    """Before and after its block, with the way to open it."""
    engine = engine_on(FakeBackend(play))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="use `async with Engine"):
            await engine.run(Snippet(github_id=1, id=1, output="ok"))
        with pytest.raises(RuntimeError, match="use `async with Engine"):
            engine.stream([])
        async with engine:
            with pytest.raises(RuntimeError, match="is open already"):
                await engine.__aenter__()
            assert (await engine.run(Snippet(github_id=1, id=1, output="ok"))).passed


@pytest.mark.asyncio
async def test_work_of_other_tasks_ends_with_the_engine() -> None:
    """Whoever still waits for it is told, rather than left with less than was asked for."""
    backend, errors = FakeBackend(play, delay_s=hang), list[str]()

    async def expect_end(work: Any) -> None:
        try:
            await work
        except RuntimeError as error:
            errors.append(str(error))

    async with anyio.create_task_group() as tasks, engine_on(backend) as engine:
        await engine.run(Snippet(github_id=1, id=1, output="ok"))
        tasks.start_soon(expect_end, engine.run(Snippet(github_id=1, id=1, output="hang")))
        tasks.start_soon(expect_end, judge(engine, line(2, "hang"), line(3, "hang")))
        await wait_for_jobs(backend, 3)
    assert sorted(errors) == [
        "the engine or pool was left: its sandboxes are gone",
        "the engine was left before the end of this stream",
    ]
    assert backend.statistics().is_open == 0


@pytest.mark.asyncio
async def test_a_backend_that_cant_start_leaves_the_engine_closed() -> None:
    """The error is the backend's own."""

    class Missing(FakeBackend):
        async def __aenter__(self) -> "Missing":
            raise InputError("no such thing")

    engine = engine_on(Missing())
    with pytest.raises(InputError, match="no such thing"):
        async with engine:
            pytest.fail("it can't be open")
    with pytest.raises(RuntimeError, match="use `async with Engine"):
        engine.stream([])
