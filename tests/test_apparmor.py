"""AppArmor: the profile that ships, and when a container is given it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from mlbench_exec.backends import apparmor
from mlbench_exec.backends.agent_sandbox import NestingRefused
from mlbench_exec.backends.docker import DockerBackend
from mlbench_exec.environments import Environment
from mlbench_exec.errors import BackendUnavailable, SandboxFailed
from mlbench_exec.sandbox import Limits

ENVIRONMENT = Environment(name="tiny", github_ids=(1,), repo="tiny", workdir="/r", image="i")
NOT_LOADED = (
    "Docker failed while starting: OCI runtime create failed: unable to apply apparmor profile: "
    "write /proc/self/attr/apparmor/exec: no such file or directory"
)
needs_parser = pytest.mark.skipif(
    shutil.which("apparmor_parser") is None and os.environ.get("MLBENCH_REQUIRE_DOCKER") != "1",
    reason="there is no apparmor_parser",
)


def parse(text: str) -> "subprocess.CompletedProcess[str]":
    """Compile a profile without loading it, which works where the kernel has no AppArmor."""
    command = ["apparmor_parser", "--skip-kernel-load", "--skip-cache", "--replace"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


@needs_parser
def test_the_profile_compiles() -> None:
    """What the one command pipes into `apparmor_parser` is a profile of our name."""
    text = subprocess.run(
        [sys.executable, "-m", "mlbench_exec.backends.apparmor"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert parse(text).returncode == 0, parse(text).stderr
    assert f"profile {apparmor.PROFILE} " in text
    assert parse(text.replace("  mount,", "  mount,,")).returncode != 0


@needs_parser
@pytest.mark.parametrize("rule", ["mount,", "umount,", "pivot_root,", "capability,"])
def test_the_profile_allows_what_the_agent_does(rule: str) -> None:
    """Mounts and the rest of what a sandbox within a container is made with."""
    assert f"  {rule}\n" in apparmor.profile_text()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["name=apparmor", "name=seccomp,profile=default"], True),
        (["name=seccomp,profile=builtin", "name=cgroupns"], False),
        (["apparmor"], True),
        (None, False),
    ],
)
def test_the_daemon_says_whether_it_has_apparmor(options: list[str] | None, expected: bool) -> None:
    """By the security options in the daemon's own account."""
    assert apparmor.is_in_force({"SecurityOptions": options}) is expected


class Host(DockerBackend):
    """A docker backend whose containers are made up: `refuses` says what goes wrong with one."""

    def __init__(self, refuses: Callable[[list[str]], Exception | None], has_apparmor: bool):
        super().__init__(environments=[ENVIRONMENT], limits=Limits())
        self._images = {"i": {"Id": "i"}}
        self._is_under_apparmor = has_apparmor
        self._apparmor = apparmor.PROFILE if has_apparmor else None
        self._refuses = refuses
        self.asked: list[str | None] = []

    async def _open_nested(self, environment: Environment, slot: int) -> Any:
        config = self._config(environment, slot, nested=True, user="0:0")
        options = config["HostConfig"]["SecurityOpt"]
        self.asked.append(next((o for o in options if o.startswith("apparmor=")), None))
        if (error := self._refuses(options)) is not None:
            raise error
        return Closable()

    def fresh_options(self) -> list[str]:
        config = self._config(ENVIRONMENT, 0, nested=False, user="0:0")
        return list(config["HostConfig"]["SecurityOpt"])


class Closable:
    async def aclose(self) -> None: ...


def nothing(options: list[str]) -> None:
    return None


def forbids_mounts(options: list[str]) -> Exception | None:
    """docker-default, on a host where ours isn't loaded."""
    if f"apparmor={apparmor.PROFILE}" in options:
        return SandboxFailed(NOT_LOADED)
    return NestingRefused("mount(tmpfs on /mnt): Permission denied")


@pytest.mark.asyncio
async def test_our_profile_is_used_where_it_is_loaded() -> None:
    """With AppArmor, a container is asked for under our profile, at the nested level."""
    host = Host(nothing, has_apparmor=True)
    await host._find_level()
    assert host.asked == [f"apparmor={apparmor.PROFILE}"]
    assert "nested" in host.level


@pytest.mark.asyncio
async def test_without_apparmor_no_profile_is_named() -> None:
    """A daemon without AppArmor is not asked for a profile."""
    host = Host(nothing, has_apparmor=False)
    await host._find_level()
    assert host.asked == [None]


@pytest.mark.asyncio
async def test_a_profile_that_is_not_loaded_costs_a_level_and_is_said() -> None:
    """Where ours isn't loaded and the host's forbids mounts: fresh containers, and the command."""
    host = Host(forbids_mounts, has_apparmor=True)
    await host._find_level()
    assert host.asked == [f"apparmor={apparmor.PROFILE}", None]
    assert "fresh container" in host.level
    assert apparmor.LOAD in host.level
    assert not [option for option in host.fresh_options() if "apparmor" in option]


@pytest.mark.asyncio
async def test_other_failures_are_not_taken_for_a_missing_profile() -> None:
    """A container that fails for another reason is not tried without the profile."""
    host = Host(lambda options: SandboxFailed("no space left on device"), has_apparmor=True)
    with pytest.raises(SandboxFailed, match="no space"):
        await host._find_level()
    assert set(host.asked) == {f"apparmor={apparmor.PROFILE}"}


def test_an_unknown_runtime_is_named() -> None:
    """A runtime that the daemon doesn't know is refused with those that it knows."""
    backend = DockerBackend(environments=[], limits=Limits(), runtime="runsc")
    backend._check_runtime({"Runtimes": {"runsc": {}, "runc": {}}})
    with pytest.raises(BackendUnavailable, match=r"runsc.*only.*runc.*daemon\.json"):
        backend._check_runtime({"Runtimes": {"runc": {}, "io.containerd.runc.v2": {}}})
