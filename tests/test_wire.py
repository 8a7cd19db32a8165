import ast
import marshal
import math
import struct
import subprocess
import sys
import tomllib
import zlib
from collections.abc import Iterator
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from types import CodeType

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbench_exec import wire
from mlbench_exec.backends import agent_sandbox
from mlbench_exec.backends.agent_sandbox import AgentSandbox, NestingRefused
from mlbench_exec.environments import Environment
from mlbench_exec.errors import EnvironmentUnusable, SandboxFailed
from mlbench_exec.sandbox import Job, Limits
from mlbench_exec.testing import observation
from mlbench_exec.wire import FrameBuffer, ProtocolError

ENVIRONMENT = Environment(name="tiny", github_ids=(1,), repo="tiny", workdir="/repo")
JOB = Job(
    environment=ENVIRONMENT,
    path="./",
    language="python",
    code=b"\0\xff",
    time_limit_s=10.0,
    limits=Limits(),
)
HELLO = wire.Hello(
    machine="x86_64", python="3.11.2", called="/usr/bin/python3", uid=0, kernel="6.1"
)
READY = wire.Ready(home="/home/mlbench", owner=(0, 0))
RESULT = wire.Result(observation=observation(stdout="42\n"))
DEMAND = wire.Demand(cpus=0.5)
MESSAGES = st.sampled_from(
    [
        HELLO,
        READY,
        RESULT,
        wire.Refused(reason="no"),
        wire.Unusable(reason="é"),
        wire.Broken(reason=""),
        DEMAND,
    ]
)


def encoded(message: wire.Message) -> bytes:
    return wire.frame(msgspec.json.encode(message))


# Frames.


@given(messages=st.lists(MESSAGES, max_size=4), size=st.integers(1, 2000))
def test_messages_survive_any_chunking(messages: list[wire.Message], size: int) -> None:
    """A message arrives once, as it was sent, however its bytes are cut."""
    frames, seen = FrameBuffer(), []
    for message in messages:
        data = encoded(message)
        for start in range(0, len(data), size):
            assert frames.next_message() is None
            frames.feed(data[start : start + size])
        seen.append(frames.next_message())
    assert seen == messages
    assert frames.next_message() is None


@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_message_a_wait_or_an_error(data: bytes) -> None:
    """Whatever comes, the buffer answers or raises `ProtocolError`; nothing else escapes."""
    for payload in (data, wire.frame(data)):
        frames = FrameBuffer()
        frames.feed(payload)
        try:
            frames.next_message()
        except ProtocolError:
            continue


@given(length=st.integers(wire.MAX_FRAME_BYTES + 1, 2**32 - 1))
def test_a_frame_over_the_limit_is_refused_by_its_header(length: int) -> None:
    """Too long a frame is an error before any of its payload is waited for."""
    frames = FrameBuffer()
    frames.feed(struct.pack(">I", length))
    with pytest.raises(ProtocolError, match=str(length)):
        frames.next_message()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"type": "hello"}',
        b'{"type": "evil"}',
        b'{"type": "broken", "reason": 1}',
        b'{"type": "broken", "reason": "x", "more": 1}',
        b'{"type": "result", "observation": {}}',
        b'{"type": "broken", "reason": "\xff"}',
        b"[" * 100_000,
        b'{"type": "broken", "reason": "x"} {}',
    ],
)
def test_what_is_not_quite_a_message_is_refused(payload: bytes) -> None:
    """Unknown types and fields, missing fields and wrong types are errors, never defaults."""
    frames = FrameBuffer()
    frames.feed(wire.frame(payload))
    with pytest.raises(ProtocolError):
        frames.next_message()


@pytest.mark.parametrize("field", ["wall_s", "cpu_s"])
def test_a_figure_that_is_no_number_is_refused(field: str) -> None:
    """NaN and infinity are no JSON, and never reach a verdict."""
    text = msgspec.json.encode(RESULT).decode()
    value = getattr(RESULT.observation, field)
    for figure in ("NaN", "Infinity", '"1"', "null"):
        frames = FrameBuffer()
        frames.feed(wire.frame(text.replace(f'"{field}":{value}', f'"{field}":{figure}').encode()))
        with pytest.raises(ProtocolError):
            frames.next_message()


def test_a_second_message_is_refused() -> None:
    """One request has one answer: what follows it was not asked for."""
    frames = FrameBuffer()
    frames.feed(encoded(RESULT) * 2)
    with pytest.raises(ProtocolError, match="came after"):
        frames.next_message()


def test_words_about_demand_may_be_many() -> None:
    """They come when they come, and the answer after them."""
    frames = FrameBuffer()
    frames.feed(encoded(DEMAND) * 3 + encoded(RESULT))
    assert [frames.next_message() for _ in range(5)] == [DEMAND] * 3 + [RESULT, None]


# A sandbox behind an agent that misbehaves.


class ScriptedStream:
    """An agent's stream in memory: chunks to receive, then its end, or silence for ever."""

    def __init__(self, *chunks: bytes | Exception, silent: bool = False) -> None:
        self.sent = bytearray()
        self.received_bytes = 0
        self.is_closed = False
        self._chunks = list(chunks)
        self._silent = silent

    async def send(self, data: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        if self.is_closed:
            raise anyio.ClosedResourceError
        self.sent += data

    async def receive(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        if not self._chunks and self._silent:
            await anyio.sleep(math.inf)
        chunk = self._chunks.pop(0) if self._chunks else b""
        if isinstance(chunk, Exception):
            raise chunk
        self.received_bytes += len(chunk)
        return chunk

    async def diagnosis(self) -> str:
        return "its stderr"

    async def aclose(self) -> None:
        self.is_closed = True


async def answer(*chunks: bytes | Exception) -> object:
    return await AgentSandbox(ScriptedStream(*chunks)).run(JOB)


@pytest.mark.asyncio
async def test_a_result_is_the_observation() -> None:
    """The agent's answer is what the run returns."""
    assert await answer(encoded(RESULT)) == RESULT.observation


@pytest.mark.asyncio
async def test_an_unusable_environment_is_named() -> None:
    """The agent's word that an environment is missing becomes `EnvironmentUnusable`."""
    with pytest.raises(EnvironmentUnusable, match="tiny: no folder"):
        await answer(encoded(wire.Unusable(reason="no folder")))


@pytest.mark.parametrize(
    ("chunks", "said"),
    [
        ([b"garbage, and no frame at all"], "protocol"),
        ([wire.frame(b"garbage")], "protocol"),
        ([b"\xff\xff\xff\xff"], "over the limit"),
        ([], "its output ended; its stderr"),
        ([encoded(RESULT)[:20]], "its output ended"),
        ([encoded(HELLO)], "Hello"),
        ([encoded(READY)], "Ready"),
        ([encoded(wire.Broken(reason="lost its namespaces"))], "lost its namespaces"),
        ([encoded(RESULT) * 2], "came after"),
        ([OSError("reset")], "reset"),
        ([anyio.BrokenResourceError()], "its output failed"),
    ],
)
@pytest.mark.asyncio
async def test_an_agent_that_misbehaves_has_failed(
    chunks: list[bytes | Exception], said: str
) -> None:
    """Anything but the one message that is due is `SandboxFailed`, and says what came."""
    with pytest.raises(SandboxFailed, match=said):
        await answer(*chunks)


@pytest.mark.asyncio
async def test_words_about_demand_come_before_the_answer() -> None:
    """Each is handed on; one is no answer."""
    told: list[float] = []
    demand = encoded(DEMAND)
    stream = ScriptedStream(demand, demand + encoded(RESULT))
    assert await AgentSandbox(stream).run(JOB, told.append) == RESULT.observation
    assert told == [0.5, 0.5]
    with pytest.raises(SandboxFailed, match="its output ended"):
        await answer(demand)


@pytest.mark.asyncio
async def test_a_flood_is_bounded() -> None:
    """An agent that sends without end is given up after one frame's worth."""
    stream = ScriptedStream(struct.pack(">I", wire.MAX_FRAME_BYTES), *[b"x" * 65536] * 1000)
    with pytest.raises(SandboxFailed, match="protocol"):
        await AgentSandbox(stream).run(JOB)
    assert stream.received_bytes <= wire.MAX_FRAME_BYTES + 2 * 65536


@pytest.mark.asyncio
async def test_a_silent_agent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that says nothing fails after the time limit's cap and a grace."""
    for name in ("FIRST_RUN_GRACE_S", "WARM_GRACE_S"):
        monkeypatch.setattr(agent_sandbox, name, 0.05)
    job = msgspec.structs.replace(JOB, time_limit_s=0.001)
    with pytest.raises(SandboxFailed, match="no answer within"):
        await AgentSandbox(ScriptedStream(silent=True)).run(job)


@pytest.mark.asyncio
async def test_a_closed_input_has_failed() -> None:
    """An agent that no longer reads is `SandboxFailed`, with what it said last."""
    stream = ScriptedStream()
    await stream.aclose()
    with pytest.raises(SandboxFailed, match=r"its input is closed.*its stderr"):
        await AgentSandbox(stream).run(JOB)


def instructions(code: CodeType) -> Iterator[tuple[object, ...]]:
    """What a code does, and the codes in it."""
    yield code.co_qualname, code.co_code, code.co_names, code.co_firstlineno
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from instructions(constant)
        else:
            yield (constant,)


def test_modules_are_sent_as_sources_and_compiled() -> None:
    """A Python with the engine's bytecode need not compile; any other has the sources."""
    magic, *parts = marshal.loads(zlib.decompress(wire.agent_bundle()[4:]))
    assert len(wire.agent_bundle()) < 200_000
    assert magic == MAGIC_NUMBER
    modules = [module for part in parts for module in part]
    assert {name: source for name, source, _ in modules} == wire.agent_sources()
    for name, source, code in modules:
        compiled = marshal.loads(code)
        ours = compile(source, compiled.co_filename, "exec", dont_inherit=True)
        assert list(instructions(compiled)) == list(instructions(ours))
        assert {column for *_, column in compiled.co_positions()} <= {None, 0}
        assert compiled.co_filename == f"<mlbench_exec.agent.{name}>"


def test_an_agent_imports_little() -> None:
    """A tenth of a second of CPU time would go into modules that it needs a function of."""
    end = "os._exit(module.main())"
    assert end in wire.BOOT
    set_up = "sys.modules['mlbench_exec.agent.setup']._fill([])"  # with nothing to copy
    boot = wire.BOOT.replace(end, f"{set_up}; print(sorted(sys.modules))")
    command = [sys.executable, "-I", "-S", "-c", boot]
    ended = subprocess.run(command, input=wire.agent_bundle(), capture_output=True, check=True)
    modules = set(ast.literal_eval(ended.stdout.decode()))
    assert "mlbench_exec.agent.main" in modules
    assert not modules & {"base64", "collections", "enum", "json", "re", "shutil", "socket"}
    assert not modules & {"signal", "typing"}
    for name in wire.WARM_MODULES:  # the agent only hands these on
        assert f"mlbench_exec.agent.{name}" not in modules


async def start(*messages: wire.Message) -> wire.Ready:
    await anyio.to_thread.run_sync(wire.agent_bundle)  # as a backend does, since it reads files
    sandbox = AgentSandbox(ScriptedStream(*[encoded(message) for message in messages]))
    return await sandbox.start(lambda hello: wire.Setup(nested=True, mode="host"))


@pytest.mark.asyncio
async def test_a_start_ends_with_ready() -> None:
    """A greeting and a setup make a sandbox ready."""
    assert await start(HELLO, READY) == READY


@pytest.mark.asyncio
async def test_a_refusal_says_why() -> None:
    """A kernel that refuses namespaces is told apart from a sandbox that broke."""
    with pytest.raises(NestingRefused, match="EPERM"):
        await start(HELLO, wire.Refused(reason="EPERM"))


@pytest.mark.parametrize(
    "messages", [(), (READY,), (RESULT,), (HELLO,), (HELLO, RESULT), (HELLO, wire.Demand(cpus=1.0))]
)
@pytest.mark.asyncio
async def test_a_start_out_of_order_has_failed(messages: tuple[wire.Message, ...]) -> None:
    """Any other message at the start is `SandboxFailed`."""
    with pytest.raises(SandboxFailed):
        await start(*messages)


def test_the_parts_of_an_agent_are_those_that_are_kept_apart() -> None:
    """A module of either part that is in no contract could import the other's."""
    pyproject = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    kept = {
        (*contract["source_modules"],): (*contract["forbidden_modules"],)
        for contract in pyproject["tool"]["importlinter"]["contracts"]
        if contract["type"] == "forbidden" and len(contract["source_modules"]) > 1
    }
    own, warm = (
        tuple(f"mlbench_exec.agent.{name}" for name in names)
        for names in (wire.OWN_MODULES, wire.WARM_MODULES)
    )
    assert kept == {own: warm, warm: own}
    folder = Path(wire.__file__).parent / "agent"
    names = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert names == set(wire.agent_sources())


@pytest.mark.asyncio
async def test_a_frame_that_was_sent_too_late_is_answered_by_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was on its way as its time ran out: no answer is waited for, and none made up."""
    monkeypatch.setattr(agent_sandbox, "START_TIMEOUT_S", 0.01)

    class Late(ScriptedStream):
        async def send(self, data: bytes) -> None:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.05)

    with pytest.raises(SandboxFailed, match="no answer within"):
        await AgentSandbox(Late(silent=True)).run(JOB)
