"""A backend in memory: a script says what each job does, the fake counts what was asked of it."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import anyio
import anyio.lowlevel
import msgspec

from mlbench_exec.environments import Environment
from mlbench_exec.errors import EnvironmentUnusable
from mlbench_exec.sandbox import Job, Observation, Tell

Script = Callable[[Job], Observation | Exception]
Delay = Callable[[Job], float]

_NOTHING_HAPPENED = Observation(
    exit_code=0,
    signal=None,
    limit=None,
    oom_kills=0,
    wall_s=0.01,
    counted_s=0.01,
    cpu_s=0.01,
    stalled_s=0.0,
    peak_memory_bytes=8 << 20,
    stdout="",
    stderr="",
    stdout_bytes=0,
    stderr_bytes=0,
)


def observation(**overrides: Any) -> Observation:
    """A snippet that exited with 0 after 10 ms, or one that differs in the given fields.

    The byte counts follow `stdout` and `stderr` unless they are given.
    """
    for stream in ("stdout", "stderr"):
        if stream in overrides:
            overrides.setdefault(f"{stream}_bytes", len(overrides[stream].encode()))
    return msgspec.structs.replace(_NOTHING_HAPPENED, **overrides)


class FakeStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the backend was made; `peak_…` are the most at one time."""

    opens: int
    closes: int
    runs: int
    is_open: int
    running: int
    peak_open: int
    peak_running: int


class FakeBackend:
    """Makes `FakeSandbox`es. `script` answers each job: what it returns is seen or raised.

    `delay_s` is how long a run takes, for all jobs or by job; `open_delay_s` the same for a
    start. `unusable` gives, by environment name, the reason why it isn't there. `key` defaults
    to the environment's name.
    """

    name = "fake"
    level = "in memory, no isolation"
    cores: int | None = None

    def __init__(
        self,
        script: Script = lambda job: observation(),
        *,
        delay_s: float | Delay = 0.0,
        open_delay_s: float = 0.0,
        reusable: bool = True,
        unusable: Mapping[str, str] | None = None,
        key: Callable[[Environment], str] = lambda environment: environment.name,
    ) -> None:
        self.script = script
        self.delay_s = delay_s
        self.open_delay_s = open_delay_s
        self.reusable = reusable
        self.unusable = dict(unusable or {})
        self.key = key
        self.jobs: list[Job] = []  # every job that was run, in the order of their starts
        self.sandboxes: list[FakeSandbox] = []  # every one that was opened
        self.is_entered = False
        self._running = self._peak_open = self._peak_running = 0

    def __repr__(self) -> str:
        return f"<FakeBackend {self.statistics()}>"

    def statistics(self) -> FakeStatistics:
        closes = sum(sandbox.is_closed for sandbox in self.sandboxes)
        return FakeStatistics(
            opens=len(self.sandboxes),
            closes=closes,
            runs=len(self.jobs),
            is_open=len(self.sandboxes) - closes,
            running=self._running,
            peak_open=self._peak_open,
            peak_running=self._peak_running,
        )

    def check(self, environment: Environment) -> None:
        if environment.name in self.unusable:
            reason = self.unusable[environment.name]
            raise EnvironmentUnusable(f"environment {environment.name}: {reason}")

    async def open(self, environment: Environment, slot: int) -> "FakeSandbox":
        self.check(environment)
        await anyio.sleep(self.open_delay_s)
        sandbox = FakeSandbox(self, self.key(environment), slot)
        self.sandboxes.append(sandbox)
        self._peak_open = max(self._peak_open, self.statistics().is_open)
        return sandbox

    async def __aenter__(self) -> Self:
        self.is_entered = True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.is_entered = False

    async def _play(self, job: Job) -> Observation:
        self.jobs.append(job)
        self._running += 1
        self._peak_running = max(self._peak_running, self._running)
        try:
            await anyio.sleep(self.delay_s(job) if callable(self.delay_s) else self.delay_s)
            outcome = self.script(job)
        finally:
            self._running -= 1
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class FakeSandbox:
    """Holds its borrowers to the contract: one job at a time, none once it is condemned."""

    def __init__(self, backend: FakeBackend, key: str, slot: int) -> None:
        self.key = key
        self.slot = slot
        self.runs = 0
        self.is_closed = False
        self.is_condemned = False
        self._backend = backend
        self._is_busy = False

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else "condemned" if self.is_condemned else "ready"
        return f"<FakeSandbox {state}, slot {self.slot}, {self.runs} runs>"

    @property
    def reusable(self) -> bool:
        return self._backend.reusable

    async def run(self, job: Job, tell: Tell | None = None) -> Observation:
        """Play the script; `RuntimeError` where the borrower broke the contract."""
        if self._is_busy:
            raise RuntimeError(f"{self!r} was given a second job while one is running")
        if self.is_closed or self.is_condemned or (self.runs and not self.reusable):
            raise RuntimeError(f"{self!r} was given a job after its end")
        if self._backend.key(job.environment) != self.key:
            raise RuntimeError(f"{self!r} was given a job of another environment")
        self._is_busy, self.runs = True, self.runs + 1
        try:
            return await self._backend._play(job)
        except EnvironmentUnusable:
            raise
        except BaseException:
            self.is_condemned = True
            raise
        finally:
            self._is_busy = False

    async def aclose(self) -> None:
        self.is_closed = True
        await anyio.lowlevel.checkpoint()
