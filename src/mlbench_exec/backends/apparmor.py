"""AppArmor: the profile for hosts whose own one for containers forbids a sandbox within them."""

import sys
from collections.abc import Mapping
from importlib import resources
from typing import Any

PROFILE = "mlbench-exec"
LOAD = "python -m mlbench_exec.backends.apparmor | sudo apparmor_parser --replace"


def profile_text() -> str:
    """The profile, as `apparmor_parser` reads it. Blocks."""
    file = resources.files("mlbench_exec.backends").joinpath("docker_apparmor")
    return file.read_text(encoding="utf-8")


def is_in_force(info: Mapping[str, Any]) -> bool:
    """Whether a Docker daemon, by what it says of itself, confines containers with AppArmor."""
    options = info.get("SecurityOptions") or []
    return any(option.split(",")[0] in {"apparmor", "name=apparmor"} for option in options)


def is_missing(message: str) -> bool:
    """Whether a container didn't start because the profile isn't loaded on the daemon's host."""
    return "apparmor" in message.lower()


def main() -> None:
    """Write the profile to stdout."""
    sys.stdout.write(profile_text())


if __name__ == "__main__":
    main()
