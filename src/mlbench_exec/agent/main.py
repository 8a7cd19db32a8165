"""The agent's loop: say hello, set up the sandbox once, then run snippet after snippet."""

from __future__ import annotations

import gc
import os
import sys

from mlbench_exec.agent import frames, kernel, snippet
from mlbench_exec.agent.confinement import IGNORED
from mlbench_exec.agent.environment import prepare
from mlbench_exec.agent.frames import IN
from mlbench_exec.agent.interpreter import Interpreters, Refused
from mlbench_exec.agent.kernel import signal
from mlbench_exec.agent.program import Program, Unusable
from mlbench_exec.agent.setup import set_up
from mlbench_exec.agent.snippet import Broken, ColdWanted, TooBusy
from mlbench_exec.agent.world import World

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from typing import Any


def main() -> int:
    kernel.default_signals()  # whoever started us may have left more of them ignored
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    try:
        frames.tell_host(hello())
        spec = frames.read(IN)
        try:
            world = set_up(spec)
        except OSError as error:
            frames.tell_host({"type": "refused", "reason": str(error)})
            return 1
        frames.tell_host(ready(world))
        package = sys.modules["mlbench_exec.agent"]
        interpreters = Interpreters(world.warm_bytes, getattr(package, "BUNDLE", b""))
        gc.freeze()  # forks share what is here now, and no collection is to touch it
        while True:
            frames.tell_host(answer(world, interpreters, frames.read(IN)))
            if not world.nested:
                return 0  # and this container with us
    except frames.HostGone:
        return 0


def hello() -> dict[str, Any]:
    return {
        "type": "hello",
        "machine": kernel.machine(),
        "python": "%d.%d.%d" % sys.version_info[:3],
        "called": sys.argv[1] if len(sys.argv) > 1 and sys.argv[1].isascii() else "",
        "uid": os.getuid(),
        "kernel": os.uname().release,
    }


def ready(world: World) -> dict[str, Any]:
    return {"type": "ready", "home": world.base.home, "owner": world.owner}


def answer(world: World, interpreters: Interpreters, request: dict[str, Any]) -> dict[str, Any]:
    """Run one request; every outcome is a message."""
    try:
        program = prepare(world, request)
        observation = _run(world, interpreters, program, request)
        spent = world.nested and (snippet.has_left_memory(world) or world.counters.has_met_limit())
        return {"type": "result", "observation": observation, "spent": spent}
    except Unusable as error:
        return {"type": "unusable", "reason": str(error)}
    except TooBusy as error:
        return {"type": "broken", "reason": str(error), "busy": True}
    except (Broken, OSError, ValueError) as error:
        return {"type": "broken", "reason": "%s: %s" % (type(error).__name__, error)}


def _run(
    world: World, interpreters: Interpreters, program: Program, request: dict[str, Any]
) -> dict[str, Any]:
    """From a warm interpreter where that makes no difference, else cold."""
    limits, again, name = request["limits"], "", request["environment"]["name"]
    interpreter = interpreters.get(world, request["environment"], program)
    notes = interpreters.notes_of(name)
    if interpreter is not None:
        try:
            observation = snippet.run(world, program, limits, interpreter)[0]
            interpreters.has_served(name)
            return dict(observation, notes=notes)
        except ColdWanted as why:
            again = str(why)
            interpreters.has_served(name)
            if limits.get("tell"):  # the host knows what the first run wanted
                frames.tell_host({"type": "demand", "cpus": 1.0})
        except Refused as why:
            again = "the warm interpreter failed: %s" % why
            interpreters.has_failed(world, name, interpreter, str(why))
    return dict(snippet.run(world, program, limits)[0], notes=notes, ran_again=again)
