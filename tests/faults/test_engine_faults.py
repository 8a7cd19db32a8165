"""F2, F6, F7, F10, F12: the engine interrupted, its disk full, its journal damaged, its clock off.

F1, the engine killed, is in tests/acceptance/test_thousand.py and in test_random_faults.py.
"""

import ast
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlbench_exec
from faults.scene import Scene, driver, make_rogue

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ENDS_WITHIN_S = 5.0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    scene = Scene(tmp_path_factory.mktemp("undisturbed"))
    scene.finish()
    return scene


def test_f2_interrupted_twice(undisturbed: Scene, tmp_path: Path) -> None:
    """A second Ctrl-C doesn't cut short what cleans up: 130, in time, nothing left, resumable."""
    scene = Scene(tmp_path, "--concurrency", "2")
    process = scene.command.start()
    scene.command.wait_for_verdicts(process, 10)
    began = time.monotonic()
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    assert process.wait(60) == 130, scene.command.said()
    assert time.monotonic() - began < ENDS_WITHIN_S
    assert "Traceback" not in scene.command.said()
    assert scene.command.leftovers() == set()
    assert 10 <= len(scene.command.verdicts()) < scene.count
    scene.finish()
    assert scene.comparable() == undisturbed.comparable()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for the beginning of a journal."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "command" / "run"
    folder.mkdir(parents=True)
    mounted: list[str | Path] = ["mount", "-t", "tmpfs", "-o", "size=32k", "small", folder]
    if subprocess.run(mounted, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine refuses to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_f6_disk_full_at_the_journal(small_disk: Path, undisturbed: Scene, tmp_path: Path) -> None:
    """The run ends with what to do and exit code 1; whole lines stay, and are gone on from."""
    scene = Scene(tmp_path, "--concurrency", "2")
    assert scene.command.run() == 1, scene.command.said()
    said = " ".join(scene.command.said().split())
    assert f"can't write {small_disk}/verdicts.jsonl: No space left on device" in said
    assert "make room, and the same command goes on" in said
    assert "Traceback" not in said
    content = (small_disk / "verdicts.jsonl").read_bytes()
    assert content.endswith(b"\n")
    scene.check_known(scene.command.verdicts())
    assert 0 < len(scene.command.verdicts()) < scene.count
    assert scene.command.leftovers() == set()
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    scene.finish()
    assert scene.comparable() == undisturbed.comparable()


def test_f7_torn_and_corrupted_journals(undisturbed: Scene, tmp_path: Path) -> None:
    """A torn last line is dropped and judged again; a line that is no verdict is named."""
    scene = Scene(tmp_path, "--concurrency", "4", count=20)
    scene.finish()
    journal = scene.command.folder / "verdicts.jsonl"
    whole, known = journal.read_bytes(), scene.comparable()
    journal.write_bytes(whole[:-30])
    scene.finish()
    assert scene.comparable() == known
    lines = journal.read_bytes().splitlines(keepends=True)
    for damaged in (lines[4][:20] + b"\n", b"\0" * len(lines[4]), lines[3], b'{"id": 1}\n'):
        content = b"".join([*lines[:4], damaged, *lines[5:]])
        journal.write_bytes(content)
        assert scene.command.run() == 1
        said = " ".join(scene.command.said().split())
        assert f"{journal}:5: " in said, said
        assert "remove" in said
        assert journal.read_bytes() == content
    journal.write_bytes(b"".join([*lines[:4], *lines[5:]]))
    scene.finish()
    assert scene.comparable() == known


def test_f10_two_runs_in_one_folder(tmp_path: Path) -> None:
    """The second is refused by name, and does the first no harm."""
    scene = Scene(tmp_path, "--concurrency", "2", nap_s=0.2, count=15)
    first, log = scene.command.start(), scene.command.log
    with scene.command.held_at(first, 3):
        scene.command.log = tmp_path / "second.txt"
        assert scene.command.run() == 2
        assert f"{scene.command.folder} is in use by another run" in scene.command.said()
    assert first.wait(120) == 0, log.read_text()
    scene.check(scene.command.verdicts())
    assert scene.command.leftovers() == set()


def test_f12_clock_steps(undisturbed: Scene, tmp_path: Path) -> None:
    """No verdict comes from a wall clock that jumps by a day at each look, nor any time."""
    rogue = make_rogue(tmp_path / "agents")
    agents_too = "import time, itertools; t = time.time; d = itertools.cycle((0, 86400, -86400))\n"
    agents_too += "time.time = lambda: t() + next(d)\n"
    text = rogue.read_text()
    start = "os.execv(PYTHON, [PYTHON, *sys.argv[1:]])"
    assert start in text
    stepped = f"os.execv(PYTHON, [PYTHON, *sys.argv[1:-1], {agents_too!r} + sys.argv[-1]])"
    rogue.write_text(text.replace(start, stepped))
    scene = Scene(tmp_path, program=driver("--rogue", rogue, "--steps"))
    scene.finish()
    assert scene.comparable() == undisturbed.comparable()
    assert all((line["wall_s"] or 0) < 60 for line in scene.command.verdicts())
    assert {line["attempts"] for line in scene.command.verdicts()} <= {0, 1}


# What compares itself with the stamps of files, which are the wall clock's.
STAMPS = {"snippet.py": {"time.time"}}


def test_f12_nobody_measures_with_the_wall_clock() -> None:
    """No module of the engine or the agent asks for it but to write down a date."""
    clocks = {"time.time", "time.time_ns", "time.localtime"}
    for path in Path(mlbench_exec.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used = f"{node.value.id}.{node.attr}"
                assert used not in clocks - STAMPS.get(path.name, set()), (path, used)
