"""House: one engine of one level, in which each hostile program lives between two innocent ones.

    left      an innocent program, again and again while the hostile one runs
    hostile   the case; then, in the same sandbox, an innocent successor
    right     another innocent program

Each of the three has an environment, and so a sandbox, of its own.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import msgspec
from anyio.from_thread import BlockingPortal, start_blocking_portal

from conformance.rigs import make_repo
from mlbench_exec import (
    Engine,
    Environment,
    Environments,
    Limits,
    Mount,
    Sample,
    Settings,
    Snippet,
    UnjudgedError,
    Verdict,
)

MIB = 1 << 20
PYTHON = "/usr/bin/python3"
LIMITS = Limits(memory_bytes=256 * MIB, cpus=1, pids=64, disk_bytes=64 * MIB, open_files=256)
NEXT_PORT = 15454  # where a survivor of case 42 would be found; never a port of the kernel's choice
IPC_KEY = 0x4D4C4258
READY_WITHIN_S = 30.0
OVERLAPS = 5  # attempts to have both neighbours run at the same time as the program
ROLES = {"left": 1, "right": 2, "hostile": 3, "short": 4, "warm": 5}  # github_ids
LIMIT_S = {"short": 1.0}
DATA = "/deep_data"  # where a container shows the shared folder

INNOCENT = Path(__file__).parent / "innocent"
NEIGHBOUR = (INNOCENT / "neighbour.py").read_text()
SUCCESSOR = (INNOCENT / "successor.py").read_text()


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A program's verdict, with those of its neighbours and of its successor."""

    verdict: Verdict
    left: tuple[Verdict, ...]
    right: tuple[Verdict, ...]
    successor: Verdict
    is_overlapped: bool


class House:
    """An open engine in a thread of its own; `reference` is what the innocent say undisturbed."""

    def __init__(self, level: str, engine: Engine, portal: BlockingPortal, folder: Path) -> None:
        self.level = level
        self.engine = engine
        self.portal = portal
        self.folder = folder
        self.mount = str(folder / "data") if level == "local" else DATA
        self.reference: dict[str, Verdict] = {}

    def judge(self, code: str, language: str = "python", role: str = "hostile") -> Verdict:
        """One program's verdict. Raises `UnjudgedError` where none is reached."""
        return self.portal.call(self._judge, code, language, role)

    def settle(self) -> None:
        """Let every role's sandbox start, and note what the innocent say in peace."""
        for role in "left", "right":
            self.reference[role] = self.judge(_neighbour(role), role=role)
        self.reference["hostile"] = self.judge(SUCCESSOR)
        for verdict in self.reference.values():
            assert verdict.passed, verdict

    def live(
        self, code: str, language: str, *, role: str = "hostile", alone: bool = False
    ) -> Outcome:
        """Run a program between its neighbours, then its successor."""
        for _ in range(OVERLAPS):
            outcome = self.portal.call(self._live, code, language, role, alone)
            if outcome.is_overlapped:
                break
        return outcome

    def check_innocent(self, outcome: Outcome) -> None:
        """Raise `AssertionError` unless neighbours and successor are as without the program."""
        assert outcome.is_overlapped, outcome
        for role, verdicts in (("left", outcome.left), ("right", outcome.right)):
            for verdict in verdicts:
                _same(verdict, self.reference[role])
        _same(outcome.successor, self.reference["hostile"])

    async def _judge(self, code: str, language: str, role: str) -> Verdict:
        row = 2 if language == "bash" else 1
        return await self.engine.run(Snippet(github_id=ROLES[role], id=row, output=code))

    async def _live(self, code: str, language: str, role: str, alone: bool) -> Outcome:
        verdicts: dict[str, list[Verdict]] = {"left": [], "right": []}
        ended = anyio.Event()

        once = alone or self.level == "docker-fresh"  # a container for each time is a lot

        async def be_neighbour(side: str) -> None:
            while not (verdicts[side] and (ended.is_set() or once)):
                verdicts[side].append(await self._judge(_neighbour(side), "python", side))

        failure: UnjudgedError | None = None
        with anyio.move_on_after(READY_WITHIN_S):  # fresh containers, so that all start at once
            while self.engine.statistics().refilling:  # noqa: ASYNC110 - no event tells
                await anyio.sleep(0.02)
        async with anyio.create_task_group() as tasks:
            for side in verdicts:
                tasks.start_soon(be_neighbour, side)
            await anyio.sleep(0.03)
            try:
                verdict = await self._judge(code, language, role)
            except UnjudgedError as error:  # bare, not in a group
                failure = error
            ended.set()
        if failure is not None:
            raise failure
        successor = await self._judge(SUCCESSOR, "python", "hostile" if role == "short" else role)
        return Outcome(
            verdict=verdict,
            left=tuple(verdicts["left"]),
            right=tuple(verdicts["right"]),
            successor=successor,
            is_overlapped=all(any(_overlap(verdict, one) for one in side)
                              for side in verdicts.values()),
        )  # fmt: skip


def _neighbour(role: str) -> str:
    return NEIGHBOUR.replace("WHO", role)


def _same(verdict: Verdict, reference: Verdict) -> None:
    for field in ("status", "exit_code", "signal", "limit", "stdout", "stderr", "attempts"):
        ours, theirs = getattr(verdict, field), getattr(reference, field)
        assert ours == theirs, f"{field}: {ours!r} is not {theirs!r}: {verdict}"


def _overlap(one: Verdict, other: Verdict) -> bool:
    (a, b), (c, d) = _interval(one), _interval(other)
    return a < d and c < b


def _interval(verdict: Verdict) -> tuple[datetime, datetime]:
    start = datetime.fromisoformat(verdict.started_at or "")
    return start, start + timedelta(seconds=verdict.wall_s or 0)


@contextmanager
def open_house(
    level: str, folder: Path, image: Callable[[], str], **changes: Any
) -> Iterator[House]:
    """Start an engine of this level; `folder` is empty. `changes` are settings."""
    folder.chmod(0o755)
    for name in ("data", "left", "right"):
        (folder / name).mkdir()
        (folder / name / "file.txt").write_text("the host's\n")
    base = Environment(
        name="base", github_ids=(), repo="tiny", workdir="/repos/tiny", python=PYTHON
    )
    if level == "local":
        make_repo(folder / "repo")
    else:
        base = msgspec.structs.replace(base, image=image())
    environments = Environments(tuple(_environments(base, folder, level)))
    samples = {
        (number, row): Sample(
            github_id=number, id=row, repository="tiny", path="./", arguments={},
            type="Bash Script" if row == 2 else "Python Code",
        )
        for number in ROLES.values() for row in (1, 2)
    }  # fmt: skip
    settings = Settings(
        backend="local" if level == "local" else "docker",
        concurrency=len(ROLES),
        limits=LIMITS,
        fresh=level == "docker-fresh",
    )
    engine = Engine(
        msgspec.structs.replace(settings, **changes), samples=samples, environments=environments
    )
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(engine):
        yield House(level, engine, portal, folder)


def _environments(base: Environment, folder: Path, level: str) -> Iterator[Environment]:
    """Left and right have containers, or folders, of their own; the rest share one."""
    for role, number in ROLES.items():
        side = role if role in {"left", "right"} else "data"
        workdir = base.workdir
        if level == "local":
            workdir = str(folder / f"{side}-repo")
            if not os.path.exists(workdir):
                shutil.copytree(folder / "repo", workdir, symlinks=True)
        limit_s = LIMIT_S.get(role, 30.0)
        yield msgspec.structs.replace(
            base,
            name=role,
            github_ids=(number,),
            workdir=workdir,
            mounts=(
                Mount(
                    source=str(folder / side),
                    target=f"{folder}/{side}" if level == "local" else DATA,
                ),
            ),
            env={"HOSTILE_HOUSE": str(folder)},
            time_limit_s={"python": limit_s, "bash": limit_s},
            preload=("json", "socket") if role == "warm" else (),
        )
