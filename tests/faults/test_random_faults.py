"""Faults at random moments over short runs, each then continued until it is complete.

    MLBENCH_FAULT_SEEDS=200 python -m pytest tests/faults/test_random_faults.py -m soak

A seed gives the same faults in the same order; the moments depend on the machine. Without the
variable a few seeds are tried. MLBENCH_FAULT_FIRST is the first seed, MLBENCH_FAULT_BACKEND=docker
takes containers (then nothing is done to the agents from within).
"""

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from acceptance.command import Line
from conftest import agents_of
from faults.scene import Scene, driver, make_rogue, plan

SEEDS = int(os.environ.get("MLBENCH_FAULT_SEEDS", "2"))
FIRST = int(os.environ.get("MLBENCH_FAULT_FIRST", "0"))
ON_DOCKER = os.environ.get("MLBENCH_FAULT_BACKEND") == "docker"
MODES = ("garbage", "long", "dies", "torn", "twice", "forged", "nonsense", "bytes", "silent")
STARTS = 12  # at most, until a run is complete
SNIPPETS = 20

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(600)]
IMAGE = "mlbench-exec-test/conformance:latest"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    scene = make(tmp_path_factory.mktemp("undisturbed"))
    scene.finish()
    return scene.comparable()


def make(home: Path) -> Scene:
    if ON_DOCKER:
        return Scene(home, "--concurrency", "3", count=SNIPPETS, image=IMAGE)
    return Scene(home, count=SNIPPETS, program=driver("--rogue", make_rogue(home / "agents")))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_random_faults(seed: int, tmp_path: Path, undisturbed: list[Line]) -> None:
    """Exactly one verdict for each output, equal to an undisturbed run's; nothing is left."""
    chance, scene = random.Random(seed), make(tmp_path)
    told = []
    for _ in range(STARTS):
        if not ON_DOCKER:
            plan(
                tmp_path / "agents" / "rogue", *chance.choices(MODES, k=chance.choice((0, 0, 1, 2)))
            )
        fault = chance.choice(("kill", "interrupt", "terminate", "agent", "agent", "none"))
        before = scene.command.verdicts()
        process = scene.command.start()
        inject(fault, process, chance, scene)
        code = process.wait(240)
        told.append((fault, code, len(scene.command.verdicts())))
        assert code in {0, 1, 130, -9, -2, -15}, (told, scene.command.said())
        assert scene.command.verdicts()[: len(before)] == before, told
        scene.check_known(scene.command.verdicts())
        if code != -9:
            assert scene.command.leftovers() == set(), told
        tear(scene.command.folder / "verdicts.jsonl", chance)
        if code == 0:
            break
    scene.finish(starts=3)  # what follows kill -9 removes what that has left
    assert scene.comparable() == undisturbed, told


def inject(
    fault: str, process: "subprocess.Popen[bytes]", chance: random.Random, scene: Scene
) -> None:
    count = len(scene.command.verdicts()) + chance.choice((0, 1, 3, 6, 10, 15))
    while process.poll() is None and len(scene.command.verdicts()) < count:
        time.sleep(0.02)
    time.sleep(chance.uniform(0.0, chance.choice((0.01, 0.3, 1.0))))
    if process.poll() is not None:
        return
    numbers = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT, "terminate": signal.SIGTERM}
    if fault in numbers:
        process.send_signal(numbers[fault])
    elif fault == "agent":
        for _ in range(chance.choice((1, 2, 3))):
            kill_one(process.pid, chance, scene)
            time.sleep(chance.uniform(0.0, 0.5))


def kill_one(engine: int, chance: random.Random, scene: Scene) -> None:
    if ON_DOCKER:
        if found := scene.command.containers():
            command = chance.choice((["docker", "kill"], ["docker", "rm", "-f"]))
            subprocess.run([*command, chance.choice(found)], capture_output=True, check=False)
    elif agents := sorted(agents_of(engine)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(agents), signal.SIGKILL)


def tear(path: Path, chance: random.Random) -> None:
    """Now and then the machine stops in the middle of a write."""
    if path.exists() and chance.random() < 0.3:
        with path.open("ab") as file:
            file.write(b'{"github_id":1,"id":0,"index":0,"status":"pas'[: chance.randrange(1, 45)])
