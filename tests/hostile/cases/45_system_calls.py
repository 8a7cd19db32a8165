# The parts of the kernel that no benchmark needs.
import platform

x86 = platform.machine() == "x86_64"
scratch = ctypes.create_string_buffer(4096)
at = ctypes.addressof(scratch)
NEW = {
    "user": 0x10000000,
    "mount": 0x20000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x8000000,
    "uts": 0x4000000,
    "cgroup": 0x2000000,
    "time": 0x80,
}


def in_a_child(what, call, *arguments):
    """Namespaces change their caller, so a child tries it."""
    os.waitpid(spawn(lambda: attempt(what, call, *arguments)), 0)


def mount():
    if not GIVEN["confined"]:
        syscall(272 if x86 else 97, NEW["mount"])
        syscall(165 if x86 else 40, b"none", b"/", 0, 0x44000, 0)  # nothing shows outside
    syscall(165 if x86 else 40, b"none", b"/tmp", b"tmpfs", 0, 0)


for name, flag in NEW.items():
    in_a_child("unshare " + name, syscall, 272 if x86 else 97, flag)
in_a_child("clone user", syscall, 56 if x86 else 220, NEW["user"] | 17, 0, 0, 0, 0)
in_a_child("mount", mount)
# The kernel answers all these with another errno than the filter's EPERM, or does them.
for name, number, arguments in (
    ("setns", 308 if x86 else 268, (-1, 0)),
    ("umount2", 166 if x86 else 39, (b"/no-such-folder", 0)),
    ("pivot_root", 155 if x86 else 41, (b"/no-such", b"/no-such")),
    ("chroot", 161 if x86 else 51, (b"/no-such-folder",)),
    ("open_tree", 428, (-100, b"/no-such-folder", 0)),
    ("move_mount", 429, (-1, b"", -1, b"", 0x44)),
    ("fsopen", 430, (b"no-such-type", 0)),
    ("fspick", 433, (-100, b"/no-such-folder", 0)),
    ("mount_setattr", 442, (-100, b"/no-such-folder", 0, at, 32)),
    ("bpf", 321 if x86 else 280, (0, at, 8)),
    ("perf_event_open", 298 if x86 else 241, (at, 0, -1, -1, 0)),
    ("io_uring_setup", 425, (1, at)),
    ("io_uring_register", 427, (-1, 0, 0, 0)),
    ("keyctl", 250 if x86 else 219, (0, -3, 0)),
    ("add_key", 248 if x86 else 217, (b"user", b"hostile", b"1", 1, -1)),
    ("request_key", 249 if x86 else 218, (b"user", b"hostile", 0, -1)),
    ("userfaultfd", 323 if x86 else 282, (1,)),
    ("kexec_load", 246 if x86 else 104, (0, 1000, at, 0xFFFFFFFF)),
    ("init_module", 175 if x86 else 105, (at, 1, b"")),
    ("finit_module", 313 if x86 else 273, (-1, b"", 0)),
    ("delete_module", 176 if x86 else 106, (b"no_such_module", 0x800)),
    ("process_vm_readv", 310 if x86 else 270, (os.getpid(), at, 0, at, 0, 0)),
    ("pidfd_getfd", 438, (-1, 0, 0)),
    ("open_by_handle_at", 304 if x86 else 265, (-1, at, 0)),
    ("fanotify_init", 300 if x86 else 262, (0x1000, 0)),
    ("quotactl", 179 if x86 else 60, (0x80000700, b"/no-such-device", 0, at)),
    ("syslog", 103 if x86 else 116, (10, 0, 0)),
    ("acct", 163 if x86 else 89, (b"/no-such-file",)),
    ("swapon", 167 if x86 else 224, (b"/no-such-file", 0)),
    ("memfd_secret", 447, (0xFF,)),
    ("kcmp", 312 if x86 else 272, (os.getpid(), os.getpid(), 2, 0, 0)),
):
    attempt(name, syscall, number, *arguments)
