"""The base view: what every snippet of this sandbox sees, read-only, before its own layers.

A new root on a small tmpfs, into which the host's or the container's folders are bound:

    /.mlbench/stash/N     the mounts and folders this sandbox was given, whatever their target
    /.mlbench/mended/N    writable twins of files that the snippet's user doesn't own
    /.mlbench/scratch     where a snippet's own tmpfs goes
    /.mlbench/probe       a folder to try the sandbox on before it serves
    /.mlbench/bin         a `python` for interpreters whose folder has only `python3`
    /.mlbench/warm        what a warm interpreter starts with, and the fronts that call one
    /.mlbench/nothing     an empty folder, to cover others with
    /.mlbench/run         where a snippet's fronts find their helper
"""

from __future__ import annotations

import os
import pwd

from mlbench_exec.agent import kernel, pid1
from mlbench_exec.agent.kernel import signal
from mlbench_exec.agent.program import HIDDEN
from mlbench_exec.agent.steps import Maker, Step

TYPE_CHECKING = False  # typing takes longer to import than most of what is imported here
if TYPE_CHECKING:
    from typing import Any, Callable, Optional

    # From a path to the fd of a user namespace that makes its owner the snippet's user, or None.
    IdMapper = Callable[[str], Optional[int]]

STASH = HIDDEN + "/stash"
MENDED = HIDDEN + "/mended"
SCRATCH = HIDDEN + "/scratch"
SHIMS = HIDDEN + "/bin"
PROBE = HIDDEN + "/probe"
WARM = HIDDEN + "/warm"
NOTHING = HIDDEN + "/nothing"

MOUNT_POINTS = ("/mnt", "/media", "/srv", "/boot", "/tmp", "/var/tmp", "/home", "/opt")
NOT_COPIED = {"proc", "sys", "dev", "tmp", ".mlbench"}
SYSTEM_FOLDERS = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
GPU_DEVICES = ("nvidia", "dri", "kfd")
# Of a host's /etc: what programs need to start, find names and check certificates.
ETC = (
    "alternatives bash.bashrc ca-certificates ca-certificates.conf debian_version fonts gai.conf",
    "host.conf inputrc ld.so.cache ld.so.conf ld.so.conf.d localtime lsb-release machine-id",
    "magic magic.mime matplotlibrc mime.types nsswitch.conf OpenCL os-release pki profile",
    "protocols redhat-release resolv.conf rpc services ssl terminfo timezone vulkan",
)


class Base:
    """What later steps must know of the base view."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.container: bool = spec["mode"] == "container"
        # Each has source, target and rw; its index is its number in the stash.
        self.stash: list[dict[str, Any]] = spec["stash"]
        self.home = ""
        self.own_home = False  # the home is ours to make, not an existing folder
        self.user: str = spec["user"]
        self.uid = os.getuid()
        self.inner_uid: int | None = spec["inner_uid"]
        self.gpus: bool = spec["gpus"]
        self.gpu_nodes: list[str] | None = spec["gpu_nodes"]
        # A folder on disk for mended files; without one they go to a tmpfs.
        self.spare: str | None = spec["spare"]
        self.workdirs: list[str] = spec["workdirs"]

    def is_replaced(self, path: str) -> bool:
        """Whether a snippet gets a folder of its own at or above `path`."""
        folders = ["/tmp", "/var/tmp", *self.workdirs] + ([self.home] if self.home else [])
        return any(is_below(path, folder) for folder in folders)

    def find(self, path: str) -> str:
        """Where the base view holds `path`: below a stash entry, or at its own place."""
        best = None
        for number, entry in enumerate(self.stash):
            target = entry["target"]
            if is_below(path, target) and (best is None or len(target) > len(best[1])):
                best = (number, target)
        if best is None:
            return path
        rest = path[len(best[1]) :].lstrip("/")
        return (
            os.path.join("%s/%d" % (STASH, best[0]), rest) if rest else "%s/%d" % (STASH, best[0])
        )


def is_below(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or lies in it; both absolute and normal."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def build(base: Base, idmap: IdMapper | None = None) -> None:
    """Mount the base view and make it the root. Needs CAP_SYS_ADMIN over the mount namespace.

    `idmap` (a real root's privilege) gives, for a path, the fd of a user namespace that makes
    its owner the snippet's user, or None.
    """
    made = Maker()
    made.do(Step("mount", 0, b"/", 0, kernel.MS_REC | kernel.MS_PRIVATE, said="mount(/)"))
    root = _mount_point(base)
    made.mount("tmpfs", root, kernel.MS_NOSUID, "size=16m,mode=0755")
    for folder in (
        "/proc",
        "/sys/devices/system",
        "/dev/shm",
        "/dev/pts",
        "/tmp",
        SCRATCH,
        SHIMS,
        PROBE + "/d",
        WARM,
        NOTHING,
        HIDDEN + "/run",
    ):
        os.makedirs(root + folder)
    names = sorted(os.listdir("/")) if base.container else SYSTEM_FOLDERS
    for name in names:
        if "/" + name == root:
            os.makedirs(root + root, exist_ok=True)  # it is empty, or not copied anyway
        elif name not in NOT_COPIED:
            _show(made, "/" + name, root + "/" + name)
    if not base.container:
        _make_etc(made, base, root)
    made.bind("/proc", root + "/proc", recursive=True)
    _show_if_there(made, "/sys/devices/system", root)
    if base.gpus:
        for folder in ("/sys/bus/pci", "/sys/class", "/sys/devices", "/sys/module"):
            _show_if_there(made, folder, root)
    _make_dev(made, base, root)
    _make_home(made, base, root)
    if base.spare:
        os.makedirs(root + MENDED)
        made.bind(base.spare, root + MENDED)
        made.set_attributes(root + MENDED, kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV)
    else:
        os.makedirs(root + MENDED)
    for number, entry in enumerate(base.stash):
        _stash(made, root, number, entry, idmap)
    for folder in ("/var/tmp", "/run"):
        if not os.path.lexists(root + folder) and not base.container:
            os.makedirs(root + folder)
    pid1.write_program(root + pid1.PATH)
    kernel.pivot_root(root)
    for folder in (SHIMS, PROBE, PROBE + "/d", WARM):
        os.chown(folder, base.uid, -1)
    for number, entry in enumerate(base.stash):
        target = entry["target"]
        if target in base.workdirs and not os.path.lexists(target):
            _make_mount_point(made, target, True)
        elif not base.is_replaced(target):
            place(made, STASH + "/%d" % number, target)
    if not base.spare:
        made.mount("tmpfs", MENDED, kernel.TMPFS, "mode=0755")


def make_shim(name: str, python: str) -> str:
    """A folder with a `python` that starts `python`, for folders that only have a `python3`.

    At the fresh level there is no base view to put it in, so it goes to /tmp.
    """
    folder = os.path.join(SHIMS if os.path.isdir(SHIMS) else "/tmp" + SHIMS, name)
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "python")
    with open(path, "w") as file:
        file.write('#!/bin/sh\nexec %s "$@"\n' % _quoted(python))
    os.chmod(path, 0o755)
    return folder


def place(made: Maker, source: str, target: str) -> None:
    """Bind `source` on `target`, which is made if need be, also in a read-only folder."""
    if not os.path.lexists(target):
        _make_mount_point(made, target, os.path.isdir(source))
    made.bind(source, target, recursive=True)


def _quoted(word: str) -> str:
    """As one word for a shell. Nothing can be imported once the root is another."""
    return "'%s'" % word.replace("'", "'\\''")


def _make_mount_point(made: Maker, target: str, is_folder: bool) -> None:
    parent = os.path.dirname(target)
    try:
        made.make_folders(parent)
        _create(made, target, is_folder)
        return
    except OSError:
        pass
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    # The nearest folder that is there is read-only: lay a writable one over it.
    layer = SCRATCH + "/layers" + parent
    for name in ("upper", "work"):
        made.make_folders("%s/%s" % (layer, name))
    options = "lowerdir=%s,upperdir=%s/upper,workdir=%s/work,userxattr"
    escaped = escape(layer)
    options %= escape(parent), escaped, escaped
    made.mount("overlay", parent, kernel.MS_NOSUID, options)
    made.make_folders(os.path.dirname(target))
    _create(made, target, is_folder)
    _protect(made, parent)  # it was read-only, and stays so


def escape(path: str) -> str:
    """A path as an overlay option: its separators are backslash, comma and colon."""
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")


def _mount_point(base: Base) -> str:
    sources = [entry["source"] for entry in base.stash] + [base.spare or "/usr"]
    for folder in MOUNT_POINTS:
        if not os.path.isdir(folder) or any(is_below(source, folder) for source in sources):
            continue
        if not (base.container and os.listdir(folder)):
            return folder
    for folder in ("/tmp", "/sys"):
        if os.path.isdir(folder) and not any(is_below(source, folder) for source in sources):
            return folder
    raise OSError("no folder to build a new root on among %s" % ", ".join(MOUNT_POINTS))


def _show(made: Maker, source: str, target: str) -> None:
    """Bind a folder read-only with all that is mounted in it; copy a link as a link."""
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    if not os.path.isdir(source):
        return
    os.makedirs(target, exist_ok=True)
    if not _is_empty(source):
        made.bind(source, target, recursive=True)
        _protect(made, target, recursive=True)


def _show_if_there(made: Maker, source: str, root: str) -> None:
    if os.path.isdir(source):
        os.makedirs(root + source, exist_ok=True)
        made.bind(source, root + source)
        _protect(made, root + source)


def _is_empty(folder: str) -> bool:
    try:
        return not os.listdir(folder)
    except OSError:
        return False


def _protect(made: Maker, target: str, recursive: bool = False, rw: bool = False) -> None:
    attributes = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
    made.set_attributes(
        target, attributes | (0 if rw else kernel.MOUNT_ATTR_RDONLY), recursive=recursive
    )


def _create(made: Maker, path: str, is_folder: bool) -> None:
    if is_folder:
        made.make_folder(path, 0o755)
    else:
        made.make_file(path)


def _stash(
    made: Maker, root: str, number: int, entry: dict[str, Any], idmap: IdMapper | None
) -> None:
    target = "%s%s/%d" % (root, STASH, number)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    _create(made, target, os.path.isdir(entry["source"]))
    userns_fd = idmap(entry["source"]) if idmap else None
    if userns_fd is not None:
        try:
            kernel.bind_idmapped(entry["source"], target, userns_fd)
        except OSError:  # a file system that can't: its files are mended instead
            userns_fd = None
    if userns_fd is None:
        made.bind(entry["source"], target, recursive=True)
    _protect(made, target, recursive=True, rw=entry["rw"])


def _make_dev(made: Maker, base: Base, root: str) -> None:
    names = list(DEVICES)
    if base.gpus:
        there = [name for name in os.listdir("/dev") if name.startswith(GPU_DEVICES)]
        names += [n for n in there if base.gpu_nodes is None or n in base.gpu_nodes]
    for name in names:
        source, target = "/dev/" + name, root + "/dev/" + name
        if not os.path.exists(source):
            continue
        is_folder = os.path.isdir(source)
        _create(made, target, is_folder)
        made.bind(source, target, recursive=is_folder)
        # Read-only holds for the node, its mode and owner; what is written to the device goes on.
        made.set_attributes(
            target, kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID, recursive=is_folder
        )
    for name, destination in (
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ):
        os.symlink(destination, root + "/dev/" + name)


def _make_home(made: Maker, base: Base, root: str) -> None:
    """Settle the home folder: an existing one that is ours gets a layer, else a new one."""
    if base.container:
        if _account(base.uid) is None:
            _bind_over(made, root, "/etc/passwd", _passwd_line(base, base.uid))
        base.user = user_name(base)
    home = os.environ.get("HOME")
    if home and base.container and os.path.isdir(home) and os.stat(home).st_uid == base.uid:
        base.home = os.path.realpath(home)
    if base.home not in {"", "/"}:
        return
    base.own_home = True
    base.home = "/home/" + base.user
    if not os.path.isdir(root + base.home):
        if base.container and not _is_empty("/home"):
            base.home = "/tmp/home"  # made with each snippet's /tmp
        else:
            os.makedirs(root + base.home)


def user_name(base: Base) -> str:
    """The image's own name for the user, or ours where it has none."""
    account = _account(base.uid)
    return account.pw_name if account else base.user


def _account(uid: int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None


def _passwd_line(base: Base, uid: int) -> str:
    return "%s:x:%d:%d::/home/%s:/bin/bash\n" % (base.user, uid, uid, base.user)


def _bind_over(made: Maker, root: str, path: str, addition: str) -> None:
    """Show `path` with a line more, where it is there at all."""
    try:
        with open(path) as original:
            text = original.read()
    except OSError:
        return
    twin = root + HIDDEN + path.replace("/", "-")
    with open(twin, "w") as file:
        file.write(text + addition)
    made.bind(twin, root + path)
    _protect(made, root + path)


def _make_etc(made: Maker, base: Base, root: str) -> None:
    os.makedirs(root + "/etc")
    for name in " ".join(ETC).split():
        source, target = "/etc/" + name, root + "/etc/" + name
        if os.path.isdir(source):
            os.makedirs(target)
            made.bind(source, target)
            _protect(made, target)
        elif os.path.isfile(source) and os.access(source, os.R_OK):
            with open(source, "rb") as original, open(target, "wb") as copy:
                copy.write(original.read())
    uid = base.uid if base.inner_uid is None else base.inner_uid
    with open(root + "/etc/passwd", "w") as file:
        file.write("root:x:0:0:root:/root:/bin/bash\n" + _passwd_line(base, uid))
        file.write("nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n")
    with open(root + "/etc/group", "w") as file:
        file.write("root:x:0:\n%s:x:%d:\nnogroup:x:65534:\n" % (base.user, uid))
    with open(root + "/etc/hosts", "w") as file:
        file.write("127.0.0.1 localhost mlbench\n::1 localhost\n")


def idmapper(uid: int) -> IdMapper:
    """A function from a path to a user namespace that maps the path's owner to `uid`."""
    made: dict[tuple[int, int], int | None] = {}

    def namespace(path: str) -> int | None:
        status = os.stat(path)
        owner = (status.st_uid, status.st_gid)
        if owner not in made:
            made[owner] = _user_namespace(owner, uid)
        return made[owner]

    return namespace


def _user_namespace(owner: tuple[int, int], uid: int) -> int | None:
    ready_r, ready_w = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            kernel.unshare(kernel.CLONE_NEWUSER)
            os.write(ready_w, b"1")
            signal.pause()
        finally:
            os._exit(1)
    try:
        os.close(ready_w)
        if os.read(ready_r, 1) != b"1":
            return None
        for name, inside in (("uid_map", owner[0]), ("gid_map", owner[1])):
            with open("/proc/%d/%s" % (child, name), "w") as file:
                file.write("%d %d 1" % (inside, uid))
        return os.open("/proc/%d/ns/user" % child, os.O_RDONLY)
    finally:
        os.close(ready_r)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
