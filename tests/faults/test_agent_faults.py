"""F8, and every known way for the infrastructure to fail: never the model's failure, nor a pass."""

import errno
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.abc import Process
from anyio.from_thread import BlockingPortal, start_blocking_portal

from conftest import agents_of
from faults.scene import Scene, driver, make_rogue, plan
from mlbench_exec.backends import agent_sandbox, cgroups
from mlbench_exec.backends.local import LocalBackend
from mlbench_exec.engine import Engine
from mlbench_exec.environments import Environment, Environments, Mount
from mlbench_exec.errors import (
    BackendLost,
    BackendUnavailable,
    EnvironmentUnusable,
    MachineTooBusy,
    SandboxFailed,
)
from mlbench_exec.samples import Sample
from mlbench_exec.sandbox import Backend, Limits
from mlbench_exec.settings import Settings
from mlbench_exec.testing.fakes import FakeBackend
from mlbench_exec.verdict_stream import Outcome
from mlbench_exec.verdicts import Unjudged, Verdict

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LIMITS = Limits(memory_bytes=256 << 20, wall_cap_factor=2.0)
MODES = {
    "garbage": "broke the protocol: a frame of",
    "long": "broke the protocol: a frame of 4294967280 bytes is over the limit",
    "endless": "no answer within",
    "silent": "no answer within",
    "dies": "its output ended",
    "torn": "its output ended",
    "twice": "bytes came after a message",
    "forged": "not a message of the agent",
    "nonsense": "answered a run with Hello",
    "bytes": "not a message of the agent",
    "mute": "no answer within",
    "absent": "no such agent",
}


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANSWER_GRACE_S", "FIRST_RUN_GRACE_S", "WARM_GRACE_S"):
        monkeypatch.setattr(agent_sandbox, name, 1.0)


def judge(
    portal: BlockingPortal,
    home: Path,
    backend: Backend,
    *codes: str,
    path: str = "./",
    time_limit_s: float = 1.0,
    **environment: Any,
) -> list[Outcome]:
    """What becomes of these outputs in one environment."""
    workdir = home / "repo"
    workdir.mkdir(exist_ok=True)
    home.chmod(0o755)
    fields = {"workdir": str(workdir), "python": "/usr/bin/python3"} | environment
    one = Environment(name="one", github_ids=(1,), repo="one", **fields)
    sample = Sample(github_id=1, id=1, repository="r", path=path, arguments={}, type="Python")
    engine = Engine(
        Settings(limits=LIMITS, concurrency=1, time_limit_s=time_limit_s, patience_s=0.3),
        samples={sample.key: sample},
        environments=Environments((one,)),
        backend=backend,
    )

    async def work() -> list[Outcome]:
        async with engine:
            row = {"github_id": 1, "id": 1, "output": list(codes)}
            return [outcome async for outcome in engine.stream([row])]

    return portal.call(work)


def reasons(outcomes: list[Outcome]) -> list[str]:
    assert all(isinstance(one, Unjudged) for one in outcomes), outcomes
    return [one.reason for one in outcomes if isinstance(one, Unjudged)]


@pytest.mark.parametrize("mode", MODES)
def test_f8_an_agent_that_always_fails(
    mode: str, portal: BlockingPortal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it sends, three sandboxes are tried, and the output stays unjudged with why."""
    says_nothing = MODES[mode] == "no answer within"
    probe, add = LocalBackend._probe, cgroups.Group.add

    async def probe_then_hurry(backend: LocalBackend) -> None:
        await probe(backend)  # of a real agent
        for name in ("ANSWER_GRACE_S", "FIRST_RUN_GRACE_S", "WARM_GRACE_S"):
            if says_nothing:
                monkeypatch.setattr(agent_sandbox, name, 0.2)
        if mode == "mute":
            monkeypatch.setattr(agent_sandbox, "START_TIMEOUT_S", 0.3)

    def add_late(group: cgroups.Group, pid: int) -> None:
        time.sleep(0.3)
        add(group, pid)

    monkeypatch.setattr(LocalBackend, "_probe", probe_then_hurry)
    if mode == "absent":  # it has ended by then
        monkeypatch.setattr(cgroups.Group, "add", add_late)
    rogue = make_rogue(tmp_path / "agents")
    plan(rogue, f"always-{mode}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    backend = LocalBackend(limits=LIMITS, agent_python=str(rogue))
    limit_s = 0.3 if says_nothing else 1.0
    (reason,) = reasons(judge(portal, tmp_path, backend, "print(1)", time_limit_s=limit_s))
    assert reason.startswith("3 sandboxes failed; the last: ")
    assert MODES[mode] in reason or (mode == "absent" and "input is closed" in reason)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 << 10, f"{grown} KiB"


def test_f8_agents_that_fail_now_and_then(tmp_path: Path) -> None:
    """Each failure costs its sandbox, not an output: all verdicts are as if nothing had been."""
    rogue = make_rogue(tmp_path / "agents")
    started = {"mute", "absent", "endless"}  # they have no good result first, or take long
    plan(rogue, *(f"later-{mode}" for mode in MODES if mode not in started))
    scene = Scene(tmp_path, program=driver("--rogue", rogue, "--cap", "2"))
    scene.finish()
    attempts = [line["attempts"] for line in scene.command.verdicts()]
    assert sum(number > 1 for number in attempts) >= 6
    assert not list((tmp_path / "agents" / "plan").iterdir()), "not every mode was met"


def test_f3_agents_killed_from_outside(tmp_path: Path) -> None:
    """They are replaced, their snippets run again, and no verdict is lost or wrong."""
    scene = Scene(tmp_path, "--concurrency", "2")
    process = scene.command.start()
    killed = 0
    for count in (5, 15, 25, 35):
        with scene.command.held_at(process, count):
            for agent in agents_of(process.pid):
                os.kill(agent, signal.SIGKILL)
                killed += 1
    assert process.wait(120) == 0, scene.command.said()
    assert killed >= 4
    scene.check(scene.command.verdicts())
    assert any(line["attempts"] > 1 for line in scene.command.verdicts())
    assert scene.command.leftovers() == set()


def test_f1_an_agent_that_hangs_outlives_its_engine_no_longer_than_the_next_start(
    tmp_path: Path,
) -> None:
    """A killed engine's agent that doesn't hear of it is killed by the next engine."""
    rogue = make_rogue(tmp_path / "agents")
    plan(rogue, "silent")
    scene = Scene(tmp_path, count=20, program=driver("--rogue", rogue, "--grace", "60"))
    process = scene.command.start()
    scene.command.wait_for_verdicts(process, 4)
    assert list(rogue.parent.glob("used-*")), "no agent hangs"
    process.kill()
    process.wait(30)
    if os.geteuid() == 0:
        assert any("process" in one for one in scene.command.leftovers())
    scene.finish()


# Every known kind, each met for real or, where only a whole machine could fail so, by a fake.

ENVIRONMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "no folder": ({"workdir": "/not/here"}, "there is no folder /not/here"),
    "no interpreter": ({"python": "/not/here/python"}, "there is no interpreter"),
    "no conda": ({"python": None, "conda_env": "nothing"}, "no conda on this machine"),
    "no mount": ({"mounts": (Mount(source="/not/here", target="/x"),)}, "mount's source /not/here"),
    "no row's folder": ({"path": "./not/here"}, "not/here"),
    "outside": ({"path": "../.."}, "leads out of"),
}


FIRST_STARTS_DIE = """#!/bin/sh
: > {folder}/$$
[ $(ls {folder} | wc -l) -gt {count} ] && exec /usr/bin/python3 "$@"
"""


@pytest.mark.parametrize(("count", "is_given_up"), [(2, False), (3, True)])
def test_a_run_does_not_end_for_one_agent_that_was_killed_at_its_start(
    tmp_path: Path, portal: BlockingPortal, count: int, is_given_up: bool
) -> None:
    """The first sandbox shows whether there can be any: it is tried three times."""
    folder = tmp_path / "starts"
    folder.mkdir()
    mortal = tmp_path / "mortal"
    mortal.write_text(FIRST_STARTS_DIE.format(folder=folder, count=count))
    mortal.chmod(0o755)
    backend = LocalBackend(limits=LIMITS, agent_python=str(mortal))
    if is_given_up:
        with pytest.raises(BackendUnavailable, match="can't make a sandbox here"):
            judge(portal, tmp_path, backend, "print(1)")
    else:
        (outcome,) = judge(portal, tmp_path, backend, "print(1)")
        assert isinstance(outcome, Verdict)


class Starts:
    """Counts the agents that local backends start, and has something happen to the second one."""

    def __init__(self, patch: pytest.MonkeyPatch, second: Callable[[Process], None] | OSError):
        self.count, self._second, self._start = 0, second, LocalBackend._start_agent
        patch.setattr(LocalBackend, "_start_agent", lambda backend: self.start(backend))

    async def start(self, backend: LocalBackend) -> Process:
        self.count += 1
        if self.count != 2:
            return await self._start(backend)
        if isinstance(self._second, OSError):
            raise self._second
        process = await self._start(backend)
        self._second(process)
        await process.wait()
        return process


def test_an_agent_that_is_killed_at_once_costs_no_run(
    tmp_path: Path, portal: BlockingPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is in its cgroup, when the second one is started: the next one takes its place."""
    starts = Starts(monkeypatch, lambda process: process.kill())
    (outcome,) = judge(portal, tmp_path, LocalBackend(limits=LIMITS), "print(1)")
    assert isinstance(outcome, Verdict), outcome
    assert starts.count >= 3


ASKED_IN_VAIN = """#!/bin/sh
mkdir {folder}/asked 2> /dev/null && kill -9 $$
exec /usr/bin/python3 "$@"
"""


def test_an_interpreter_that_is_killed_costs_no_environment(
    tmp_path: Path, portal: BlockingPortal
) -> None:
    """It is asked once what it needs to see; whoever killed it then ended none of its outputs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").write_text(ASKED_IN_VAIN.format(folder=folder))
    (folder / "python").chmod(0o755)
    python = str(folder / "python")
    (outcome,) = judge(portal, tmp_path, LocalBackend(limits=LIMITS), "print(1)", python=python)
    assert isinstance(outcome, Verdict), outcome
    assert (folder / "asked").exists()


def test_a_machine_that_has_run_out_of_something_is_waited_for(
    tmp_path: Path, portal: BlockingPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No attempt is counted meanwhile, and no output is given up."""
    starts = Starts(monkeypatch, OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)))
    (outcome,) = judge(portal, tmp_path, LocalBackend(limits=LIMITS), "print(1)")
    assert isinstance(outcome, Verdict), outcome
    assert (outcome.attempts, starts.count >= 3) == (1, True)


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_a_missing_environment_is_no_verdict(
    kind: str, portal: BlockingPortal, tmp_path: Path
) -> None:
    """Programs that would pass, fail or run to the limit there: all stay without a verdict."""
    changes, reason = ENVIRONMENTS[kind]
    codes = ("print(1)", "raise SystemExit(1)", "while True: pass")
    found = judge(portal, tmp_path, LocalBackend(limits=LIMITS), *codes, **changes)
    assert len(found) == 3
    assert all(reason in one for one in reasons(found)), found
    assert {one.kind for one in found if isinstance(one, Unjudged)} == {"environment"}


@pytest.mark.parametrize("error", [SandboxFailed, MachineTooBusy, BackendLost, EnvironmentUnusable])
def test_a_backends_errors_are_no_verdict(
    error: type[Exception], portal: BlockingPortal, tmp_path: Path
) -> None:
    """Whatever a backend raises, when a sandbox is opened or used."""
    backend = FakeBackend(lambda job: error("something broke"))
    assert reasons(judge(portal, tmp_path, backend, "print(1)", "raise SystemExit"))

    class Closed(FakeBackend):
        async def open(self, environment: Environment, slot: int) -> Any:
            raise error("nothing opens")

    assert reasons(judge(portal, tmp_path, Closed(), "print(1)", "raise SystemExit"))
