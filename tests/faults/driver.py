"""The run command with a rogue in its agents' place, short waits, or a clock that steps."""

import itertools
import sys
import time
from pathlib import Path

import click

from mlbench_exec import command
from mlbench_exec.backends import agent_sandbox
from mlbench_exec.backends.local import LocalBackend
from mlbench_exec.report import progress
from mlbench_exec.run import Evaluation
from mlbench_exec.sandbox import Backend, Limits
from mlbench_exec.settings import Settings, parse_size
from mlbench_exec.testing.fakes import FakeBackend


@click.command()
@click.option("--rogue", type=click.Path(path_type=Path), default=None)
@click.option("--grace", type=float, default=3.0)
@click.option("--cap", type=float, default=10.0)
@click.option("--patience", type=float, default=120.0)
@click.option("--progress", "progress_s", type=float, default=10.0)
@click.option("--fake", is_flag=True, help="Execute nothing: what would run exits with 0.")
@click.option("--steps", is_flag=True, help="Each look at the wall clock sees another day.")
@click.argument("outputs")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--dataset", required=True)
@click.option("--environments", type=click.Path(path_type=Path), required=True)
@click.option("--memory", required=True)
@click.option("--time-limit", type=float, required=True)
@click.option("--backend", required=True)
@click.option("--concurrency", type=int, default=2)
def main(
    rogue: Path | None,
    grace: float,
    cap: float,
    patience: float,
    progress_s: float,
    fake: bool,
    steps: bool,
    outputs: str,
    out: Path,
    dataset: str,
    environments: Path,
    memory: str,
    time_limit: float,
    backend: str,
    concurrency: int,
) -> None:
    agent_sandbox.ANSWER_GRACE_S = agent_sandbox.FIRST_RUN_GRACE_S = grace
    agent_sandbox.WARM_GRACE_S = 0.0
    agent_sandbox.START_TIMEOUT_S = max(grace, 10.0)
    progress.LINE_EVERY_S = progress_s
    if steps:
        step_clock()
    with command.Failures():
        limits = Limits(memory_bytes=parse_size(memory), wall_cap_factor=cap)
        settings = Settings(
            dataset=dataset,
            environments_file=environments,
            backend="docker" if backend == "docker" else "local",
            concurrency=concurrency,
            limits=limits,
            time_limit_s=time_limit,
            patience_s=patience,
        )
        given: Backend | None = None
        if fake:
            given = FakeBackend(delay_s=0.002)
        elif rogue:
            given = LocalBackend(limits=limits, agent_python=str(rogue))
        evaluation = Evaluation(outputs, out, settings, backend=given)
        outcome = command.interruptible(evaluation.run)
        sys.exit(command.conclude(outcome, out, as_json=False))


def step_clock() -> None:
    """Forward by a day, back by two, and so on: whoever measures with it measures nonsense."""
    true, days = time.time, itertools.cycle((0, 86_400, -86_400, 7, -3_600))
    time.time = lambda: true() + next(days)


if __name__ == "__main__":
    main()
