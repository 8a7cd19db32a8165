"""What an interpreter on this host needs to be visible: asked of the interpreter itself."""

import json
import os
import signal
import subprocess
from pathlib import Path

import anyio

from mlbench_exec.backends.agent_sandbox import SHORT_OF
from mlbench_exec.errors import BackendLost, EnvironmentUnusable, SandboxFailed

ASK = """
import json, os, sys
print(json.dumps([sys.executable, sys.prefix, sys.exec_prefix, sys.base_prefix,
                  sys.base_exec_prefix] + [p for p in sys.path if os.path.exists(p)]))
"""
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
CONDA_ROOTS = ("/opt/conda", "/opt/*conda*", "/opt/*forge*", "~/*conda*", "~/*forge*")
ASK_WITHIN_S = 60.0
ENDED = {signal.SIGKILL, signal.SIGTERM}  # which an interpreter doesn't do to itself


async def folders_of(python: str) -> tuple[str, ...]:
    """Folders that `python` starts and imports from, outermost only, system folders left out.

    Raises `EnvironmentUnusable` where it doesn't start, and `SandboxFailed` where somebody ended it
    or this machine had no room for it.
    """
    try:
        with anyio.fail_after(ASK_WITHIN_S):
            answer = await anyio.run_process([python, "-I", "-c", ASK], stderr=subprocess.PIPE)
        said = json.loads(answer.stdout)
    except (OSError, subprocess.CalledProcessError, TimeoutError, ValueError) as error:
        what = f"the interpreter {python}"
        if isinstance(error, OSError) and error.errno in SHORT_OF:
            raise BackendLost(f"{what} can't be started: {error}") from error
        if isinstance(error, subprocess.CalledProcessError) and -error.returncode in ENDED:
            raise SandboxFailed(f"{what} was ended by another process: {error}") from error
        raise EnvironmentUnusable(f"{what} doesn't start: {error}") from error
    links = await anyio.to_thread.run_sync(_links, python)
    return outermost([*links, *said])  # the links as files: what lies beside them isn't its own


def outermost(paths: list[str]) -> tuple[str, ...]:
    """The paths that lie in no other one and in no system folder, normalised, in order."""
    normal = dict.fromkeys(os.path.normpath(path) for path in paths)
    kept = [path for path in normal if not any(is_below(path, system) for system in SYSTEM)]
    return tuple(
        path
        for path in kept
        if path != "/" and not any(is_below(path, other) for other in kept if other != path)
    )


def is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def find_conda(name: str) -> str | None:
    """The conda installation that has an environment of this name."""
    executable = os.environ.get("CONDA_EXE")
    roots = [Path(executable).parent.parent] if executable else []
    for pattern in CONDA_ROOTS:
        folder = Path(pattern).expanduser()
        roots += sorted(folder.parent.glob(folder.name))
    for root in roots:
        if (root / "envs" / name).is_dir() and (root / "bin" / "activate").exists():
            return str(root)
    return None


def _links(path: str) -> list[str]:
    """The path and everything it points to, link by link."""
    seen = [path]
    while os.path.islink(seen[-1]) and len(seen) < 40:
        target = os.path.join(os.path.dirname(seen[-1]), os.readlink(seen[-1]))
        seen.append(os.path.normpath(target))
    return seen
