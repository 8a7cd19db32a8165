"""A sandbox behind an agent's byte stream: what both backends have in common."""

import errno
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import anyio
import anyio.to_thread

from mlbench_exec import wire
from mlbench_exec.environments import Environment
from mlbench_exec.errors import (
    BackendLost,
    EnvironmentUnusable,
    MachineTooBusy,
    SandboxFailed,
)
from mlbench_exec.patience import pause_s
from mlbench_exec.sandbox import Job, Observation, Sandbox, Tell

START_TIMEOUT_S = 60.0
ANSWER_GRACE_S = 30.0
FIRST_RUN_GRACE_S = 600.0  # activation, and mending files of foreign owners
BARE_BYTES = 64 << 20  # for interpreters that have imported nothing: some 10 MB each

# What says that this machine has run out of something: processes, descriptors, memory, disk.
SHORT_OF = {errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC}
TRIALS = 3  # of a run's first sandbox
TRIALS_WITHIN_S = 10.0
WARM_GRACE_S = 300.0  # a warm interpreter that starts, or says nothing any more


def room_for_warm(environment: Environment, preload_bytes: int) -> int:
    """What warm interpreters may hold, in a sandbox for this environment.

    Little where nothing is preloaded: what isn't needed, a snippet could use.
    """
    return preload_bytes if environment.preload else min(preload_bytes, BARE_BYTES)


@contextmanager
def starting(what: str) -> Iterator[None]:
    """Have an OSError say that this can't be started here.

    As a `BackendLost` where that may pass by waiting, and as another `SandboxFailed` elsewhere.
    """
    try:
        yield
    except OSError as error:
        kind = BackendLost if error.errno in SHORT_OF else SandboxFailed
        raise kind(f"{what} can't be started: {error}") from error


async def first_of_a_run(open_one: Callable[[], Awaitable[Sandbox]]) -> Sandbox:
    """Open the sandbox that shows whether there can be any here.

    One that breaks says little: somebody may have ended it. So it is tried again, a little later.
    Raises the last `SandboxFailed`, and whatever else opening raises at once.
    """
    until = anyio.current_time() + TRIALS_WITHIN_S
    for trial in range(1, TRIALS):
        try:
            return await open_one()
        except SandboxFailed:
            if anyio.current_time() > until:
                raise
            await anyio.sleep(pause_s(trial + 1))
    return await open_one()


class AgentStream(Protocol):
    """The agent's stdin and stdout."""

    async def send(self, data: bytes) -> None: ...

    async def receive(self) -> bytes:
        """Some bytes; empty at the end of the stream."""
        ...

    async def diagnosis(self) -> str:
        """What is known of an agent that went silent: its stderr, its exit code."""
        ...

    async def aclose(self) -> None: ...


class NestingRefused(Exception):
    """The agent could not make its namespaces here; the message is its reason."""


class AgentSandbox:
    """Speaks with one agent; one request is under way at most."""

    def __init__(self, stream: AgentStream, *, reusable: bool = True) -> None:
        self.reusable = reusable
        self.started_as = ""  # the Python that its agent runs in, as it was called
        self._stream = stream
        self._frames = wire.FrameBuffer()
        self._seen: set[str] = set()

    def __repr__(self) -> str:
        return f"<AgentSandbox, environments: {', '.join(sorted(self._seen)) or 'none'}>"

    async def start(self, make_setup: "SetupFactory") -> wire.Ready:
        """Ship the agent, greet it, set it up. `make_setup` may block: a thread calls it.

        Raises `NestingRefused` where the kernel or container forbids the sandbox, and
        `SandboxFailed` for everything else.
        """
        bundle = await anyio.to_thread.run_sync(wire.agent_bundle)
        hello = await self._ask(bundle, START_TIMEOUT_S)
        if not isinstance(hello, wire.Hello):
            raise SandboxFailed(f"the agent sent {type(hello).__name__}, not Hello")
        self.started_as = hello.called
        setup = await anyio.to_thread.run_sync(lambda: wire.setup_frame(make_setup(hello)))
        match await self._ask(setup, START_TIMEOUT_S):
            case wire.Ready() as ready:
                return ready
            case wire.Refused(reason=reason):
                raise NestingRefused(reason)
            case other:
                raise SandboxFailed(f"the agent answered its setup with {type(other).__name__}")

    async def run(self, job: Job, tell: Tell | None = None) -> Observation:
        name = job.environment.name
        is_known = name in self._seen or not (self.reusable or job.environment.conda_env)
        grace = ANSWER_GRACE_S if is_known else FIRST_RUN_GRACE_S
        grace += WARM_GRACE_S if self.reusable else 0.0
        self._seen.add(name)
        within_s = job.time_limit_s * job.limits.wall_cap_factor + grace
        match await self._ask(wire.run_frame(job), within_s, tell or _nobody):
            case wire.Result(observation=observation, spent=spent):
                self.reusable = self.reusable and not spent
                return observation
            case wire.Unusable(reason=reason):
                raise EnvironmentUnusable(f"environment {name}: {reason}")
            case wire.Broken(reason=reason, busy=busy):
                raise MachineTooBusy(reason) if busy else SandboxFailed(reason)
            case other:
                raise SandboxFailed(f"the agent answered a run with {type(other).__name__}")

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def _ask(self, data: bytes, within_s: float, tell: Tell | None = None) -> wire.Message:
        """Send a frame and return its answer, which is to come within so long.

        `tell` hears any number of words about a need for CPUs that come before it. A stream may
        take less than a frame: an agent that reads nothing is given up.
        """
        is_sent = False
        try:
            with anyio.move_on_after(START_TIMEOUT_S) as scope:
                await self._stream.send(data)
                is_sent = True
                scope.deadline = anyio.current_time() + within_s
                while isinstance(message := await self._next(), wire.Demand) and tell is not None:
                    tell(message.cpus)
                return message
        except wire.ProtocolError as error:
            raise SandboxFailed(f"the agent broke the protocol: {error}") from error
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            what = "its output failed" if is_sent else "its input is closed"
            raise SandboxFailed(await self._why(f"{what} ({error!r})")) from error
        what = f"no answer within {within_s if is_sent else START_TIMEOUT_S:.0f} s"
        if not is_sent:
            what += ", and its input was not read"
        raise SandboxFailed(await self._why(what))

    async def _next(self) -> wire.Message:
        while True:
            message = self._frames.next_message()
            if message is not None:
                return message
            data = await self._stream.receive()
            if not data:
                raise SandboxFailed(await self._why("its output ended"))
            self._frames.feed(data)

    async def _why(self, what: str) -> str:
        with anyio.move_on_after(2):
            said = await self._stream.diagnosis()
            return f"the agent failed: {what}; {said}" if said else f"the agent failed: {what}"
        return f"the agent failed: {what}"


def _nobody(cpus: float) -> None:
    """Hear of a need that nobody has to know."""


class SetupFactory(Protocol):
    def __call__(self, hello: wire.Hello, /) -> wire.Setup: ...
