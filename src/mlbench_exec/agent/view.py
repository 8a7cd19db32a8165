"""A snippet's own view: writable layers over the base view, gone with its mount namespace."""

from __future__ import annotations

import os
import stat

from mlbench_exec.agent import kernel
from mlbench_exec.agent.base import (
    MENDED,
    NOTHING,
    SCRATCH,
    STASH,
    Base,
    escape,
    is_below,
    place,
)
from mlbench_exec.agent.kernel import TMPFS
from mlbench_exec.agent.steps import Maker, Steps

MOST_TERMINALS = 128  # of 4096 on the whole machine
MOST_COPIED_FILES, MOST_COPIED_BYTES = 8, 16384


def enter(base: Base, workdir: str, mended: str | None, disk_bytes: int, shm_bytes: int) -> Steps:
    """Mount the view in this process's fresh mount namespace; return what would do so again.

    `mended` names the layer to lay over the workdir's own files, or is None. Everything that
    the snippet writes goes to one tmpfs of `disk_bytes`, /dev/shm to another of `shm_bytes`.
    """
    made = Maker()
    inodes = inodes_for(disk_bytes)
    made.mount("tmpfs", SCRATCH, TMPFS, "size=%d,nr_inodes=%d,mode=0755" % (disk_bytes, inodes))
    for name, mode in (("tmp", 0o1777), ("vartmp", 0o1777), ("home", 0o755)):
        made.make_folder(SCRATCH + "/" + name)
        made.set_mode(SCRATCH + "/" + name, mode)
    made.bind(SCRATCH + "/tmp", "/tmp")
    if os.path.isdir("/var/tmp") and not os.path.islink("/var/tmp"):
        made.bind(SCRATCH + "/vartmp", "/var/tmp")
    if base.own_home and is_below(base.home, "/tmp"):
        made.make_folder(base.home)
    has_copy = base.home != workdir and _copy_home(made, base)
    if base.own_home or has_copy:
        made.bind(SCRATCH + "/home", base.home)
    layers = {workdir} | (set() if base.own_home or has_copy else {base.home})
    replaced = ["/tmp", "/var/tmp", base.home, workdir]
    again = [  # what lies in a folder that is being replaced has to be shown again
        (entry["target"], "%s/%d" % (STASH, number))
        for number, entry in enumerate(base.stash)
        if entry["target"] not in layers
        and any(is_below(entry["target"], folder) for folder in replaced)
    ]
    steps: list[tuple[str, str | None]] = [(folder, None) for folder in layers]
    steps += again
    for number, (folder, source) in enumerate(sorted(steps, key=lambda step: len(step[0]))):
        if source is not None:
            place(made, source, folder)
        else:
            _lay_over(made, base, folder, mended if folder == workdir else None, number)
    made.set_attributes(MENDED, kernel.MOUNT_ATTR_RDONLY)
    made.set_attributes("/", kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID)
    _cover(made, base)
    _mount_devices(made, shm_bytes)
    return made.steps()


def _copy_home(made: Maker, base: Base) -> bool:
    """Copy the home's files, where these are few: a layer over them takes longer to make."""
    is_mounted = base.find(base.home) != base.home  # then it is a layer's own
    files = [] if base.own_home or is_mounted else _plain_files(base.home, base.uid)
    if not files:
        return False
    folder = SCRATCH + "/home"
    for path, _, data in files[1:]:
        made.make_file(folder + "/" + os.path.basename(path), data)
    for path, status, _ in reversed(files):
        copy = os.path.normpath(folder + path[len(base.home) :])
        own = 0o700 if stat.S_ISDIR(status.st_mode) else 0
        made.set_mode(copy, stat.S_IMODE(status.st_mode) | own)
        made.set_times(copy, status.st_atime_ns, status.st_mtime_ns)
    return True


def _plain_files(folder: str, uid: int) -> list[tuple[str, os.stat_result, bytes]]:
    """A folder and its files; none if there are others than a few plain and small ones in it."""
    found: list[tuple[str, os.stat_result, bytes]] = []
    size = 0
    try:
        names = sorted(os.listdir(folder))[: MOST_COPIED_FILES + 1]
        for path in [folder] + [os.path.join(folder, name) for name in names]:
            status = os.lstat(path)
            is_plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
            is_ours = (status.st_uid, status.st_gid) == (uid, os.getgid())
            if not (is_plain or path == folder) or not is_ours or os.listxattr(path):
                return []
            size += status.st_size if is_plain else 0
            if len(found) > MOST_COPIED_FILES or size > MOST_COPIED_BYTES:
                return []
            data = b""
            if is_plain:
                with open(path, "rb") as file:
                    data = file.read(MOST_COPIED_BYTES)
            found.append((path, status, data))
    except OSError:
        return []
    return found


def inodes_for(disk_bytes: int) -> int:
    """How many files go with a limit on bytes."""
    return min(1000000, max(16384, disk_bytes // 4096))


def _cover(made: Maker, base: Base) -> None:
    """Leave no second way to what was mounted: scratch's folders are to be seen in their places.

    Nothing is unmounted: the kernel would wait until no CPU could still be looking at it.
    """
    for folder in (SCRATCH, STASH) if base.stash else (SCRATCH,):
        made.bind(NOTHING, folder)


def _mount_devices(made: Maker, shm_bytes: int) -> None:
    """Shared memory and pseudo-terminals of its own."""
    made.mount("tmpfs", "/dev/shm", TMPFS, "size=%d,nr_inodes=%d,mode=1777" % (shm_bytes, 65536))
    options = "newinstance,ptmxmode=0666,max=%d" % MOST_TERMINALS
    try:
        made.mount("devpts", "/dev/pts", kernel.MS_NOSUID | kernel.MS_NOEXEC, options)
    except OSError:
        pass  # a program without a terminal device still runs


def _lay_over(made: Maker, base: Base, folder: str, mended: str | None, number: int) -> None:
    upper, work = "%s/upper%d" % (SCRATCH, number), "%s/work%d" % (SCRATCH, number)
    made.make_folder(upper)
    made.make_folder(work)
    lower = escape(base.find(folder))
    if mended:
        lower = escape(mended) + ":" + lower
    made.make_folders(folder)  # below a /tmp that this snippet just got
    options = "lowerdir=%s,upperdir=%s,workdir=%s,userxattr" % (lower, upper, work)
    made.mount("overlay", folder, TMPFS, options)


def mend(base: Base, workdir: str, uid: int) -> str | None:
    """Make writable twins of what `uid` doesn't own below `workdir`; return the layer or None.

    An overlay keeps the owners of its lower layer, and a file of another's stays read-only
    there. So those files, and folders that aren't writable, get a copy in a layer of their own.
    """
    layer = "%s/%d" % (MENDED, len(os.listdir(MENDED)))
    found = base.find(workdir)
    if not _has_foreign(found, uid):
        return None
    os.mkdir(layer)
    for folder, folders, files in os.walk(found):
        twin = os.path.normpath(os.path.join(layer, os.path.relpath(folder, found)))
        if _is_foreign(folder, uid):
            _twin_folder(layer, found, twin)
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in files + links:
            path = os.path.join(folder, name)
            if _is_foreign(path, uid):
                _twin_folder(layer, found, twin)
                _copy(path, os.path.join(twin, name))
        folders[:] = [name for name in folders if name not in links]
    return layer


def _has_foreign(found: str, uid: int) -> bool:
    if _is_foreign(found, uid):
        return True
    for folder, folders, files in os.walk(found):
        if any(_is_foreign(os.path.join(folder, name), uid) for name in folders + files):
            return True
    return False


def _is_foreign(path: str, uid: int) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    writable = 0o700 if stat.S_ISDIR(status.st_mode) else 0
    return status.st_uid != uid or (status.st_mode & writable) != writable


def _twin_folder(layer: str, found: str, twin: str) -> None:
    """Make `twin` and the folders above it, each with its original's mode."""
    relative = os.path.relpath(twin, layer)
    path, original = layer, found
    for name in ["."] + ([] if relative == "." else relative.split("/")):
        path, original = os.path.normpath(os.path.join(path, name)), os.path.join(original, name)
        if not os.path.isdir(path):
            os.mkdir(path)
        os.chmod(path, (os.stat(original).st_mode | 0o700) & 0o777)


def _copy(source: str, target: str) -> None:
    """Copy a link, or a regular file that can be read; others stay as they are."""
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    if not os.path.isfile(source) or not os.access(source, os.R_OK):
        return
    with open(source, "rb") as original, open(target, "wb") as copy:
        while True:
            chunk = original.read(1 << 20)
            if not chunk:
                break
            copy.write(chunk)
    status = os.stat(source)
    os.chmod(target, (status.st_mode | 0o600) & 0o777)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
