"""Each defence tested by taking it away: one case of the table that fails without it.

A defence is taken away by altering what the host sends or asks for, from outside: there is no
switch for it in the product.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from conftest import alter_agent
from hostile import host
from hostile.house import House, open_house
from hostile.table import TABLE, Case, read
from mlbench_exec import UnjudgedError, Verdict, seccomp
from mlbench_exec.backends import docker
from mlbench_exec.backends.cgroups import Cgroups
from mlbench_exec.backends.local import FIRST_FREE_UID
from mlbench_exec.errors import BackendUnavailable

pytestmark = [pytest.mark.slow, pytest.mark.hostile]
Patch = pytest.MonkeyPatch
FLOOD = 20 << 20


def alter_cgroups(patch: Patch, left_out: str) -> None:
    """Make groups without the limits whose file's name begins so."""
    settings = Cgroups._settings

    def fewer(self: Cgroups, *arguments: Any) -> list[tuple[Path, int | str]]:
        every = settings(self, *arguments)
        return [(path, value) for path, value in every if not path.name.startswith(left_out)]

    patch.setattr(Cgroups, "_settings", fewer)


def without_filter(patch: Patch) -> None:
    patch.setattr(seccomp, "snippet_filter", lambda machine: b"")


def without_profile(patch: Patch) -> None:
    patch.setattr(docker, "_profile_text", lambda: "unconfined")


def without_no_new_privileges(patch: Patch) -> None:
    without_filter(patch)  # which can't be set without it
    alter_agent(patch, "confinement", "Steps(prctl(kernel.PR_SET_NO_NEW_PRIVS, 1))", "Steps()")
    config = docker.DockerBackend._config

    def fewer(self: docker.DockerBackend, *arguments: Any, **fields: Any) -> dict[str, Any]:
        made = config(self, *arguments, **fields)
        made["HostConfig"]["SecurityOpt"].remove("no-new-privileges")
        return made

    patch.setattr(docker.DockerBackend, "_config", fewer)


def without_ipc_namespace(patch: Patch) -> None:
    alter_agent(patch, "confinement", '    "ipc": kernel.CLONE_NEWIPC,\n', "")


def without_pid_namespace(patch: Patch) -> None:
    step = '        Step("unshare", kernel.CLONE_NEWPID, said="unshare(CLONE_NEWPID)"),\n'
    alter_agent(patch, "confinement", step, "")
    alter_agent(patch, "setup", "time=30.0, cap=60.0", "time=2.0, cap=4.0")  # no end is told of


def without_mount_namespace(patch: Patch) -> None:
    alter_agent(patch, "surroundings", "sum(NAMESPACES.values())", 'NAMESPACES["ipc"]')


def without_uts_namespace(patch: Patch) -> None:
    alter_agent(patch, "confinement", '    "uts": kernel.CLONE_NEWUTS,\n', "")
    named = ', Step("sethostname", name, len(name))'
    alter_agent(patch, "surroundings", named, "")  # or it would name us


def without_user_namespace(patch: Patch) -> None:
    step = 'Step("unshare", kernel.CLONE_NEWUSER, said="unshare(CLONE_NEWUSER)")'
    alter_agent(patch, "confinement", step, "")
    alter_agent(patch, "confinement", "steps += user_mapped(", "lambda: user_mapped(")


def without_overlay(patch: Patch) -> None:
    alter_agent(
        patch,
        "view",
        'made.mount("overlay", folder, TMPFS, options)',
        "made.bind(base.find(folder), folder)",
    )
    alter_agent(patch, "base", 'recursive=True, rw=entry["rw"]', "recursive=True, rw=True")


def without_pids_limit(patch: Patch) -> None:
    alter_cgroups(patch, "pids")


def without_memory_limit(patch: Patch) -> None:
    alter_cgroups(patch, "memory")
    alter_agent(patch, "snippet", 'limit = self.limits["memory"]', "limit = None")


def without_disk_limit(patch: Patch) -> None:
    alter_agent(patch, "view", "% (disk_bytes, inodes)", "% (disk_bytes * 100, inodes)")


def without_output_bound(patch: Patch) -> None:
    alter_agent(patch, "drain", "self._half = limit // 2", "self._half = 1 << 40")


def without_process_kill(patch: Patch) -> None:
    alter_agent(
        patch,
        "snippet",
        "            _kill(self.pid)\n            if self.interpreter:\n"
        "                self.cpu_s, self.max_rss = self.interpreter.reap(self.pid)\n"
        "            else:\n                _, _, usage = os.wait4(self.pid, 0)",
        "            if True:\n"
        "                usage = resource.getrusage(resource.RUSAGE_CHILDREN)",
    )


def with_everything(patch: Patch) -> None:
    """Nothing is taken away."""


@pytest.fixture
def stand(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator["Stand"]:
    with (
        host.surroundings(tmp_path_factory.mktemp("host")) as surroundings,
        pytest.MonkeyPatch.context() as patch,
    ):
        yield Stand(tmp_path_factory, request, surroundings, patch)


class Stand:
    """Opens a house without a defence, and lets a case of the table run in it."""

    def __init__(
        self,
        folders: pytest.TempPathFactory,
        request: pytest.FixtureRequest,
        surroundings: host.Surroundings,
        patch: Patch,
    ) -> None:
        self._folders, self._request = folders, request
        self._surroundings, self._patch = surroundings, patch

    @contextmanager
    def house(
        self, level: str, without: Callable[[Patch], None], **changes: Any
    ) -> Iterator[House]:
        without(self._patch)
        image = lambda: str(self._request.getfixturevalue("conformance_image"))  # noqa: E731
        with open_house(level, self._folders.mktemp("house"), image, **changes) as house:
            self._surroundings.furnish(house.folder / "data")
            yield house

    def run(self, house: House, file: str) -> tuple[Case, Verdict]:
        (case,) = (case for case in TABLE if case.file == file)
        given = self._surroundings.given(house.mount, confined=True) | {
            "flood": FLOOD,
            "targets": ["parent", "pid 1", "host's"],
            "search": "/",
        }
        language = "bash" if case.language == "bash" else "python"
        role = "short" if case.short else "hostile"
        return case.on(house.level), house.judge(read(case, given), language, role)


ONE_BY_ONE = [
    ("the snippet's seccomp filter", "local", without_filter, "47_vsock.py", "vsock\tdone"),
    ("no new privileges", "local", without_no_new_privileges, "44_setuid.py",
     "no new privileges\t0"),
    ("the pids limit", "local", without_pids_limit, "01_fork_bomb.py", "forks\t300 done"),
    ("the memory limit", "local", without_memory_limit, "03_heap_bomb.py", "MiB\t700"),
    ("the disk limit", "local", without_disk_limit, "07_fills_its_folder.py", "MiB\t200 done"),
    pytest.param(
        "no new privileges", "docker-fresh", without_no_new_privileges, "44_setuid.py",
        "capable\tuser same 000000000000000b 000000000000000b", marks=pytest.mark.docker,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("defence", "level", "without", "file", "told"), ONE_BY_ONE)
def test_a_case_fails_without(
    stand: Stand, defence: str, level: str, without: Callable[[Patch], None], file: str, told: str
) -> None:
    """What the table says of this case is not so once the defence is gone."""
    with stand.house(level, without) as house:
        case, verdict = stand.run(house, file)
        assert told in verdict.stdout.splitlines(), verdict
        with pytest.raises(AssertionError):
            case.check(verdict)


@pytest.mark.docker
@pytest.mark.parametrize(
    ("without", "expected"),
    [((without_filter,), "EPERM"), ((without_profile,), "EPERM"),
     ((without_filter, without_profile), "done")],
    ids=["profile alone", "filter alone", "neither"],
)  # fmt: skip
def test_the_containers_profile_and_the_filter_stand_for_each_other(
    stand: Stand, without: tuple[Callable[[Patch], None], ...], expected: str
) -> None:
    """In a container, keys are refused by either, and only without both they can be left."""

    def together(patch: Patch) -> None:
        for one in without:
            one(patch)

    with stand.house("docker-nested", together) as house:
        case, verdict = stand.run(house, "46_keyrings.py")
        assert f"session\t{expected}" in verdict.stdout, verdict
        if expected == "done":
            with pytest.raises(AssertionError):
                case.check(verdict)


def test_without_namespaces_objects_stay_on_the_host(stand: Stand) -> None:
    """Without an IPC namespace, System V objects outlive their snippet."""
    before = ipc_objects()
    with stand.house("local", without_ipc_namespace) as house:
        stand.run(house, "06_sysv_bomb.py")
        left = [name for name in host.state(house.folder) if name.startswith("System V")]
    for option, number in ipc_objects() - before:  # also those without a key
        subprocess.run(["ipcrm", option, number], check=True)
    assert len(left) == 3, left


def test_without_a_pid_namespace_nothing_runs(stand: Stand) -> None:
    """An init is pid 1 and its snippet pid 2, or no end is told of."""
    with (
        pytest.raises(BackendUnavailable, match="a first snippet failed"),
        stand.house("local", without_pid_namespace),
    ):
        pass


def test_without_a_mount_namespace_nothing_runs(stand: Stand) -> None:
    """Without one of its own a snippet has no view: it isn't run on what others see."""
    with (
        stand.house("local", without_mount_namespace) as house,
        pytest.raises(UnjudgedError, match="there is no folder"),
    ):
        house.judge("print(1)")


def test_without_a_uts_namespace_the_machines_name_is_seen(stand: Stand) -> None:
    """What a sandbox is called is all that it stands for."""
    for without, expected in ((with_everything, "mlbench"), (without_uts_namespace, os.uname()[1])):
        with stand.house("local", without) as house:
            verdict = house.judge("import os; print(os.uname().nodename)")
            assert verdict.stdout == f"{expected}\n", verdict


def test_without_a_user_namespace_snippets_share_the_agents(stand: Stand) -> None:
    """It is a second line: no case of the table fails without it alone."""
    for without, is_shared in ((with_everything, False), (without_user_namespace, True)):
        with stand.house("local", without) as house:
            verdict = house.judge("import os; print(os.readlink('/proc/self/ns/user'))")
            assert (verdict.stdout.strip() in user_namespaces()) == is_shared, verdict


def user_namespaces() -> set[str]:
    """Those of all processes on this machine."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            found.add(os.readlink(process / "ns/user"))
    return found


def ipc_objects() -> set[tuple[str, str]]:
    """What users that no account has own on this machine, as `ipcrm` names it."""
    found = set()
    for kind, option, owner in (("shm", "-m", 7), ("sem", "-s", 4), ("msg", "-q", 7)):
        for line in Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[owner]) >= FIRST_FREE_UID:
                found.add((option, fields[1]))
    return found


def test_without_the_overlay_the_next_snippet_is_not_innocent(stand: Stand) -> None:
    """Without an overlay a snippet writes to its repository itself, and the next one finds it."""
    with stand.house("local", without_overlay) as house:
        house.settle()
        outcome = house.live("open('README.md', 'a').write('hostile')", "python")
        with pytest.raises(AssertionError, match="stdout"):
            house.check_innocent(outcome)
        assert "hostile" in (house.folder / "data-repo" / "README.md").read_text()


def test_without_an_output_bound_there_is_no_verdict(stand: Stand) -> None:
    """Without a bound on what is kept, the answer is longer than any frame may be."""
    with (
        stand.house("local", without_output_bound) as house,
        pytest.raises(UnjudgedError, match="over the limit"),
    ):
        stand.run(house, "12_floods_stderr.py")


def sleepers(house: House) -> list[str]:
    return [name for name in host.processes_of(house.folder) if "sleep" in name]


def test_without_the_kill_a_survivor_lives_on(stand: Stand) -> None:
    """Without the kill of its init, what a snippet left running runs on after its verdict."""
    for without, expected in ((with_everything, 0), (without_process_kill, 2)):
        with stand.house("local", without) as house:
            _, verdict = stand.run(house, "20_nohup.sh")
            assert verdict.status == "passed"
            until = time.monotonic() + 10
            while len(left := sleepers(house)) != expected and time.monotonic() < until:
                time.sleep(0.05)  # some have been forked, and executed nothing yet
            assert len(left) == expected, left


def test_without_the_network_namespace_a_listener_is_reached(stand: Stand) -> None:
    """With the host's network a snippet reaches the host's listeners."""
    with stand.house("local", with_everything, network="bridge") as house:
        case, verdict = stand.run(house, "39_network.py")
        assert "tcp\tdone" in verdict.stdout, verdict
        with pytest.raises(AssertionError):
            case.check(verdict)
