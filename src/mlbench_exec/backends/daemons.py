"""Daemons: what answers at Docker's socket, by name, and whether we work with it. Pure."""

from collections.abc import Mapping
from typing import Any, Literal

from mlbench_exec.sandbox import Limits

Kind = Literal["Docker", "rootless Docker", "Docker Desktop", "Podman", "Windows containers"]

API_FLOOR = (1, 41)  # Docker 20.10


def kind_of(version: Mapping[str, Any], info: Mapping[str, Any]) -> Kind:
    """By what it says of itself, as its API gives it at /version and /info."""
    components = version.get("Components") or ()
    if any("podman" in str(one.get("Name", "")).lower() for one in components):
        return "Podman"
    if info.get("OSType", "linux") != "linux":
        return "Windows containers"
    if "docker desktop" in str(info.get("OperatingSystem", "")).lower():
        return "Docker Desktop"
    options = info.get("SecurityOptions") or ()
    if any("name=rootless" in str(one).split(",") for one in options):
        return "rootless Docker"
    return "Docker"


def refusal(
    version: Mapping[str, Any], info: Mapping[str, Any], limits: Limits | None = None
) -> str | None:
    """Why it isn't worked with, and what would help; None: it is.

    Limits that it can't hold refuse it: better than to pretend.
    """
    kind = kind_of(version, info)
    if kind == "Podman":
        return "Podman answers, which isn't supported: point DOCKER_HOST at a Docker daemon"
    if kind == "Windows containers":
        return "the daemon runs Windows containers: switch it to Linux containers"
    api = str(version.get("ApiVersion", "0"))
    if _numbers(api) < API_FLOOR:
        return (
            f"Docker {version.get('Version', '?')} speaks API {api}, and 1.41 is needed: "
            "install Docker 20.10 or later"
        )
    limits = limits or Limits()
    lost = [
        name
        for name, asked, key in (
            ("memory", limits.memory_bytes, "MemoryLimit"),
            ("processes", limits.pids, "PidsLimit"),
        )
        if asked is not None and info.get(key) is False
    ]
    if lost:
        return (
            f"{kind} can't limit {' and '.join(lost)} here (cgroup driver "
            f"{info.get('CgroupDriver', '?')}): a rootless daemon needs cgroup v2 and delegation, "
            "see https://docs.docker.com/engine/security/rootless/"
        )
    return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isascii() and part.isdigit())
