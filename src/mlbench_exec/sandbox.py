"""The sandbox's contract: what a backend is given to run, and what it answers with."""

from collections.abc import Callable
from typing import Literal, Protocol, Self

import msgspec

from mlbench_exec.environments import Environment
from mlbench_exec.samples import Language

Clock = Literal["fair", "wall"]
LimitName = Literal["time", "memory", "pids", "disk"]
Tell = Callable[[float], None]

GIB = 1 << 30


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one snippet may use. `None` means no limit (ML-Bench's own way)."""

    memory_bytes: int | None = 8 * GIB
    cpus: float | None = 2.0
    pids: int | None = 512
    disk_bytes: int = 2 * GIB  # everything it writes: its folder, home and /tmp together
    open_files: int = 65536
    output_bytes: int = 64 * 1024  # kept of stdout and of stderr: half its head, half its tail
    clock: Clock = "fair"
    wall_cap_factor: float = 30.0  # a snippet that isn't done after so many limits is given up


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One snippet, ready to run."""

    environment: Environment
    path: str  # joined to the environment's workdir
    language: Language
    code: bytes
    time_limit_s: float
    limits: Limits


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What a snippet did, as far as the sandbox could see: no judgement in it."""

    exit_code: int | None  # None when a signal ended it, or the time limit
    signal: int | None  # a signal that was not ours
    limit: LimitName | None  # the limit it met; "time" means it was still running there
    oom_kills: int  # processes of it that the kernel (or the memory watch) killed
    wall_s: float
    counted_s: float  # what the time limit counted
    cpu_s: float
    stalled_s: float  # ready to run, but without a CPU
    uncertain_s: float = 0.0  # what `counted_s` may be wrong by
    peak_memory_bytes: int
    stdout: str
    stderr: str
    stdout_bytes: int
    stderr_bytes: int
    warm: bool = False  # forked from an interpreter that ran already
    notes: tuple[str, ...] = ()  # what can't be warm in this environment, and why
    ran_again: str = ""  # why it ran a second time, without a warm interpreter


class Sandbox(Protocol):
    """One place to run snippets, one at a time; each finds it pristine."""

    @property
    def reusable(self) -> bool:
        """False where a sandbox serves one snippet and is thrown away."""
        ...

    async def run(self, job: Job, tell: Tell | None = None) -> Observation:
        """Run one snippet to its end or limit; `tell` is told how many CPUs it could use.

        Raises `SandboxFailed` when the sandbox is to be thrown away, and `EnvironmentUnusable`
        when the job's environment isn't there. Cancelling condemns the sandbox.
        """
        ...

    async def aclose(self) -> None:
        """Leave nothing behind: no process, container, mount or file. Safe to call twice."""
        ...


class Backend(Protocol):
    """Makes sandboxes. Entering it checks the machine, or raises `BackendUnavailable`."""

    @property
    def name(self) -> str: ...

    @property
    def level(self) -> str:
        """The isolation in force, in words, for the run's header and manifest."""
        ...

    @property
    def cores(self) -> int | None:
        """CPUs that all its sandboxes share; None where that isn't known."""
        ...

    def key(self, environment: Environment) -> str:
        """Environments with equal keys can share a sandbox."""
        ...

    def check(self, environment: Environment) -> None:
        """Raise `EnvironmentUnusable` if this environment is known to be missing here."""
        ...

    async def open(self, environment: Environment, slot: int) -> Sandbox:
        """Start a sandbox for this environment's key, on the given slot's share of CPUs."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None: ...
