"""The agent's loop: say hello, set up the sandbox once, then run snippet after snippet."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import Any

from mlbench_exec.agent import frames, kernel, snippet
from mlbench_exec.agent.environment import prepare
from mlbench_exec.agent.frames import IN, OUT
from mlbench_exec.agent.program import Unusable
from mlbench_exec.agent.setup import set_up
from mlbench_exec.agent.snippet import Broken, TooBusy
from mlbench_exec.agent.world import World


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        frames.write(OUT, hello())
        spec = frames.read(IN)
        try:
            world = set_up(spec)
        except OSError as error:
            frames.write(OUT, {"type": "refused", "reason": str(error)})
            return 1
        frames.write(OUT, ready(world))
        gc.freeze()  # forks share what is here now, and no collection is to touch it
        while True:
            frames.write(OUT, answer(world, frames.read(IN)))
    except frames.HostGone:
        return 0


def hello() -> dict[str, Any]:
    return {
        "type": "hello",
        "machine": kernel.machine(),
        "python": "%d.%d.%d" % sys.version_info[:3],
        "uid": os.getuid(),
        "kernel": os.uname().release,
    }


def ready(world: World) -> dict[str, Any]:
    return {"type": "ready", "home": world.base.home, "owner": world.owner}


def answer(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """Run one request; every outcome is a message."""
    try:
        program = prepare(world, request)
        observation, _, _ = snippet.run(world, program, request["limits"])
        spent = world.nested and (snippet.has_left_memory(world) or world.counters.has_met_limit())
        return {"type": "result", "observation": observation, "spent": spent}
    except Unusable as error:
        return {"type": "unusable", "reason": str(error)}
    except TooBusy as error:
        return {"type": "broken", "reason": str(error), "busy": True}
    except (Broken, OSError) as error:
        return {"type": "broken", "reason": "%s: %s" % (type(error).__name__, error)}
