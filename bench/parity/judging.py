"""Judging: one pass over the corpus, at one concurrency, with one clock, on one backend."""

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bench.parity.corpus import CALIBRATION, Case
from bench.parity.hogs import hogs
from mlbench_exec import Engine, Limits, Settings, Unjudged
from mlbench_exec.engine import Snippet
from mlbench_exec.environments import Environment, Environments
from mlbench_exec.samples import Key, Sample
from mlbench_exec.sandbox import Clock
from mlbench_exec.settings import BackendChoice

PLAIN, TORCH = 1, 2  # github_ids
IMAGE, IMAGE_WORKDIR = "mlbench-exec-test/conformance", "/repos/tiny"
TORCH_IMAGE = "mlbench-exec-test/external-attention"
TORCH_WORKDIR = "/repos/External-Attention-pytorch"


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one case. `status` is "unjudged" where it got no verdict."""

    status: str
    counted_s: float = 0.0
    wall_s: float = 0.0
    stalled_s: float = 0.0
    cpu_s: float = 0.0
    contended: bool = False
    attempts: int = 0
    reason: str = ""


class Pass(msgspec.Struct, frozen=True, kw_only=True):
    """One pass over the corpus. `seconds`: from an engine that is open to the last verdict."""

    backend: str
    clock: Clock
    concurrency: int
    hogs: int
    seconds: float
    judged: dict[str, Judged]  # by the case's name


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how to judge; `torch_python` is needed by the torch cases on the local backend."""

    backend: BackendChoice
    clock: Clock = "fair"
    concurrency: int
    hogs: int = 0
    limit_s: float
    torch_limit_s: float
    torch_python: str = ""


@contextmanager
def surroundings(setting: Setting) -> Iterator[Environments]:
    """The two environments, plain and with torch; on the local backend in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        Path(folder).chmod(0o755)
        is_local = setting.backend == "local"
        python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
        limits = dict.fromkeys(("python", "bash"), setting.limit_s)
        torch_limits = dict.fromkeys(("python", "bash"), setting.torch_limit_s)
        yield Environments(
            (
                Environment(
                    name="plain",
                    github_ids=(PLAIN,),
                    repo="plain",
                    workdir=folder if is_local else IMAGE_WORKDIR,
                    python=python if is_local else "/usr/bin/python3",
                    image=IMAGE,
                    time_limit_s=limits,  # type: ignore[arg-type]
                ),
                Environment(
                    name="torch",
                    github_ids=(TORCH,),
                    repo="torch",
                    workdir=folder if is_local else TORCH_WORKDIR,
                    python=setting.torch_python if is_local else "/opt/venv/bin/python",
                    image=TORCH_IMAGE,
                    time_limit_s=torch_limits,  # type: ignore[arg-type]
                ),
            )
        )


def _settings(setting: Setting) -> Settings:
    return Settings(
        backend=setting.backend,
        concurrency=setting.concurrency,
        limits=Limits(memory_bytes=1 << 30, clock=setting.clock),
    )


async def turns_per_s(setting: Setting) -> float:
    """How many turns of the timed loop a second of CPU time makes, in a sandbox."""
    sample = _sample(PLAIN, 0, "python")
    calm = msgspec.structs.replace(setting, concurrency=1, clock="fair", limit_s=60.0)
    with surroundings(calm) as environments:
        async with Engine(
            _settings(calm), samples={(PLAIN, 0): sample}, environments=environments
        ) as engine:
            verdict = await engine.run(Snippet(github_id=PLAIN, id=0, output=CALIBRATION))
    return float(verdict.stdout)


async def judge(cases: Sequence[Case], setting: Setting) -> Pass:
    """Judge every case once."""
    keys: dict[Key, Case] = {}
    samples: dict[Key, Sample] = {}
    for number, case in enumerate(cases):
        key = (TORCH if case.needs_torch else PLAIN, number)
        keys[key], samples[key] = case, _sample(*key, case.language)
    rows = [{"github_id": g, "id": i, "output": [case.code]} for (g, i), case in keys.items()]
    judged: dict[str, Judged] = {}
    with surroundings(setting) as environments, hogs(setting.hogs):
        async with Engine(_settings(setting), samples=samples, environments=environments) as engine:
            start = time.monotonic()
            async for outcome in engine.stream(rows):
                assert outcome.github_id is not None
                assert outcome.id is not None
                name = keys[outcome.github_id, outcome.id].name
                if isinstance(outcome, Unjudged):
                    judged[name] = Judged(status="unjudged", reason=outcome.reason)
                    continue
                judged[name] = Judged(
                    status=outcome.status,
                    counted_s=round(outcome.counted_s or 0.0, 3),
                    wall_s=round(outcome.wall_s or 0.0, 3),
                    stalled_s=round(outcome.stalled_s or 0.0, 3),
                    cpu_s=round(outcome.cpu_s or 0.0, 3),
                    contended=outcome.contended,
                    attempts=outcome.attempts,
                    reason=outcome.stderr[-300:],
                )
            seconds = time.monotonic() - start
    return Pass(
        backend=setting.backend,
        clock=setting.clock,
        concurrency=setting.concurrency,
        hogs=setting.hogs,
        seconds=round(seconds, 1),
        judged=judged,
    )


def _sample(github_id: int, number: int, language: str) -> Sample:
    return Sample(
        github_id=github_id,
        id=number,
        repository="parity",
        path="",
        arguments={},
        type="Bash Script" if language == "bash" else "Python Code",
    )
