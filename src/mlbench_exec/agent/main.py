"""The agent's loop: say hello, set up the sandbox once, then run snippet after snippet."""

import base64
import fcntl
import os
import resource
import shutil
import signal
import socket
import struct
import sys

from mlbench_exec.agent import base, frames, kernel, snippet, view
from mlbench_exec.agent.meter import Counters, own_cgroups
from mlbench_exec.agent.snippet import Broken, Program, Unusable

IN, OUT = 0, 1
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
ACTIVATION_LIMITS = {
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
PROBE_SCRIPT = b"rmdir d && mkdir d && echo 1 >d/file && [ -r /proc/self/stat ]"
PROBE_LIMITS = dict(ACTIVATION_LIMITS, time=30.0, cap=60.0)
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOT_KEPT = {"_", "SHLVL", "PWD", "OLDPWD", "MLBENCH_CONDA_ENV"}


class World:
    """What stays the same for every snippet of this sandbox."""

    def __init__(self, spec):
        self.nested = spec["nested"]
        self.base = base.Base(spec)
        self.filter = base64.b64decode(spec["filter"])
        self.counters = Counters(spec["cgroups"] or own_cgroups())
        self.nproc = False
        self.own_pids = {1, os.getpid()}
        self.variables = spec["variables"]
        self.control_fd = IN
        self.own_pid_ns = None
        self.uid, self.gid = os.getuid(), os.getgid()
        self.inner_uid = self.inner_gid = self.uid
        self.environments = {}


def main():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        frames.write(OUT, hello())
        spec = frames.read(IN)
        try:
            world = set_up(spec)
        except OSError as error:
            frames.write(OUT, {"type": "refused", "reason": str(error)})
            return 1
        frames.write(OUT, ready(world))
        while True:
            frames.write(OUT, answer(world, frames.read(IN)))
    except frames.HostGone:
        return 0


def hello():
    return {
        "type": "hello",
        "machine": kernel.machine(),
        "python": "%d.%d.%d" % sys.version_info[:3],
        "uid": os.getuid(),
        "kernel": os.uname().release,
    }


def ready(world):
    owner = None
    if world.base.workdirs:
        try:
            status = os.stat(world.base.find(world.base.workdirs[0]))
            owner = [status.st_uid, status.st_gid]
        except OSError:
            pass  # a missing folder is said when a snippet wants it
    return {"type": "ready", "home": world.base.home, "owner": owner}


def set_up(spec):
    """Enter the sandbox's own namespaces and build its base view; return the World."""
    world = World(spec)
    if spec["cpu_list"]:
        os.sched_setaffinity(0, spec["cpu_list"])
    if world.nested:
        _enter_namespaces(world, spec)
        world.inner_uid = spec["inner_uid"] if spec["inner_uid"] is not None else world.uid
        world.inner_gid = spec["inner_uid"] if spec["inner_uid"] is not None else world.gid
        world.nproc = spec["nproc"] and _nproc_holds(world)
        if spec["nproc"] and not world.nproc:
            raise OSError("RLIMIT_NPROC has no effect on a snippet here")
        _try_out(world)
    else:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # a snippet of the same user can't look in
        _fill(spec["copies"])
        _take_over([folder for folder in spec["workdirs"] if os.path.isdir(folder)])
        world.base.home, world.base.user = _fresh_home(), base.user_name(world.base)
        kernel.drop_capabilities(bounding=False)
    return world


def _enter_namespaces(world, spec):
    namespaces = kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWPID
    if spec["own_network"]:
        namespaces |= kernel.CLONE_NEWNET
    if spec["uid"] is None:
        kernel.unshare(namespaces)
        snippet.map_user(world.uid, world.uid, world.gid, world.gid)
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
        snippet.map_user(uid, uid, uid, uid)
    if spec["own_network"]:
        _bring_up_loopback()
    _become_pid_1()
    world.own_pids = {1}
    world.own_pid_ns = os.open("/proc/self/ns/pid", os.O_RDONLY)


def _become_pid_1():
    """Fork into the new pid namespace; the parent only waits, and dies with its child."""
    child = os.fork()
    if child:
        for fd in (IN, OUT):
            os.close(fd)
        _, status = os.waitpid(child, 0)
        os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("proc", "/proc", "proc", flags)


def _bring_up_loopback():
    get, put, up = 0x8913, 0x8914, 1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(probe, get, request))[1]
        fcntl.ioctl(probe, put, struct.pack("16sh14x", b"lo", flags | up))


def _nproc_holds(world):
    """Whether RLIMIT_NPROC stops a fork in a snippet's own user namespace (kernel 5.14 on)."""
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            kernel.unshare(kernel.CLONE_NEWUSER)
            snippet.map_user(world.inner_uid, world.uid, world.inner_gid, world.gid)
            kernel.drop_capabilities(bounding=True)
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


def _reap():
    """Pid 1 inherits what the probe left."""
    while True:
        try:
            os.wait4(-1, 0)
        except ChildProcessError:
            return


def _try_out(world):
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


def _fill(copies):
    """Fresh level: copy what lies in a read-only mount to where a snippet may write it."""
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


def _take_over(folders):
    """Fresh level: make everything below the folders the snippet's own, while we still can."""
    uid, gid = os.getuid(), os.getgid()
    for root in folders:
        for folder, names, files in os.walk(root):
            if os.path.ismount(folder) and folder != root:
                names[:] = []
                continue
            for path in [folder] + [os.path.join(folder, name) for name in names + files]:
                if os.lstat(path).st_uid != uid:
                    os.lchown(path, uid, gid)


def _fresh_home():
    home = os.environ.get("HOME") or "/root"
    if home == "/" or not os.path.isdir(home) or not os.access(home, os.W_OK):
        home = "/tmp/home"
        os.makedirs(home, exist_ok=True)
    return home


def answer(world, request):
    """Run one request; every outcome is a message."""
    try:
        program = prepare(world, request)
        observation, _, _ = snippet.run(world, program, request["limits"])
        return {"type": "result", "observation": observation}
    except Unusable as error:
        return {"type": "unusable", "reason": str(error)}
    except (Broken, OSError) as error:
        return {"type": "broken", "reason": "%s: %s" % (type(error).__name__, error)}


def prepare(world, request):
    """The program to run; an environment's own preparations are made once and kept."""
    environment = request["environment"]
    name = environment["name"]
    if name not in world.environments:
        try:
            world.environments[name] = _prepare_environment(world, environment)
        except Unusable as error:
            world.environments[name] = error
    if isinstance(world.environments[name], Unusable):
        raise world.environments[name]
    variables, mended = world.environments[name]
    workdir = environment["workdir"]
    code = base64.b64decode(request["code"])
    cwd = os.path.normpath(os.path.join(workdir, request["path"].lstrip("/")))
    return Program(
        request["language"], code, cwd, workdir, variables, environment["python"], mended
    )


def _prepare_environment(world, environment):
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


def _variables(world, environment):
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


def _activate(world, name, workdir, variables, mended):
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
