"""Setting up: from a plain process to pid 1 of the sandbox's own namespaces."""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import resource
import stat
import struct

from mlbench_exec.agent import base, frames, kernel, pid1, snippet, steps, surroundings
from mlbench_exec.agent.confinement import (
    NAMESPACES,
    capabilities_dropped,
    entered,
    peak_forgotten,
    pid_namespace,
    user_mapped,
)
from mlbench_exec.agent.environment import ACTIVATION_LIMITS, SYSTEM_PATH
from mlbench_exec.agent.kernel import signal
from mlbench_exec.agent.program import Program, Start, Unusable
from mlbench_exec.agent.snippet import Broken
from mlbench_exec.agent.world import World

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from typing import Any

PROBE_SCRIPT = b"rmdir d && mkdir d && echo 1 >d/file && [ -r /proc/self/stat ]"
PROBE_LIMITS = dict(ACTIVATION_LIMITS, time=30.0, cap=60.0)


def set_up(spec: dict[str, Any]) -> World:
    """Enter the sandbox's own namespaces and build its base view; return the World."""
    world = World(spec, control_fd=frames.IN)
    world.owner = _owner(spec)
    if spec["cpu_list"]:
        os.sched_setaffinity(0, spec["cpu_list"])
    if world.nested:
        _enter_namespaces(world, spec)
        world.inner_uid = spec["inner_uid"] if spec["inner_uid"] is not None else world.uid
        world.inner_gid = spec["inner_uid"] if spec["inner_uid"] is not None else world.gid
        world.nproc = spec["nproc"] and _nproc_holds(world)
        if spec["nproc"] and not world.nproc:
            raise OSError("RLIMIT_NPROC has no effect on a snippet here")
        world.start, world.forker = Start(world), pid1.Forker()
        _try_out(world)
        world.memory_bytes = world.counters.memory_bytes()
    else:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # a snippet of the same user can't look in
        _fill(spec["copies"])
        _take_over([folder for folder in spec["workdirs"] if os.path.isdir(folder)])
        world.base.home, world.base.user = _fresh_home(), base.user_name(world.base)
        steps.do(capabilities_dropped(bounding=False))
        world.start = Start(world)
        world.memory_bytes = world.counters.memory_bytes()
    return world


def _owner(spec: dict[str, Any]) -> list[int] | None:
    """Who owns the first workdir, asked while all user ids can still be told apart."""
    for workdir in spec["workdirs"][:1]:
        entries = [entry for entry in spec["stash"] if base.is_below(workdir, entry["target"])]
        for entry in sorted(entries, key=lambda entry: len(entry["target"]))[-1:]:
            workdir = entry["source"] + workdir[len(entry["target"]) :]
        try:
            status = os.stat(workdir)
        except OSError:
            continue  # a missing folder is said when a snippet wants it
        return [status.st_uid, status.st_gid]
    return None


def _enter_namespaces(world: World, spec: dict[str, Any]) -> None:
    namespaces = kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID | sum(NAMESPACES.values())
    if spec["own_network"]:
        namespaces |= kernel.CLONE_NEWNET
    if spec["uid"] is None:
        kernel.unshare(namespaces)
        steps.do(user_mapped(world.uid, world.uid, world.gid, world.gid))
        base.build(world.base)
    else:
        # Root of the host: build with its rights, then become a user that owns nothing.
        uid = world.uid = world.gid = spec["uid"]
        kernel.unshare(kernel.CLONE_NEWNS)
        world.base.uid = uid
        base.build(world.base, idmap=base.idmapper(uid))
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # or its own uid_map would belong to root
        kernel.unshare(namespaces)
        steps.do(user_mapped(uid, uid, uid, uid))
    if spec["own_network"]:
        _bring_up_loopback()
    world.pids_in = _become_pid_1()
    if spec["own_network"]:
        _forget_closed_connections()
    world.own_pids = {1}
    world.own_pid_ns = os.open("/proc/self/ns/pid", os.O_RDONLY)
    world.before_fork = pid_namespace(world.own_pid_ns) + peak_forgotten()
    world.homeward = entered(surroundings.namespaces())


def _become_pid_1() -> int | None:
    """Fork into the new pid namespace; the parent only waits, and dies with its child.

    Return a descriptor of a /proc that has its processes and nothing else (Linux 5.8 on).
    """
    child = os.fork()
    if child:
        for fd in (frames.IN, frames.OUT):
            os.close(fd)
        _, status = os.waitpid(child, 0)
        os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    pids_in = None
    try:
        steps.do(steps.Steps(steps.mounting("proc", "/proc", flags, "subset=pid")))
        pids_in = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        kernel.umount("/proc")
    except OSError:
        pass  # it would only be sooner listed
    steps.do(steps.Steps(steps.mounting("proc", "/proc", flags)))
    return pids_in


def _forget_closed_connections() -> None:
    """No port stays taken after a snippet that listened on it; needs a network of one's own."""
    try:
        with open("/proc/sys/net/ipv4/tcp_max_tw_buckets", "w") as file:
            file.write("0")
    except OSError:
        pass


def _bring_up_loopback() -> None:
    get, put, up = 0x8913, 0x8914, 1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
    probe = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    request = struct.pack("16sh14x", b"lo", 0)
    flags = struct.unpack("16sh14x", fcntl.ioctl(probe.fileno(), get, request))[1]
    fcntl.ioctl(probe.fileno(), put, struct.pack("16sh14x", b"lo", flags | up))
    probe.close()


def _nproc_holds(world: World) -> bool:
    """Whether RLIMIT_NPROC stops a fork in a snippet's own user namespace (kernel 5.14 on)."""
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            kernel.unshare(kernel.CLONE_NEWUSER)
            steps.do(user_mapped(world.inner_uid, world.uid, world.inner_gid, world.gid))
            steps.do(capabilities_dropped(bounding=True))
            resource.setrlimit(resource.RLIMIT_NPROC, (3, 3))
            for _ in range(4):
                if os.fork() == 0:
                    signal.pause()
                os.write(write_fd, b"+")
        except BlockingIOError:
            os.write(write_fd, b"-")
        finally:
            os._exit(0)
    os.close(write_fd)
    os.waitpid(child, 0)
    seen = os.read(read_fd, 16)
    os.close(read_fd)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    _reap()
    return seen == b"++-"


def _reap() -> None:
    """Pid 1 inherits what the probe left."""
    while True:
        try:
            os.wait4(-1, 0)
        except ChildProcessError:
            return


def _try_out(world: World) -> None:
    """Run one snippet that needs all of a sandbox; OSError says what doesn't work here.

    Replacing a folder fails where tmpfs has no user extended attributes (before Linux 6.6).
    """
    program = Program(
        "bash", PROBE_SCRIPT, base.PROBE, base.PROBE, {"PATH": SYSTEM_PATH}, None, None
    )
    try:
        observation, _, _ = snippet.run(world, program, PROBE_LIMITS)
    except Unusable:
        return  # no bash in this image: its rows will say so
    except Broken as error:
        raise OSError(str(error)) from None
    if observation["exit_code"] != 0:
        raise OSError("a first snippet failed in the sandbox: %s" % observation["stderr"].strip())


def _fill(copies: list[list[str]]) -> None:
    """Fresh level: copy what lies in a read-only mount to where a snippet may write it."""
    if not copies:
        return
    import shutil  # large

    for source, target in copies:
        for folder, folders, files in os.walk(source):
            twin = os.path.normpath(os.path.join(target, os.path.relpath(folder, source)))
            os.makedirs(twin, exist_ok=True)
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            for name in files + links:
                shutil.copy2(
                    os.path.join(folder, name), os.path.join(twin, name), follow_symlinks=False
                )
            shutil.copystat(folder, twin)


def _take_over(roots: list[str]) -> None:
    """Fresh level: make everything below the folders the snippet's own, while we still can."""
    for root in roots:
        _make_own(root)
        for folder, names, files in os.walk(root):
            names[:] = [name for name in names if not os.path.ismount(os.path.join(folder, name))]
            for name in names + files:
                _make_own(os.path.join(folder, name))


def _make_own(path: str) -> None:
    status, uid = os.lstat(path), os.getuid()
    kind, mode = stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode)
    try:
        if status.st_uid != uid:
            os.lchown(path, uid, os.getgid())
        if kind == stat.S_IFDIR and mode & 0o700 != 0o700:
            os.chmod(path, mode | 0o700)
        elif kind == stat.S_IFREG and status.st_uid != uid:
            os.chmod(path, mode | 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:  # a file that is a mount stays as it is
            raise


def _fresh_home() -> str:
    home = os.environ.get("HOME") or "/root"
    if home == "/" or not os.path.isdir(home) or not os.access(home, os.W_OK):
        home = "/tmp/home"
        os.makedirs(home, exist_ok=True)
    return home
