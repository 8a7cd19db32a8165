"""Cgroups that this process may make, version 1 or 2: the kernel's own limits for a sandbox."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from mlbench_exec.backends.identity import PREFIX, is_dead_name
from mlbench_exec.sandbox import Limits

HEADROOM_BYTES = 64 << 20  # the agent itself, and the kernel's bookkeeping
HEADROOM_PIDS = 16
ENGINE = "-engine"  # the leaf for this process itself, on version 2
GONE_WITHIN_S = 5.0
KILLED_WITHIN_S = 2.0


class Group(msgspec.Struct, frozen=True):
    """One sandbox's cgroup: a folder for each controller (the same one on version 2)."""

    folders: Mapping[str, Path]

    def add(self, pid: int) -> None:
        for folder in set(self.folders.values()):
            (folder / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        """Remove it once its processes are gone; blocks for some milliseconds."""
        until = time.monotonic() + GONE_WITHIN_S
        for folder in set(self.folders.values()):
            while folder.is_dir():
                try:
                    folder.rmdir()
                except OSError:
                    if time.monotonic() > until:
                        break
                    time.sleep(0.01)


class Cgroups:
    """The parent of all groups of one engine, or nothing where none may be made."""

    def __init__(self, name: str, *, parents: Mapping[str, Path], version: int) -> None:
        self.version = version
        self._name = name
        self._parents = parents

    def __repr__(self) -> str:
        return f"<Cgroups v{self.version} {self._name}>"

    def make(
        self,
        slot: str,
        limits: Limits,
        cpus: Iterable[int] | None = None,
        *,
        preload_bytes: int = 0,
    ) -> Group:
        """A group for one sandbox, whose warm interpreters get their memory on top.

        `cpus` are the cores it keeps to, where cpusets can be made.
        """
        folders: dict[str, Path] = {}
        for controller, parent in self._parents.items():
            folder = parent / self._name / slot
            folder.mkdir(parents=True, exist_ok=True)
            if controller == "cpuset":
                for group_folder in (folder.parent, folder):
                    _fill_cpuset(group_folder)
            folders[controller] = folder
        group = Group(folders)
        for path, value in self._settings(group, limits, cpus, preload_bytes):
            path.write_text(str(value))
        return group

    def _settings(
        self, group: Group, limits: Limits, cpus: Iterable[int] | None, preload_bytes: int
    ) -> list[tuple[Path, int | str]]:
        memory, pids = group.folders["memory"], group.folders["pids"]
        settings: list[tuple[Path, int | str]] = []
        if cpus is not None:
            cpuset = group.folders.get("cpuset", memory)
            settings.append((cpuset / "cpuset.cpus", ",".join(str(cpu) for cpu in cpus)))
        if limits.pids is not None:
            settings.append((pids / "pids.max", limits.pids + HEADROOM_PIDS))
        if limits.memory_bytes is not None:
            total = limits.memory_bytes + limits.disk_bytes + HEADROOM_BYTES + preload_bytes
            if self.version == 2:
                settings += [(memory / "memory.max", total), (memory / "memory.swap.max", 0)]
            else:
                settings.append((memory / "memory.limit_in_bytes", total))
                settings.append((memory / "memory.memsw.limit_in_bytes", total))
        return [(path, value) for path, value in settings if path.exists()]

    def close(self) -> None:
        """Remove what this engine made, and put its process back where it was."""
        for parent in set(self._parents.values()):
            _remove_group(parent / self._name)
            _move_back(parent, parent / (self._name + ENGINE))


def find(name: str) -> Cgroups | None:
    """Where this process can make groups with memory and pids limits, tried for real."""
    for version, parents in _with_and_without_extras(_candidates(_own_paths(), _mounts())):
        _remove_leftovers(set(parents.values()))
        cgroups = Cgroups(name, parents=parents, version=version)
        try:
            if version == 2:
                _enable(parents["memory"], name)
            group = cgroups.make("probe", Limits(memory_bytes=1 << 30, pids=64))
            usable = _has_limits(group, version)
            group.remove()
        except OSError:
            cgroups.close()
            continue
        if usable:
            return cgroups
        cgroups.close()
    return None


def _with_and_without_extras(
    candidates: list[tuple[int, dict[str, Path]]],
) -> Iterable[tuple[int, dict[str, Path]]]:
    """Both are done without if need be: cpusets, and the count of CPU time on version 1."""
    for version, parents in candidates:
        tried: list[dict[str, Path]] = []
        for left_out in ((), ("cpuset",), ("cpuset", "cpuacct")):
            some = {c: path for c, path in parents.items() if c not in left_out}
            if some not in tried:
                tried.append(some)
                yield version, some


def _fill_cpuset(folder: Path) -> None:
    """On version 1 a new cpuset is empty, and takes no process before it has its parent's."""
    for name in ("cpuset.mems", "cpuset.cpus"):
        if not (folder / name).read_text().strip():
            (folder / name).write_text((folder.parent / name).read_text())


def _has_limits(group: Group, version: int) -> bool:
    memory = "memory.max" if version == 2 else "memory.limit_in_bytes"
    return (group.folders["memory"] / memory).exists() and (
        group.folders["pids"] / "pids.max"
    ).exists()


def _remove_leftovers(parents: set[Path]) -> None:
    """Remove the groups of engines that were killed, with whatever still runs in them.

    An agent that hears of its engine's end goes by itself; one that hangs does not.
    """
    for parent in parents:
        for folder in parent.glob(f"{PREFIX}*"):
            if is_dead_name(folder.name):
                _kill_all(folder)
                _remove_group(folder)


def _kill_all(folder: Path) -> None:
    """Kill every process in a group and those below it; wait a moment until they are gone."""
    until = time.monotonic() + KILLED_WITHIN_S
    while left := {pid for path in (folder, *folder.glob("*/")) for pid in _pids_of(path)}:
        for pid in left:
            with contextlib.suppress(OSError):  # gone, or not ours
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > until:
            return
        time.sleep(0.01)


def _pids_of(folder: Path) -> list[int]:
    try:
        return _pids(folder)
    except OSError:  # removed meanwhile, by another engine's start
        return []


def _remove_group(folder: Path) -> None:
    """Remove a group and those in it that hold no process any more."""
    for path in (*folder.glob("*/"), folder):
        with contextlib.suppress(OSError):
            path.rmdir()


def _candidates(
    own: Mapping[str, str], mounts: Mapping[str, Path]
) -> list[tuple[int, dict[str, Path]]]:
    found: list[tuple[int, dict[str, Path]]] = []
    if {"memory", "pids"} <= mounts.keys() and {"memory", "pids"} <= own.keys():
        controllers = {"memory", "pids", "cpuset", "cpuacct"} & mounts.keys() & own.keys()
        parents = {c: mounts[c] / own[c].lstrip("/") for c in sorted(controllers)}
        found.append((1, parents))
    if "" in mounts and "" in own:
        for folder in (mounts[""] / own[""].lstrip("/"), mounts[""]):
            found.append((2, {"memory": folder, "pids": folder}))
    return found


def _enable(folder: Path, name: str) -> None:
    """Let children of a version 2 cgroup have limits; it must hold no process itself."""
    children = folder / "cgroup.subtree_control"
    if {"memory", "pids"} <= set(children.read_text().split()):
        (folder / name).mkdir(exist_ok=True)
    else:
        own = os.getpid()
        if folder.parent != Path("/sys/fs") and set(_pids(folder)) - {own}:
            raise OSError(f"{folder} holds other processes")
        leaf = folder / (name + ENGINE)
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text(str(own))
        children.write_text("+memory +pids")
        (folder / name).mkdir(exist_ok=True)
    for where in (folder, folder / name):
        with contextlib.suppress(OSError):  # not everywhere: cores are then kept to by affinity
            (where / "cgroup.subtree_control").write_text("+cpuset")
    (folder / name / "cgroup.subtree_control").write_text("+memory +pids")


def _move_back(folder: Path, leaf: Path) -> None:
    """Undo `_enable` where it had to move this process: limits off, then back, then the leaf."""
    if not leaf.is_dir():
        return
    with contextlib.suppress(OSError):
        (folder / "cgroup.subtree_control").write_text("-memory -pids")
        with contextlib.suppress(OSError):
            (folder / "cgroup.subtree_control").write_text("-cpuset")
        (folder / "cgroup.procs").write_text(str(os.getpid()))
        leaf.rmdir()


def _pids(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "cgroup.procs").read_text().split()]


def _own_paths() -> dict[str, str]:
    """This process's path in each hierarchy, by controller; version 2 under ""."""
    paths: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def _mounts() -> dict[str, Path]:
    """Where each controller's hierarchy is mounted; version 2 under ""."""
    mounts: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fstype, _, options = after.split(" ", 2)
        point = Path(before.split(" ")[4])
        if fstype == "cgroup2":
            mounts.setdefault("", point)
        elif fstype == "cgroup":
            for option in options.split(","):
                if option in {"memory", "pids", "cpuset", "cpuacct"}:
                    mounts.setdefault(option, point)
    return mounts
