"""What the agent reads of a snippet's processes, from made-up /proc and cgroup trees."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from conftest import PYTHON, agents_of
from mlbench_exec.agent.meter import Counters, Meter, Seen, judge_wait
from mlbench_exec.agent.snippet import tick_s
from mlbench_exec.backends.local import LocalBackend
from mlbench_exec.environments import Environment
from mlbench_exec.sandbox import Job, Limits

AGENT = 1
SECOND = 1_000_000_000
FIRST_PID = 5_000_000  # above any that this machine could have


class Machine:
    """A /proc and a cgroup in a folder, and a clock that stands still until it is told."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.cgroup = folder / "cgroup"
        self.cgroup.mkdir(parents=True)
        self.time = 100.0
        self.blocked(0)
        self.thread(AGENT, AGENT, 0, 0, "S")
        self.usage(0)

    def thread(self, pid: int, tid: int, ran_s: float, waited_s: float, state: str) -> None:
        folder = self.proc / str(pid) / "task" / str(tid)
        folder.mkdir(parents=True, exist_ok=True)
        line = f"{ran_s * SECOND:.0f} {waited_s * SECOND:.0f} 7\n"
        (folder / "schedstat").write_text(line)
        (folder / "stat").write_text(f"{tid} (a) name)) {state} 1 1 1\n")
        if pid == tid:
            (self.proc / str(pid) / "schedstat").write_text(line)
        if pid == AGENT and not (self.proc / "self").exists():
            (self.proc / "self").symlink_to(self.proc / str(pid))

    def end(self, pid: int) -> None:
        for path in sorted((self.proc / str(pid)).rglob("*"), reverse=True):
            if path.is_dir():
                path.rmdir()
            else:
                path.write_text("")  # who has it open is told nothing any more
                path.unlink()
        (self.proc / str(pid)).rmdir()

    def usage(self, seconds: float) -> None:
        (self.cgroup / "cpuacct.usage").write_text(f"{seconds * SECOND:.0f}\n")

    def blocked(self, count: int, running: int = 9999) -> None:
        self.proc.mkdir(exist_ok=True)
        text = f"cpu 1 2\nprocs_running {running}\nprocs_blocked {count}\nirq 0\n"
        (self.proc / "stat").write_text(text)

    def meter(self, cpus: float = 2.0) -> Meter:
        counters = Counters({"cpuacct": str(self.cgroup)})
        return Meter(cpus, {AGENT}, counters, str(self.proc), lambda: self.time)

    def tick(self, meter: Meter, seconds: float = 0.05) -> None:
        self.time += seconds
        meter.sample()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


MS = 1_000_000


@pytest.mark.parametrize(
    ("ran", "is_ready", "expected"),
    [(MS, False, 9 * MS), (MS // 50, False, MS // 50), (MS // 50, True, MS // 50)],
    ids=["worked", "asked", "not known yet"],
)
def test_a_wait_was_for_work_if_work_followed(ran: int, is_ready: bool, expected: int) -> None:
    """Whoever waits for a CPU to find a lock taken would otherwise not have been ready."""
    before = Seen(0, 0, 0, False, turns=4)
    now, work = judge_wait(before, Seen(ran, 8 * MS, 0, is_ready), 5, 10 * MS)
    assert work == expected
    assert now.asked == (8 * MS if is_ready else 0)
    if is_ready:  # and then it works on
        later, work = judge_wait(now, Seen(ran + MS, 8 * MS, 0, True), 5, 10 * MS)
        assert (work, later.asked) == (9 * MS, 0)


def test_a_long_wait_is_told_of_in_as_many_looks_as_it_took() -> None:
    """No thread did more between two looks than one thread can."""
    thread = Seen(0, 0, 0, True)
    told = []
    for number in range(1, 31):  # it gets 5 ms of every 100
        turns = number // 10
        ran, waited = turns * 5 * MS, turns * 95 * MS
        pending = 0 if number % 10 == 0 else number % 10 * 10 * MS
        thread, work = judge_wait(thread, Seen(ran, waited, pending, True), turns, 10 * MS)
        told.append(work)
    assert max(told) == 10 * MS
    assert sum(told[10:]) == 20 * 10 * MS


def test_a_parent_that_lends_its_memory_is_not_ready_for_long(machine: Machine) -> None:
    """vfork: the parent is in uninterruptible sleep while its child sleeps as long as it likes."""
    machine.thread(FIRST_PID, FIRST_PID, 0.01, 0, "D")
    machine.usage(0.01)
    meter = machine.meter()
    meter.begin(machine.time)
    for _ in range(200):
        machine.tick(meter)
    assert meter.stalled_s < 1.5


def test_waits_are_stolen_and_runs_are_not(machine: Machine) -> None:
    """A thread that runs for a tenth of the time and waits for the rest counts a tenth."""
    machine.thread(FIRST_PID, FIRST_PID, 0, 0, "R")
    meter = machine.meter()
    meter.begin(machine.time)
    for number in range(1, 21):
        machine.thread(FIRST_PID, FIRST_PID, number * 0.005, number * 0.045, "R")
        machine.usage(number * 0.005)
        machine.tick(meter)
    assert meter.stalled_s == pytest.approx(0.9, abs=0.001)
    assert meter.ran_s == pytest.approx(0.1)


def test_a_wait_that_is_not_over_is_seen_and_not_counted_twice(machine: Machine) -> None:
    """The kernel tells of a wait at its end; until then the thread is ready and doesn't move."""
    machine.thread(FIRST_PID, FIRST_PID, 0.01, 0, "R")
    machine.usage(0.01)
    meter = machine.meter()
    meter.begin(machine.time)
    for _ in range(10):
        machine.tick(meter)
    waited = meter.stalled_s
    assert waited == pytest.approx(0.5, abs=0.006)  # less what ran before the start
    machine.thread(FIRST_PID, FIRST_PID, 0.02, 0.54, "R")
    machine.usage(0.02)
    machine.tick(meter)
    assert meter.stalled_s == pytest.approx(0.54, abs=0.006)


def test_a_start_that_the_agent_heard_of_late_is_measured_from_its_own_moment(
    machine: Machine,
) -> None:
    """Neither had a CPU for three seconds: stolen; what was before is not the program's own."""
    meter = machine.meter()
    machine.time += 5.0
    started = machine.time
    machine.thread(FIRST_PID, FIRST_PID, 0.01, 0.0, "R")
    machine.usage(0.01)
    machine.time += 3.0
    meter.begin(started)
    assert meter.stalled_s == pytest.approx(2.99)


def test_children_between_two_looks_are_found_in_the_cgroup(machine: Machine) -> None:
    """Each lives for less than a tick; the agent's own CPU time in that cgroup is left out."""
    machine.thread(FIRST_PID, FIRST_PID, 0, 0, "S")
    meter = machine.meter()
    meter.begin(machine.time)
    for number in range(1, 101):
        child = FIRST_PID + number
        machine.thread(child, child, 0.001, 0.02, "R")
        if number > 1:
            machine.end(child - 1)
        machine.thread(AGENT, AGENT, number * 0.001, 0, "S")
        machine.usage(number * (0.005 + 0.001))
        machine.tick(meter)
    assert meter.ran_s == pytest.approx(0.5, abs=0.02)
    assert 5.0 - meter.stalled_s == pytest.approx(0.5, abs=0.15)


def test_waiting_for_a_lock_is_waiting_and_for_a_disk_is_not(machine: Machine) -> None:
    """Uninterruptible sleep while nobody waits for a disk means that a lock's holder has no CPU."""
    for blocked, expected in ((0, 1.0), (1, 0.1)):
        machine.blocked(blocked)
        parent, child = FIRST_PID, FIRST_PID + 1
        machine.thread(parent, parent, 0, 0, "S")
        machine.thread(child, child, 0, 0, "R")
        meter = machine.meter()
        meter.begin(machine.time)
        for number in range(1, 3):  # busy enough for looks to decide
            machine.thread(child, child, 0, number * 0.5, "R")
            machine.thread(parent, parent, 0.0001 * number, number * 0.4, "R")
            machine.tick(meter, 0.5)
        before = meter.stalled_s
        for _ in range(20):
            machine.thread(child, child, 0, 1.0, "D")
            machine.thread(parent, parent, 0.0002, 0.8, "S")
            extra = FIRST_PID + 2
            machine.thread(extra, extra, 0, 0, "S")
            machine.tick(meter)
            machine.end(extra)
        assert (meter.stalled_s - before > 0.5) == (expected == 1.0), blocked


@pytest.mark.parametrize(("running", "other"), [(1, "S"), (9999, "R")])
def test_uninterruptible_sleep_is_not_stolen_where_nobody_elses_thread_can_hold_the_lock(
    machine: Machine, running: int, other: str
) -> None:
    """The machine has CPUs for all, or the program's own other thread runs."""
    machine.blocked(0, running)
    machine.thread(FIRST_PID, FIRST_PID, 0, 0, "D")
    machine.thread(FIRST_PID, FIRST_PID + 1, 0, 0, other)
    meter = machine.meter()
    meter.begin(machine.time)
    for number in range(1, 15):
        if other == "R":
            machine.thread(FIRST_PID, FIRST_PID + 1, number * 0.05, 0, other)
            machine.usage(number * 0.05)
        machine.tick(meter)
    assert meter.stalled_s < 0.1


def test_a_thread_that_was_missed_once_has_not_run_all_its_life_since(machine: Machine) -> None:
    """Its file couldn't be read at one look; at the next it seems to be new."""
    machine.thread(FIRST_PID, FIRST_PID, 0, 0, "R")
    meter = machine.meter()
    meter.begin(machine.time)
    for number in range(1, 21):
        machine.thread(FIRST_PID, FIRST_PID, number * 0.025, number * 0.025, "R")
        machine.usage(number * 0.025)
        if number == 19:
            (machine.proc / str(FIRST_PID) / "task" / str(FIRST_PID) / "schedstat").write_text("")
        machine.tick(meter)
    assert meter.stalled_s == pytest.approx(0.5, abs=0.06)


def test_a_thread_number_that_is_used_again_starts_anew(machine: Machine) -> None:
    """Counters that went down belong to somebody else."""
    machine.thread(FIRST_PID, FIRST_PID, 9.0, 9.0, "R")
    meter = machine.meter()
    meter.begin(machine.time)
    before = meter.ran_s
    machine.thread(FIRST_PID, FIRST_PID, 0.02, 0.03, "R")
    machine.usage(0.02)
    machine.tick(meter)
    assert 0 <= meter.stalled_s <= 0.05
    assert meter.ran_s - before == pytest.approx(0.02)


@pytest.mark.parametrize(("ran", "state"), [(0.02, "R"), (0.03, "S")])
def test_a_single_thread_sleeps_until_it_runs_or_wants_to(
    machine: Machine, ran: float, state: str
) -> None:
    """What it did while nobody looked counts as well."""
    machine.thread(FIRST_PID, FIRST_PID, 0.01, 0, "R")
    meter = machine.meter()
    meter.begin(machine.time)
    assert not meter.is_asleep
    machine.thread(FIRST_PID, FIRST_PID, 0.02, 0, "S")
    machine.tick(meter)
    assert not meter.is_asleep
    machine.tick(meter)
    assert meter.is_asleep
    machine.thread(FIRST_PID, FIRST_PID, ran, 0, state)
    machine.tick(meter)
    assert not meter.is_asleep


def asleep(machine: Machine) -> Meter:
    machine.thread(FIRST_PID, FIRST_PID, 0.02, 0, "S")
    machine.usage(0.02)
    meter = machine.meter()
    meter.begin(machine.time)
    machine.tick(meter)
    machine.tick(meter)
    assert meter.is_asleep
    return meter


def test_who_sleeps_on_is_seen_at_a_look_that_costs_little(machine: Machine) -> None:
    """Time goes on, and is none that it was kept from running in; then it runs again."""
    meter = asleep(machine)
    before = meter.ran_s
    for _ in range(20):
        machine.time += 0.1
        assert meter.is_still()
    assert meter.is_asleep
    machine.thread(FIRST_PID, FIRST_PID, 0.12, 0, "S")
    machine.usage(0.12)
    machine.time += 0.1
    assert not meter.is_still()
    machine.tick(meter, 0.0)
    assert meter.ran_s - before == pytest.approx(0.1)
    assert meter.stalled_s == 0


@pytest.mark.parametrize(
    ("ran", "waited", "state"), [(0.02, 0, "R"), (0.02, 0, "D"), (0.03, 0, "S"), (0.02, 0.01, "S")]
)
def test_who_woke_up_is_not_taken_to_sleep_on(
    machine: Machine, ran: float, waited: float, state: str
) -> None:
    """It ran, waited, or is about to."""
    meter = asleep(machine)
    machine.time += 0.1
    assert meter.is_still()
    machine.thread(FIRST_PID, FIRST_PID, ran, waited, state)
    machine.time += 0.1
    assert not meter.is_still()


def test_who_has_gone_or_was_not_asleep_is_not_taken_to_sleep_on(machine: Machine) -> None:
    """Only a look at everything tells more."""
    meter = asleep(machine)
    machine.end(FIRST_PID)
    assert not meter.is_still()
    machine.tick(meter)
    assert not meter.is_still()


def test_two_threads_are_never_taken_to_be_asleep(machine: Machine) -> None:
    """What they do between looks that are far apart is less certain."""
    machine.thread(FIRST_PID, FIRST_PID, 0.01, 0, "S")
    machine.thread(FIRST_PID, FIRST_PID + 1, 0.01, 0, "S")
    meter = machine.meter()
    meter.begin(machine.time)
    machine.tick(meter)
    machine.tick(meter)
    assert not meter.is_asleep


def test_what_sleeps_is_looked_at_less_often() -> None:
    """The longer it has slept; as often as ever where it is young, or threads come and go."""
    ticks = [tick_s(False, False, asleep_s, 9) for asleep_s in (0, 0.03, 0.08, 0.15, 9)]
    assert ticks == [0.05, 0.05, 0.08, 0.15, 0.2]
    assert tick_s(False, True, 9, 9) == tick_s(True, False, 9, 9) == 0.01


def test_what_sleeps_close_to_its_limit_is_looked_at_as_often_as_ever() -> None:
    """What it does between the last look and its end can't be told from waiting."""
    assert [tick_s(False, False, 9, left_s) for left_s in (0.4, 0.3, 0.1, -1)] == [
        0.2,
        0.15,
        0.05,
        0.05,
    ]


SLEEP = b"import threading, time\n%s\ntime.sleep(1.5)"
BESIDE = b"threading.Thread(target=time.sleep, args=(1.5,)).start()"


def pauses(pid: int) -> int:
    """How often a process went to sleep."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(one.split()[1]) for one in lines if one.startswith("voluntary_ctxt"))


def job_of(here: Environment, code: bytes, limits: Limits) -> Job:
    return Job(
        environment=here,
        path="",
        language="python",
        code=code,
        time_limit_s=10,
        limits=limits,
    )


AWAKENED = b"""
import sys, time
time.sleep(0.8)
some = b"x" * (400 << 20)
time.sleep(9)
print(len(some))
"""


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize("warm", [False, True])
async def test_who_takes_too_much_after_a_sleep_is_stopped(workdir: str, warm: bool) -> None:
    """Also where the sandbox's cgroup has room for a warm interpreter."""
    here = Environment(
        name="a",
        github_ids=(1,),
        repo="a",
        workdir=workdir,
        python=PYTHON,
        preload=("calendar",) * warm,
    )
    limits = Limits(memory_bytes=256 << 20)
    async with LocalBackend(limits=limits, preload_bytes=(512 << 20) * warm) as backend:
        sandbox = await backend.open(here, 0)
        seen = await sandbox.run(job_of(here, AWAKENED, limits), lambda cpus: None)
        await sandbox.aclose()
    assert (seen.limit, seen.stdout, seen.warm) == ("memory", "", warm)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_an_agent_looks_less_often_where_limits_are_kept_meanwhile(workdir: str) -> None:
    """At a single thread, some ten times in a second and a half; at two threads, thirty times."""
    here = Environment(name="a", github_ids=(1,), repo="a", workdir=workdir, python=PYTHON)
    limits = Limits(memory_bytes=256 << 20)
    seen: dict[bytes, int] = {}
    async with LocalBackend(limits=limits) as backend:
        if "by cgroup" not in backend.level:
            pytest.skip("this user has no cgroups: a sandbox's memory is only watched")
        sandbox = await backend.open(here, 0)
        (launcher,) = agents_of(os.getpid())
        (agent,) = agents_of(launcher)
        for beside in (b"", BESIDE):
            code = SLEEP % beside
            before = pauses(agent)
            job = job_of(here, code, limits)
            assert (await sandbox.run(job, lambda cpus: None)).exit_code == 0
            seen[beside] = pauses(agent) - before
        await sandbox.aclose()
    assert 1.5 * seen[b""] < seen[BESIDE], seen
    assert seen[b""] < 21, seen


def test_version_2_tells_cpu_time_in_cpu_stat(tmp_path: Path) -> None:
    """`usage_usec` is there without the cpu controller; where neither file is, nobody knows."""
    (tmp_path / "cpu.stat").write_text("usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n")
    assert Counters({"pids": str(tmp_path)}).cpu_ns() == 1_500_000
    assert Counters({}).cpu_ns() is None


def test_what_the_kernel_holds_is_told_by_either_version(tmp_path: Path) -> None:
    """Version 2 says which part it would give back if it had to; where nobody tells, nothing."""
    (tmp_path / "memory.stat").write_text("anon 9\nkernel 70\nslab_reclaimable 20\nsock 5\n")
    assert Counters({"memory": str(tmp_path)}).kernel_bytes() == 55
    (tmp_path / "memory.kmem.usage_in_bytes").write_text("1234\n")
    assert Counters({"memory": str(tmp_path)}).kernel_bytes() == 1234
    assert Counters({}).kernel_bytes() == 0


def test_who_sleeps_on_is_told_by_the_real_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was opened to look at it is closed again, whatever became of it."""
    before = set(os.listdir("/proc/self/fd"))
    with subprocess.Popen(["sleep", "60"]) as process:
        meter = Meter(2.0, {os.getpid()}, Counters({}))
        monkeypatch.setattr(meter, "pids", lambda: [process.pid])
        meter.begin(time.monotonic())
        until = time.monotonic() + 10
        while not meter.is_asleep and time.monotonic() < until:
            time.sleep(0.05)
            meter.sample()
        assert meter.is_still()
        assert meter.is_still()
        process.kill()
        process.wait()
        assert not meter.is_still()
        meter.let_go()
    assert set(os.listdir("/proc/self/fd")) == before


def test_what_an_observer_waited_for_a_cpu_is_told_once(machine: Machine) -> None:
    """Beside a sleeper, at looks that cost little as at others: then somebody is in the way."""
    meter = asleep(machine)
    assert meter.clock.busy < 0.01
    waited = 0.0
    for _ in range(3):
        waited += 0.05
        machine.thread(AGENT, AGENT, 0, waited, "S")
        machine.time += 0.1
        assert meter.is_still()
    busy = meter.clock.busy
    assert 0.2 < busy < 0.5
    machine.tick(meter, 0.1)
    assert meter.clock.busy < busy


def test_the_real_proc_can_be_read() -> None:
    """On this machine, with this process's own threads."""
    meter = Meter(2.0, set(), Counters({}))
    assert os.getpid() in meter.pids()
    meter.begin(time.monotonic())
    assert (os.getpid(), os.getpid()) in meter._look.threads


def test_processes_are_listed_where_there_is_nothing_else(tmp_path: Path) -> None:
    """A kernel may have a /proc of processes alone; what is told of them is in the other one."""
    for name in ("7", "12", "self"):
        (tmp_path / name).mkdir()
    pids_in = os.open(tmp_path, os.O_RDONLY)
    meter = Meter(2.0, {7}, Counters({}), str(tmp_path / "nowhere"), pids_in=pids_in)
    assert meter.pids() == [12]
    (tmp_path / "12").rmdir()
    assert meter.pids() == []
    os.close(pids_in)


@pytest.mark.parametrize("name", ["memory.usage_in_bytes", "memory.current"])
def test_whether_all_is_below_a_limit_is_told_by_one_number(tmp_path: Path, name: str) -> None:
    """It counts more than the memory that matters, so above it nothing is sure."""
    (tmp_path / name).write_text("5000\n")
    counters = Counters({"memory": str(tmp_path)})
    assert counters.is_surely_below(5000)
    assert not counters.is_surely_below(4999)
    assert not Counters({}).is_surely_below(5000)


def test_what_was_written_is_counted_for_the_living_and_for_those_waited_for(
    tmp_path: Path,
) -> None:
    proc = tmp_path / "proc"
    for pid, written in ((AGENT, 5), (FIRST_PID, 70), (FIRST_PID + 1, 8)):
        (proc / str(pid)).mkdir(parents=True)
        (proc / str(pid) / "io").write_text(
            f"wchar: 999\nwrite_bytes: {written}\ncancelled_write_bytes: 1\n"
        )
    (proc / str(FIRST_PID + 2)).mkdir()  # ended while it was looked at
    meter = Meter(2.0, {AGENT}, Counters({}), str(proc))

    assert meter.written_bytes() == 83


def test_a_child_that_was_waited_for_leaves_what_it_wrote_to_its_parent(tmp_path: Path) -> None:
    (tmp_path / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")  # no process but this one
    meter = Meter(2.0, {os.getpid()}, Counters({}), str(tmp_path))
    before = meter.written_bytes()
    path = Path(f"/var/tmp/mlbench-written-{os.getpid()}")  # a disk, where /tmp may be none
    try:
        child = os.fork()
        if child == 0:
            path.write_bytes(bytes(1 << 20))
            os._exit(0)
        os.waitpid(child, 0)
    finally:
        path.unlink(missing_ok=True)

    assert meter.written_bytes() - before >= 1 << 20
