"""Dry run: what a run would execute where, and what the checks before it decide."""

from contextlib import aclosing

import anyio.to_thread
import msgspec

from mlbench_exec.engine import Engine
from mlbench_exec.errors import EnvironmentUnusable
from mlbench_exec.run import Selection, can_reread
from mlbench_exec.samples import Key
from mlbench_exec.sandbox import Backend
from mlbench_exec.schedule import plan
from mlbench_exec.settings import Settings
from mlbench_exec.submissions import Rejected, screen
from mlbench_exec.weights import Missing


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """What a run would do in one environment."""

    environment: str
    executions: int
    problem: str | None  # why these could not be judged


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a run would do."""

    planned: tuple[Planned, ...]
    static: int  # outputs that the static checks decide
    unusable: tuple[str, ...]  # lines and outputs that can't be judged, each with the reason
    weights: tuple[Missing, ...] = ()  # files that rows need and that aren't here


async def dry_run(
    outputs: str | None, settings: Settings, selection: Selection, *, backend: Backend | None = None
) -> DryRun:
    """What would be executed where, and what the checks before it decide."""
    counts: dict[int, int] = {}
    waiting: dict[Key, int] = {}
    static = 0
    await anyio.to_thread.run_sync(can_reread, outputs)
    async with Engine(settings, backend=backend) as engine:
        bad_rows = engine.dataset.rejected if engine.dataset else ()
        unusable = [f"{row.place}: {row.reason}" for row in bad_rows]
        screened = screen(
            selection.read(outputs, engine.samples),
            engine.samples,
            split=settings.split,
            bad_rows=engine.bad_rows,
        )
        async with aclosing(screened) as rows:
            async for row in rows:
                if isinstance(row, Rejected):
                    unusable.append(f"{row.place}: {row.reason}")
                    continue
                sample = engine.samples[row.key]
                found = plan(row, sample, {}, share_identical=settings.share_identical)
                static += len(found.verdicts)
                unusable += (
                    f"{one.place}, output {one.index}: {one.reason}" for one in found.unjudged
                )
                counts[row.github_id] = counts.get(row.github_id, 0) + len(found.chains)
                waiting[row.key] = len(row.outputs) - len(found.verdicts) - len(found.unjudged)
        planned = [
            await anyio.to_thread.run_sync(_planned, engine, github_id, count)
            for github_id, count in counts.items()
        ]
        lacking = await anyio.to_thread.run_sync(engine.missing_weights, waiting)
    return DryRun(
        planned=tuple(planned), static=static, unusable=tuple(unusable), weights=tuple(lacking)
    )


def _planned(engine: Engine, github_id: int, count: int) -> Planned:
    environment = engine.environment_of(github_id)
    if environment is None:
        name, problem = f"github_id {github_id}", "it has no environment"
        return Planned(environment=name, executions=count, problem=problem)
    try:
        engine.backend.check(environment)
    except EnvironmentUnusable as error:
        return Planned(environment=environment.name, executions=count, problem=str(error))
    return Planned(environment=environment.name, executions=count, problem=None)
