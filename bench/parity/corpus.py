"""Corpus: snippets whose verdicts follow from their sources, for any time limit.

Each does a known amount of work and then exits with 1. Work is CPU time that the snippet measures
itself, or turns of a loop that were timed on this machine; with sleeps it makes up the time that
the snippet takes when it is alone, given as a share of the limit. Below the limit the verdict is
`failed`, above it `passed_at_limit`.
"""

import random
from collections.abc import Iterator
from typing import Literal

import msgspec

from mlbench_exec.samples import Language
from mlbench_exec.verdicts import Status

NEAR = (0.75, 0.77, 0.79, 0.81, 0.83, 0.85)
UNDER = (0.2, 0.35, 0.5, 0.6)
PAST = (1.5, 1.7, 2.0, 3.0)

Zone = Literal["under", "near", "past"]


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One snippet. `share` is the part of the limit that it takes alone, by its source."""

    name: str
    kind: str
    zone: Zone
    language: Language
    code: str
    expected: Status
    share: float
    is_parallel: bool  # several threads or processes
    needs_torch: bool = False


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """A way to spend time. `code` holds TOTAL (seconds alone) or TURNS (of the timed loop)."""

    name: str
    code: str
    near: int
    under: int
    past: int
    language: Language = "python"
    is_parallel: bool = False
    needs_torch: bool = False


SHORT = (
    "loop",
    "bash loop",
    "sleep",
    "bursts",
    "threads",
    "two processes",
    "six processes",
    "children that come and go",
    "pinned to one core",
)
LOOP = "for i in range(turns): x = (x * 31 + i) & 0xFFFFFF"
CALIBRATION = f"""\
import time
speeds = []
for attempt in range(9):
    x, turns = 0, 400000
    start = time.process_time()
    {LOOP}
    speeds.append(turns / (time.process_time() - start))
print(sorted(speeds)[4])
"""

_BURN = """\
import hashlib, os, sys, threading, time
def burn(seconds, clock=time.thread_time):
    until = clock() + seconds
    while clock() < until:
        for _ in range(500): pass
block = bytes(1 << 18)
def digest(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until: hashlib.sha256(block).digest()
def in_threads(count, job, *arguments):
    threads = [threading.Thread(target=job, args=arguments) for _ in range(count)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
def fork(job, *arguments):
    pid = os.fork()
    if pid == 0:
        job(*arguments)
        os._exit(0)
    return pid
def in_processes(count, job, *arguments):
    for pid in [fork(job, *arguments) for _ in range(count)]: os.waitpid(pid, 0)
def used():
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
total = TOTAL - time.process_time()  # the interpreter's start counts too
"""
_END = "sys.exit(1)\n"
# What bash and its dead children have used, in hundredths of a second.
_BASH = """\
# run.sh in pieces
used() { read -r -a now </proc/$$/stat; spent=$((now[13] + now[14] + now[15] + now[16])); }
limit=$(printf %.0f "$(echo TOTAL | sed 's/$/e2/')")
used
"""

KINDS = (
    Kind(name="loop", near=6, under=4, past=4, code="burn(total)\n"),
    Kind(
        name="fixed work",  # not near the limit: cores aren't always equally fast
        near=0,
        under=3,
        past=3,
        code=f"x, turns = 0, int(TURNS)\n{LOOP}\n",
    ),
    Kind(
        name="bash loop",
        near=3,
        under=2,
        past=2,
        language="bash",
        code="while ((spent < limit)); do for i in {1..200}; do :; done; used; done\nexit 1\n",
    ),
    Kind(name="sleep", near=2, under=2, past=2, code="time.sleep(total)\n"),
    Kind(
        name="bursts",
        near=4,
        under=1,
        past=2,
        code="for _ in range(10):\n    burn(total / 20)\n    time.sleep(total / 20)\n",
    ),
    Kind(
        name="threads",
        near=4,
        under=2,
        past=2,
        is_parallel=True,
        code="in_threads(2, digest, total)\n",
    ),
    Kind(
        name="threads of one interpreter lock",
        near=2,
        under=1,
        past=2,
        is_parallel=True,
        code="in_threads(4, burn, total / 4)\n",
    ),
    Kind(
        name="threads in bursts",
        near=2,
        under=1,
        past=1,
        is_parallel=True,
        code=(
            "for _ in range(5):\n    in_threads(2, digest, total / 10)\n"
            "    time.sleep(total / 10)\n"
        ),
    ),
    Kind(
        name="two processes",
        near=3,
        under=1,
        past=2,
        is_parallel=True,
        code="in_processes(2, burn, total)\n",
    ),
    Kind(
        name="six processes",
        near=2,
        under=1,
        past=1,
        is_parallel=True,
        code="in_processes(6, burn, total / 3)\n",
    ),
    Kind(
        name="processes in bursts",
        near=2,
        under=1,
        past=1,
        is_parallel=True,
        code=(
            "def job():\n    for _ in range(8):\n        burn(total / 16)\n"
            "        time.sleep(total / 16)\nin_processes(2, job)\n"
        ),
    ),
    Kind(
        name="children that come and go",
        near=4,
        under=1,
        past=2,
        is_parallel=True,
        code="while used() < TOTAL: os.waitpid(fork(burn, 0.004), 0)\n",
    ),
    Kind(
        name="children of children",
        near=2,
        under=1,
        past=1,
        is_parallel=True,
        code=(
            "def job(): os.waitpid(fork(burn, 0.01), 0)\n"
            "while used() < TOTAL: os.waitpid(fork(job), 0)\n"
        ),
    ),
    Kind(
        name="children and sleeps",
        near=3,
        under=1,
        past=1,
        is_parallel=True,
        code=(
            "for _ in range(int(total / 0.02)):\n"
            "    os.waitpid(fork(burn, 0.01), 0)\n    time.sleep(0.01)\n"
        ),
    ),
    Kind(
        name="commands of a shell",
        near=3,
        under=1,
        past=2,
        language="bash",
        is_parallel=True,
        code="while ((spent < limit)); do /bin/true; /bin/true; used; done\nexit 1\n",
    ),
    Kind(
        name="pinned to one core",
        near=2,
        under=1,
        past=2,
        is_parallel=True,
        code=(
            "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
            "in_processes(3, burn, total / 3)\n"
        ),
    ),
    Kind(
        name="two processes and a pipe",
        near=2,
        under=1,
        past=1,
        is_parallel=True,
        code=(
            "a, b = os.pipe(), os.pipe()\n"
            "def job():\n"
            "    for _ in range(20):\n"
            "        os.read(a[0], 1); burn(total / 40); os.write(b[1], b'.')\n"
            "pid = fork(job)\n"
            "for _ in range(20):\n"
            "    burn(total / 40); os.write(a[1], b'.'); os.read(b[0], 1)\n"
        ),
    ),
    Kind(
        name="torch",
        near=2,
        under=1,
        past=1,
        is_parallel=True,
        needs_torch=True,
        code=(
            "import torch\n"
            "torch.set_num_threads(2)\n"
            "a = torch.rand(192, 192)\n"
            "until = time.thread_time() + TOTAL - time.process_time()\n"
            "while time.thread_time() < until: b = a @ a\n"
        ),
    ),
)


def corpus(limit_s: float, torch_limit_s: float, turns_per_s: float) -> list[Case]:
    """Every case, mixed in an order that is always the same."""
    cases = list(_cases(limit_s, torch_limit_s, turns_per_s))
    random.Random(1).shuffle(cases)
    return cases


def short(cases: list[Case]) -> list[Case]:
    """A dozen of them: different kinds that fail near the limit, and three that run past it."""
    near = {case.kind: case for case in cases if case.zone == "near" and not case.needs_torch}
    past = [case for case in cases if case.zone == "past" and case.kind in ("loop", "threads")]
    return [near[kind] for kind in SHORT] + past[:3]


def _cases(limit_s: float, torch_limit_s: float, turns_per_s: float) -> Iterator[Case]:
    zones: tuple[tuple[Zone, tuple[float, ...]], ...] = (
        ("near", NEAR),
        ("under", UNDER),
        ("past", PAST),
    )
    for number, kind in enumerate(KINDS):
        counts = {"near": kind.near, "under": kind.under, "past": kind.past}
        for zone, shares in zones:
            for i in range(counts[zone]):
                share = shares[(number + i) % len(shares)]
                seconds = share * (torch_limit_s if kind.needs_torch else limit_s)
                yield Case(
                    name=f"{kind.name}, {share:.0%} of the limit",
                    kind=kind.name,
                    zone=zone,
                    language=kind.language,
                    code=_source(kind, seconds, turns_per_s),
                    expected="passed_at_limit" if share > 1 else "failed",
                    share=share,
                    is_parallel=kind.is_parallel,
                    needs_torch=kind.needs_torch,
                )
    for share in (0.1, 0.3, 0.5, 0.7):
        yield Case(
            name=f"ends well after {share:.0%}",
            kind="ends well",
            zone="under",
            language="python",
            code=_BURN.replace("TOTAL", str(share * limit_s)) + "burn(total)\n",
            expected="passed",
            share=share,
            is_parallel=False,
        )


def _source(kind: Kind, seconds: float, turns_per_s: float) -> str:
    code = _BASH + kind.code if kind.language == "bash" else _BURN + kind.code + _END
    return code.replace("TOTAL", f"{seconds:.4f}").replace("TURNS", f"{seconds * turns_per_s:.0f}")
