"""Doctor: findings from literal facts, and the command on this very machine."""

import json
import os
import shutil
import subprocess
import sysconfig
from typing import Any

import msgspec
import pytest

from mlbench_exec.backends.apparmor import LOAD
from mlbench_exec.backends.daemons import kind_of, refusal
from mlbench_exec.doctor.checks import Finding, exit_code, findings
from mlbench_exec.doctor.facts import Daemon, Disk, Facts, Host, Image, Try
from mlbench_exec.sandbox import Limits

EXECUTABLE = sysconfig.get_path("scripts") + "/mlbench-exec"
VERSION = {"Version": "20.10.24", "ApiVersion": "1.41", "Components": [{"Name": "Engine"}]}
INFO = {
    "OSType": "linux",
    "OperatingSystem": "Debian GNU/Linux 12",
    "SecurityOptions": ["name=seccomp,profile=default"],
    "MemoryLimit": True,
    "SwapLimit": True,
    "PidsLimit": True,
    "CgroupDriver": "systemd",
}
PODMAN = {"Version": "5.2", "ApiVersion": "1.41", "Components": [{"Name": "Podman Engine"}]}
ROOTLESS = ["name=seccomp,profile=builtin", "name=rootless", "name=cgroupns"]
APPARMOR = ["name=apparmor", "name=seccomp,profile=default"]
FINE = Facts(
    daemon=Daemon(version=VERSION, info=INFO),
    images=(Image(name="ml-bench", environments=("a", "b"), size=20 << 30),),
    weights_folder="/weights",
    weights_here=3,
    weights_known=3,
    gpus=("0: H100, 80 GiB",),
    disks=(Disk(path="/", use="runs", free=100 << 30),),
    sandboxes=4,
    tries=(
        Try(backend="local", level="nested namespaces on this host", seconds=0.3),
        Try(backend="docker", level="Docker, nested namespaces in warm containers", seconds=0.9),
    ),
)


def changed(base: Facts = FINE, **changes: Any) -> Facts:
    return msgspec.structs.replace(base, **changes)


def about(facts: Facts, name: str) -> list[Finding]:
    return [one for one in findings(facts) if one.about == name]


def docker(version: dict[str, Any] | None = None, **info: Any) -> Facts:
    return changed(daemon=Daemon(version=version or VERSION, info={**INFO, **info}))


def test_a_machine_where_all_is_well_has_nothing_to_mend() -> None:
    """Every finding is ok, none has a command, and the exit code is 0."""
    assert {one.state for one in findings(FINE)} == {"ok"}
    assert not [one for one in findings(FINE) if one.mend]
    assert exit_code(FINE) == 0


@pytest.mark.parametrize(
    ("facts", "name", "state", "text", "mend"),
    [
        (changed(host=Host(system="Darwin")), "kernel", "bad", "needs Linux", "--backend docker"),
        (changed(host=Host(kernel="5.15.0-91")), "kernel", "bad", "need 6.6", "6.6 or later"),
        (changed(host=Host(kernel="odd")), "kernel", "bad", "need 6.6", "6.6 or later"),
        (
            changed(host=Host(sysctls={"user.max_user_namespaces": 0}, uid=0)),
            "user namespaces",
            "bad",
            "user.max_user_namespaces forbids",
            "sudo sysctl -w user.max_user_namespaces=10000",
        ),
        (
            changed(host=Host(sysctls={"kernel.unprivileged_userns_clone": 0})),
            "user namespaces",
            "bad",
            "kernel.unprivileged_userns_clone forbids",
            "sudo sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        (
            changed(host=Host(sysctls={"kernel.apparmor_restrict_unprivileged_userns": 1})),
            "user namespaces",
            "bad",
            "restrict_unprivileged_userns forbids",
            "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (
            changed(docker(SecurityOptions=APPARMOR), tries=()),
            "AppArmor",
            "note",
            "one fresh container a snippet",
            LOAD,
        ),
        (changed(host=Host(selinux="enforcing")), "SELinux", "note", "labelled", "chcon -Rt"),
        (changed(host=Host(own_cgroups=False)), "cgroups", "note", "rlimit", "Delegate=yes"),
        (
            changed(daemon=Daemon(error="no such file")),
            "Docker",
            "note",
            "no daemon answers",
            "systemctl start docker",
        ),
        (docker(version=PODMAN), "Docker", "bad", "Podman answers", "DOCKER_HOST"),
        (docker(OSType="windows"), "Docker", "bad", "Windows containers", "Linux containers"),
        (
            docker(version={**VERSION, "ApiVersion": "1.40", "Version": "19.03"}),
            "Docker",
            "bad",
            "Docker 19.03 speaks API 1.40",
            "20.10 or later",
        ),
        (
            docker(SecurityOptions=ROOTLESS, MemoryLimit=False, CgroupDriver="none"),
            "Docker",
            "bad",
            "can't limit memory",
            "needs cgroup v2",
        ),
        (
            changed(images=(Image(name="ml-bench", environments=("a",)),)),
            "images",
            "note",
            "is not here; for a",
            "pull",
        ),
        (changed(weights_here=1), "weights", "note", "1 of 3", "mlbench-exec weights pull"),
        (
            changed(disks=(Disk(path="/", use="runs", free=1 << 30),)),
            "disk",
            "note",
            "little",
            "make room",
        ),
        (changed(sandboxes=8), "memory", "note", "more than there is", "--memory 4g"),
    ],
)
def test_what_is_wrong_is_named_with_what_mends_it(
    facts: Facts, name: str, state: str, text: str, mend: str
) -> None:
    """One finding for each thing, and a command or a step in it."""
    (found,) = [one for one in about(facts, name) if one.state != "ok"]
    assert found.state == state
    assert text in found.text
    assert found.mend is not None
    assert mend in found.mend


def test_settings_that_dont_bind_root_are_not_held_against_it() -> None:
    """Of the three, only a maximum of none does."""
    sysctls = {
        "user.max_user_namespaces": 1,
        "kernel.unprivileged_userns_clone": 0,
        "kernel.apparmor_restrict_unprivileged_userns": 1,
    }
    (found,) = about(changed(host=Host(sysctls=sysctls, uid=0)), "user namespaces")
    assert found.state == "ok"


def test_apparmor_is_fine_where_warm_containers_nest_all_the_same() -> None:
    """The try says so, not the name of a profile."""
    (found,) = about(docker(SecurityOptions=APPARMOR), "AppArmor")
    assert (found.state, found.text) == ("ok", "lets warm containers nest")


@pytest.mark.parametrize(
    ("version", "info", "kind"),
    [
        (VERSION, INFO, "Docker"),
        (PODMAN, {}, "Podman"),
        (VERSION, {**INFO, "OperatingSystem": "Docker Desktop"}, "Docker Desktop"),
        (VERSION, {**INFO, "SecurityOptions": ROOTLESS}, "rootless Docker"),
        (VERSION, {**INFO, "OSType": "windows"}, "Windows containers"),
    ],
)
def test_daemons_are_known_by_name(
    version: dict[str, Any], info: dict[str, Any], kind: str
) -> None:
    """By what they say of themselves."""
    assert kind_of(version, info) == kind


def test_limits_that_a_daemon_cant_hold_refuse_it_only_if_they_are_asked_for() -> None:
    """A run without limits may use it."""
    info = {**INFO, "PidsLimit": False, "MemoryLimit": False}
    assert "memory and processes" in str(refusal(VERSION, info, Limits()))
    assert refusal(VERSION, info, Limits(memory_bytes=None, pids=None)) is None
    assert refusal({**VERSION, "ApiVersion": "1.100"}, INFO) is None


def test_the_exit_code_asks_for_one_backend_that_ran_a_program() -> None:
    """A backend that starts, with nothing to run a program in, is none."""
    failed = Try(backend="local", problem="no")
    untried = Try(backend="docker", problem="no image", was_tried=False)
    assert exit_code(changed(tries=(failed, Try(backend="docker")))) == 0
    assert exit_code(changed(tries=(failed, untried))) == 3
    assert exit_code(changed(tries=())) == 3


# On this machine.


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **env}, check=False, timeout=90
    )


@pytest.mark.slow
def test_it_runs_a_program_here_without_docker() -> None:
    """As JSON too: facts, findings and the exit code."""
    result = run(EXECUTABLE, "doctor", "--json", DOCKER_HOST="unix:///nowhere.sock")
    shown = json.loads(result.stdout)
    assert result.returncode == shown["exit_code"] == 0, result.stderr
    states = {one["about"]: one["state"] for one in shown["findings"]}
    assert states["backend local"] == "ok"
    assert states["Docker"] == "note"


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root")
def test_where_user_namespaces_are_forbidden_no_backend_starts() -> None:
    """Really forbidden, by the kernel's own setting: 3, and the command that mends it."""
    forbid = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$0" doctor --json'
    result = run(
        *("unshare", "--user", "--map-root-user", "bash", "-c", forbid, EXECUTABLE),
        DOCKER_HOST="unix:///nowhere.sock",
    )
    shown = json.loads(result.stdout)
    assert result.returncode == shown["exit_code"] == 3
    found = {one["about"]: one for one in shown["findings"]}
    assert found["backend local"]["state"] == "bad"
    assert found["user namespaces"]["mend"] == "sudo sysctl -w user.max_user_namespaces=10000"


@pytest.mark.slow
@pytest.mark.docker
def test_it_runs_a_program_in_a_container(conformance_image: str, tmp_path: Any) -> None:
    """In an environment whose image is here; the level in force is said."""
    (tmp_path / "environments.toml").write_text(
        '[environments.tiny]\ngithub_ids = [1]\nworkdir = "/repos/tiny"\n'
        f'python = "/usr/bin/python3"\nimage = "{conformance_image}"\n'
    )
    file = str(tmp_path / "environments.toml")
    result = run(EXECUTABLE, "doctor", "--environments", file, "--json")
    found = {one["about"]: one for one in json.loads(result.stdout)["findings"]}
    assert found["backend docker"]["state"] == "ok", found["backend docker"]
    assert "namespaces in warm containers" in found["backend docker"]["text"]
    assert conformance_image in found["images"]["text"] + str(json.loads(result.stdout)["facts"])
