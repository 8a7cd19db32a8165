"""Environments inside the sandbox: their folders, interpreters and variables, prepared once."""

from __future__ import annotations

import os

from mlbench_exec.agent import base, snippet, view
from mlbench_exec.agent.program import Program, Unusable
from mlbench_exec.agent.world import World

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from typing import Any

ACTIVATION = """
activate=$(command -v activate)
for root in "$CONDA_ROOT" "${CONDA_EXE%/bin/conda}" /opt/conda /opt/*conda* /opt/*forge* \\
    "$HOME"/*conda* "$HOME"/*forge* /root/*conda* /usr/local/*conda*; do
    [ -n "$activate" ] && break
    [ -n "$root" ] && [ -r "$root/bin/activate" ] && activate=$root/bin/activate
done
if [ -z "$activate" ]; then echo "no conda was found here" >&2; exit 1; fi
source "$activate" "$MLBENCH_CONDA_ENV" >&2 && exec env -0
"""
ACTIVATION_LIMITS: dict[str, Any] = {
    "memory": None,
    "cpus": None,
    "pids": None,
    "disk": 64 << 20,
    "files": 65536,
    "output": 1 << 20,
    "clock": "fair",
    "time": 60.0,
    "cap": 600.0,
}
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOT_KEPT = {"_", "SHLVL", "PWD", "OLDPWD", "MLBENCH_CONDA_ENV"}


def prepare(world: World, request: dict[str, Any]) -> Program:
    """The program to run; an environment's own preparations are made once and kept."""
    environment = request["environment"]
    name = environment["name"]
    if name not in world.prepared:
        try:
            world.prepared[name] = _prepare_environment(world, environment)
        except Unusable as error:
            world.prepared[name] = str(error)
    prepared = world.prepared[name]
    if isinstance(prepared, str):
        raise Unusable(prepared)
    variables, mended = prepared
    workdir = environment["workdir"]
    code = request["code"]
    cwd = os.path.normpath(os.path.join(workdir, request["path"].lstrip("/")))
    if not base.is_below(cwd, os.path.normpath(workdir)):
        raise Unusable("the path %s leads out of %s" % (request["path"], workdir))
    return Program(
        request["language"], code, cwd, workdir, variables, environment["python"], mended
    )


def _prepare_environment(
    world: World, environment: dict[str, Any]
) -> tuple[dict[str, str], str | None]:
    workdir = environment["workdir"]
    found = world.base.find(workdir) if world.nested else workdir
    if not os.path.isdir(found):
        raise Unusable("there is no folder %s in the sandbox" % workdir)
    mended = view.mend(world.base, workdir, world.uid) if world.nested else None
    variables = _variables(world, environment)
    if environment["conda_env"]:
        variables = _activate(world, environment["conda_env"], workdir, variables, mended)
        variables.update(environment["env"])
    return variables, mended


def _variables(world: World, environment: dict[str, Any]) -> dict[str, str]:
    variables = dict(os.environ) if world.base.container else dict(world.variables)
    variables.pop("PWD", None)
    variables.setdefault("PATH", SYSTEM_PATH)
    variables.setdefault("LANG", "C.UTF-8")
    variables.update(HOME=world.base.home, USER=world.base.user, LOGNAME=world.base.user)
    python = environment["python"]
    if python:
        found = world.base.find(python) if world.nested else python
        if not os.path.lexists(found):
            raise Unusable("there is no interpreter %s in the sandbox" % python)
        folders = [os.path.dirname(python), variables["PATH"]]
        if not os.path.lexists(os.path.join(os.path.dirname(found), "python")):
            folders.insert(0, base.make_shim(environment["name"], python))
        variables["PATH"] = ":".join(folders)
    variables.update(environment["env"])
    return variables


def _activate(
    world: World, name: str, workdir: str, variables: dict[str, str], mended: str | None
) -> dict[str, str]:
    """The variables that `source activate NAME` leaves; run once, as a snippet of its own."""
    variables = dict(variables, MLBENCH_CONDA_ENV=name)
    program = Program("bash", ACTIVATION.encode(), workdir, workdir, variables, None, mended)
    observation, out, _ = snippet.run(world, program, ACTIVATION_LIMITS)
    if observation["exit_code"] != 0:
        said = observation["stderr"].strip()[-500:] or "exit code %s" % observation["exit_code"]
        raise Unusable("conda environment %s can't be activated: %s" % (name, said))
    pairs = (item.split(b"=", 1) for item in out.raw().split(b"\0") if b"=" in item)
    kept = {os.fsdecode(key): os.fsdecode(value) for key, value in pairs}
    return {key: value for key, value in kept.items() if key not in NOT_KEPT}
