"""Frames between host and agent: typed, bounded, strictly decoded.

A frame is four bytes of length (big-endian) and that much of a message: marshalled to an agent (the
first one, with its own modules, compressed as well), JSON from it. What an agent sends is data from
beside untrusted code: anything but the one message that is due is a `ProtocolError`.
"""

import ast
import marshal
import struct
import zlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from importlib.util import MAGIC_NUMBER
from typing import Annotated, Any

import msgspec

from mlbench_exec.environments import Environment
from mlbench_exec.sandbox import Job, Observation

MAX_FRAME_BYTES = 4 << 20
_LENGTH = struct.Struct(">I")
ANY_VERSION = 2  # of marshal's: every Python 3 reads texts, bytes and tuples of it
HARD = 8  # of zlib's levels: 40 ms of work, once, for a hundredth less to send to each agent

# The agent's modules, in the order in which they import each other: those that warm interpreters
# execute as well, those that only they execute, and the agent's own.
SHARED_MODULES = (
    "kernel",
    "frames",
    "steps",
    "confinement",
    "program",
    "front",
    "native",
    "pid1",
    "terms",
)
WARM_MODULES = ("aspects", "preload", "helper", "finalizers", "ending", "warm")
OWN_MODULES = (
    "base",
    "view",
    "clock",
    "meter",
    "world",
    "surroundings",
    "interpreter",
    "drain",
    "snippet",
    "environment",
    "setup",
    "main",
)
# Read the modules from stdin, make them importable, start the loop. They come compiled as well, for
# a Python with the engine's bytecode: compiling is two fifths of a start.
BOOT = """
import os, sys, marshal, zlib
def read(size):
    data = b""
    while len(data) < size:
        chunk = os.read(0, size - len(data))
        if not chunk:
            sys.exit(1)
        data += chunk
    return data
bundle = zlib.decompress(read(int.from_bytes(read(4), "big")))
magic, shared, warm, own = marshal.loads(bundle)
is_ready = magic == sys.modules["_frozen_importlib_external"].MAGIC_NUMBER
package, module_type = "mlbench_exec.agent", type(sys)
for name in ("mlbench_exec", package):
    sys.modules[name] = module_type(name)
    sys.modules[name].__path__ = []
for name, source, code in shared + own:
    module = module_type(package + "." + name)
    sys.modules[module.__name__] = module
    setattr(sys.modules[package], name, module)
    if is_ready:
        code = marshal.loads(code)
    else:
        code = compile(source, "<" + module.__name__ + ">", "exec")
    exec(code, module.__dict__)
sys.modules[package].BUNDLE = bundle
del shared, warm, own, source, code, bundle
os._exit(module.main())
"""


class ProtocolError(Exception):
    """The agent sent something that is not the message due; never shown as a verdict."""


class StashEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A folder or file to show: from `source`, as the agent sees it, at `target`."""

    source: str
    target: str
    rw: bool = False


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """How an agent makes its sandbox; sent once. See the agent's `setup.set_up`."""

    nested: bool
    mode: str  # "container": the root is an image's; "host": only what is named is shown
    stash: tuple[StashEntry, ...] = ()
    workdirs: tuple[str, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()  # fresh level: folders to copy, from and to
    user: str = "mlbench"
    uid: int | None = None  # what a root agent on a host becomes
    inner_uid: int | None = None  # the snippet's user id as it sees it; None: the agent's
    own_network: bool = False
    gpus: bool = False
    gpu_nodes: tuple[str, ...] | None = None  # names in /dev; None: all that are there
    spare: str | None = None
    filter: bytes = b""
    cgroups: Mapping[str, str] | None = None  # None: the agent's own, as a container sees it
    nproc: bool = False  # RLIMIT_NPROC must hold, for want of a pids cgroup
    cpu_list: tuple[int, ...] | None = None
    variables: Mapping[str, str] = {}
    warm_bytes: int = 0  # what warm interpreters may hold together; 0: there are none


class Hello(msgspec.Struct, frozen=True, tag="hello", forbid_unknown_fields=True):
    machine: str
    python: str
    called: str  # how this Python was found, for another start
    uid: int
    kernel: str


class Ready(msgspec.Struct, frozen=True, tag="ready", forbid_unknown_fields=True):
    home: str
    owner: tuple[int, int] | None  # user and group of the first workdir, where it is there


class Refused(msgspec.Struct, frozen=True, tag="refused", forbid_unknown_fields=True):
    """The kernel or the container refused what the sandbox needs."""

    reason: str


class Demand(msgspec.Struct, frozen=True, tag="demand", forbid_unknown_fields=True):
    """How many CPUs the snippet that runs could use now; may come before the result, often."""

    cpus: Annotated[float, msgspec.Meta(ge=0)]


class Result(msgspec.Struct, frozen=True, tag="result", forbid_unknown_fields=True):
    observation: Observation
    spent: bool = False  # the snippet left something behind: throw this sandbox away


class Unusable(msgspec.Struct, frozen=True, tag="unusable", forbid_unknown_fields=True):
    """The environment or the row's folder isn't there."""

    reason: str


class Broken(msgspec.Struct, frozen=True, tag="broken", forbid_unknown_fields=True):
    """The sandbox can't be trusted any more."""

    reason: str
    busy: bool = False  # the machine's fault: what else ran left too little for the snippet


Message = Hello | Ready | Refused | Demand | Result | Unusable | Broken
_decoder = msgspec.json.Decoder(Message, strict=True)


def frame(payload: bytes) -> bytes:
    return _LENGTH.pack(len(payload)) + payload


@cache
def agent_bundle() -> bytes:
    """The agent's modules as one frame, in the order in which they import each other. Blocks."""
    return bundle_of(agent_sources())


def agent_sources() -> dict[str, str]:
    folder = resources.files("mlbench_exec.agent")
    names = SHARED_MODULES + WARM_MODULES + OWN_MODULES
    return {name: folder.joinpath(f"{name}.py").read_text() for name in names}


def bundle_of(sources: Mapping[str, str]) -> bytes:
    """One frame with the modules by name, as sources, and compiled for our bytecode.

    Small enough for the buffers on its way: what comes out of a container that has no Python is
    read only after it was sent.
    """
    parts = [
        [(name, sources[name], _compiled(name, sources[name])) for name in names]
        for names in (SHARED_MODULES, WARM_MODULES, OWN_MODULES)
    ]
    return frame(zlib.compress(marshal.dumps((MAGIC_NUMBER, *parts), ANY_VERSION), HARD))


def _compiled(name: str, source: str) -> bytes:
    tree = _without_columns(ast.parse(source))
    place = f"<mlbench_exec.agent.{name}>"
    return marshal.dumps(compile(tree, place, "exec", dont_inherit=True, optimize=0))


def _without_columns(tree: ast.Module) -> ast.Module:
    """Lines are enough for a traceback; columns would be a quarter of what is sent."""
    for node in ast.walk(tree):
        if "lineno" in node._attributes:
            places = vars(node)
            places.update(end_lineno=places["lineno"], col_offset=-1, end_col_offset=-1)
    return tree


def setup_frame(setup: Setup) -> bytes:
    return _marshalled(msgspec.to_builtins(setup, builtin_types=(bytes,)))


def run_frame(job: Job) -> bytes:
    return _marshalled(_request(job))


def _marshalled(message: Any) -> bytes:
    return frame(marshal.dumps(message, ANY_VERSION))


def _request(job: Job) -> dict[str, Any]:
    limits = job.limits
    return {
        "type": "run",
        "environment": _environment(job.environment),
        "path": job.path,
        "language": job.language,
        "code": job.code,
        "limits": {
            "memory": limits.memory_bytes,
            "cpus": limits.cpus,
            "pids": limits.pids,
            "disk": limits.disk_bytes,
            "files": limits.open_files,
            "output": limits.output_bytes,
            "clock": limits.clock,
            "tell": limits.clock == "fair",
            "time": job.time_limit_s,
            "cap": job.time_limit_s * limits.wall_cap_factor,
        },
    }


def _environment(environment: Environment) -> dict[str, Any]:
    return {
        "name": environment.name,
        "workdir": environment.workdir,
        "python": environment.python,
        "conda_env": environment.conda_env,
        "env": dict(environment.env),
        "preload": list(environment.preload),
    }


class FrameBuffer:
    """Collects bytes into messages, never more than one frame's worth."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        self._data += data

    def next_message(self) -> Message | None:
        """The next whole message, or None if more bytes are needed; raises `ProtocolError`."""
        if len(self._data) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._data)
        if length > MAX_FRAME_BYTES:
            raise ProtocolError(f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
        end = _LENGTH.size + length
        if len(self._data) < end:
            return None
        payload = bytes(self._data[_LENGTH.size : end])
        del self._data[:end]
        try:
            message: Message = _decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"not a message of the agent: {error}") from None
        if self._data and not isinstance(message, Demand):
            raise ProtocolError(f"{len(self._data)} bytes came after a message")
        return message
