import errno
import json
import os
import platform
import struct
import subprocess
import sys
import textwrap
from importlib import resources
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlbench_exec import seccomp
from mlbench_exec.errors import InputError

ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386, ARM = 0x40000003, 0x40000028
MACHINE = platform.machine()
LISTED = "agent_only", "refused"

on_a_known_machine = pytest.mark.skipif(
    sys.platform != "linux" or MACHINE not in seccomp.MACHINES,
    reason=f"no seccomp filter for {sys.platform} on {MACHINE}",
)


def decide(program: bytes, arch: int, number: int, *arguments: int) -> str:
    """What the kernel would do with a call: the classic BPF machine, as far as it is used."""
    padded = [value & 0xFFFFFFFFFFFFFFFF for value in arguments] + [0] * (6 - len(arguments))
    call = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, arch, 0, *padded)
    code = list(struct.iter_unpack("<HBBI", program))
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, k = code[at]
        at += 1
        match operation:
            case 0x20:
                assert k % 4 == 0
                accumulator = struct.unpack_from("<I", call, k)[0]
            case 0x54:
                accumulator &= k
            case 0x15:
                at += if_true if accumulator == k else if_false
            case 0x35:
                at += if_true if accumulator >= k else if_false
            case 0x45:
                at += if_true if accumulator & k else if_false
            case 0x06:
                return _outcome(k)
            case _:
                raise AssertionError(f"instruction {at - 1}: unknown operation {operation:#x}")


def _outcome(value: int) -> str:
    match value >> 16:
        case 0x7FFF:
            return "allow"
        case 0x8000:
            return "kill"
        case 0x0005:
            return errno.errorcode.get(value & 0xFFFF, "nothing")
    raise AssertionError(f"unknown return value {value:#x}")


# From the kernel's tables, by hand: the number on x86_64 and on aarch64.
NUMBERS = {
    "read": (0, 63),
    "write": (1, 64),
    "mmap": (9, 222),
    "ioctl": (16, 29),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "clone": (56, 220),
    "execve": (59, 221),
    "ptrace": (101, 117),
    "personality": (135, 92),
    "pivot_root": (155, 41),
    "prctl": (157, 167),
    "adjtimex": (159, 171),
    "chroot": (161, 51),
    "settimeofday": (164, 170),
    "mount": (165, 40),
    "umount2": (166, 39),
    "reboot": (169, 142),
    "init_module": (175, 105),
    "sched_setaffinity": (203, 122),
    "clock_settime": (227, 112),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "openat": (257, 56),
    "unshare": (272, 97),
    "move_pages": (279, 239),
    "perf_event_open": (298, 241),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "finit_module": (313, 273),
    "sched_setattr": (314, 274),
    "seccomp": (317, 277),
    "getrandom": (318, 278),
    "memfd_create": (319, 279),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "rseq": (334, 293),
    "io_uring_setup": (425, 425),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "pidfd_open": (434, 434),
    "clone3": (435, 435),
    "openat2": (437, 437),
    "fchmodat2": (452, 452),
    "fcntl": (72, 25),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "mknodat": (259, 33),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "prlimit64": (302, 261),
    "pidfd_getfd": (438, 438),
    "mount_setattr": (442, 442),
    "landlock_restrict_self": (446, 446),
    "memfd_secret": (447, 447),
    "futex_waitv": (449, 449),
    "io_setup": (206, 0),
    "sync": (162, 81),
    "syncfs": (306, 267),
    "file_setattr": (469, 469),
}
NEWUSER = 0x10000000
THREAD = 0x003D0F00  # what pthread_create asks of clone


def number_of(name: str, machine: str) -> int:
    return NUMBERS[name][list(ARCH).index(machine)]


@pytest.fixture(params=list(ARCH))
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# The filter, interpreted

LET_THROUGH = """
    read write mmap execve prctl sched_setaffinity mbind set_mempolicy openat move_pages
    sched_setattr seccomp getrandom memfd_create rseq pidfd_open landlock_restrict_self futex_waitv
    file_setattr
"""
REFUSED = """
    ptrace pivot_root adjtimex chroot settimeofday mount umount2 reboot init_module clock_settime
    kexec_load add_key request_key keyctl unshare perf_event_open open_by_handle_at setns
    process_vm_readv process_vm_writev finit_module bpf userfaultfd io_uring_setup open_tree fsopen
    pidfd_getfd mount_setattr memfd_secret
"""


@pytest.mark.parametrize(
    ("name", "arguments", "outcome"),
    [
        *((name, (), "allow") for name in LET_THROUGH.split()),
        *((name, (), "EPERM") for name in REFUSED.split()),
        ("clone", (17,), "allow"),  # fork
        ("clone", (THREAD,), "allow"),
        ("clone", (0x4111,), "allow"),  # vfork, as posix_spawn does
        *(("clone", (17 | 1 << bit,), "EPERM") for bit in (17, 25, 26, 27, 28, 29, 30)),
        ("clone", (0xFFFFFFFF00000000 | NEWUSER,), "EPERM"),
        ("clone", (NEWUSER << 32,), "allow"),  # the kernel drops the upper word
        ("clone3", (), "ENOSYS"),
        ("ioctl", (0, 0x5401), "allow"),  # isatty
        ("ioctl", (0, 0x5412), "EPERM"),
        ("ioctl", (0, 0xFFFFFFFF00005412), "EPERM"),
        ("ioctl", (0, 0x541C), "EPERM"),
        ("ioctl", (0, 0x5423), "EPERM"),
        ("fcntl", (3, 4, 0x800), "allow"),  # O_NONBLOCK
        ("fcntl", (3, 1024, 1), "EPERM"),  # a lease
        ("fcntl", (3, 1026, 1), "EPERM"),
        ("prlimit64", (0, 7), "allow"),
        ("prlimit64", (1, 7), "EPERM"),
        ("sched_setaffinity", (1,), "EPERM"),
        ("sched_setscheduler", (1, 5), "EPERM"),
        ("sched_setparam", (1,), "EPERM"),
        ("setpriority", (0, 0, 5), "allow"),
        ("setpriority", (0, 1, 5), "EPERM"),
        ("setpriority", (2, 0, 5), "EPERM"),
        ("ioprio_set", (1, 0), "allow"),
        ("ioprio_set", (3, 0), "EPERM"),
        ("fchmod", (3, 0o755), "allow"),
        ("fchmod", (3, 0o2775), "allow"),
        ("fchmod", (3, 0o4755), "EPERM"),
        ("fchmodat", (-100, 0, 0o6755), "EPERM"),
        ("fchmodat2", (-100, 0, 0o4755), "EPERM"),
        ("mknodat", (-100, 0, 0o104755), "EPERM"),
        ("openat", (-100, 0, 0x241, 0o644), "allow"),
        ("openat", (-100, 0, 0x241, 0o4755), "EPERM"),
        ("openat", (-100, 0, 0, 0o4755), "allow"),  # nothing is made: the mode isn't looked at
        ("openat2", (), "ENOSYS"),
        ("io_setup", (1,), "EPERM"),
        ("prctl", (62, 1), "EPERM"),
        ("mmap", (0, 1 << 21, 3, 0x22), "allow"),
        ("mmap", (0, 1 << 21, 3, 0x40022), "ENOMEM"),
        ("memfd_create", (0, 1), "allow"),
        ("memfd_create", (0, 5), "ENOMEM"),
        ("sync", (), "nothing"),
        ("syncfs", (3,), "nothing"),
        ("personality", (0,), "allow"),
        ("personality", (0xFFFFFFFF,), "allow"),
        ("personality", (-1,), "allow"),  # the same, sign-extended by libc
        ("personality", (0x8,), "allow"),
        ("personality", (0x20008,), "allow"),
        ("personality", (0x40000,), "EPERM"),  # no randomised addresses
        ("personality", (0x0400000,), "EPERM"),  # all that is read can be run
        ("socket", (1, 1, 0), "allow"),
        ("socket", (1, 0x80801, 0), "allow"),
        ("socket", (2, 1, 0), "allow"),
        ("socket", (2, 0x80802, 17), "allow"),
        ("socket", (10, 1, 6), "allow"),
        ("socket", (2, 2, 1), "allow"),  # ping, without privilege
        ("socket", (2, 3, 1), "EPERM"),
        ("socket", (10, 0x80003, 58), "EPERM"),
        ("socket", (2, 10, 0x300), "EPERM"),
        ("socket", (2, 5, 132), "EPERM"),
        ("socket", (2, 1, 132), "EPROTONOSUPPORT"),
        ("socket", (16, 3, 0), "allow"),
        ("socket", (16, 0x80003, 0), "allow"),
        ("socket", (16, 3, 15), "EPROTONOSUPPORT"),
        *(("socket", (family, 1, 0), "EAFNOSUPPORT") for family in (0, 3, 17, 21, 38, 40, 44)),
        ("socket", (0xFFFFFFFF00000028, 1, 0), "EAFNOSUPPORT"),
        ("socketpair", (1, 1, 0), "allow"),
        ("socketpair", (30, 1, 0), "EAFNOSUPPORT"),
    ],
)
def test_filter(machine: str, name: str, arguments: tuple[int, ...], outcome: str) -> None:
    """Each call is let through, or refused with the error its caller can live with."""
    program = seccomp.snippet_filter(machine)
    assert decide(program, ARCH[machine], number_of(name, machine), *arguments) == outcome


@pytest.mark.parametrize("number", [470, 1000, 0x3FFFFFFF, 0x40000000, 0x40000110, 0xFFFFFFFF])
def test_filter_unknown_numbers(machine: str, number: int) -> None:
    """Calls newer than the table, and x32 ones, look absent."""
    assert decide(seccomp.snippet_filter(machine), ARCH[machine], number) == "ENOSYS"


def test_filter_other_architecture(machine: str) -> None:
    """A call by another architecture's numbers ends the process, whatever its number."""
    program = seccomp.snippet_filter(machine)
    others = {I386, ARM, *ARCH.values()} - {ARCH[machine]}
    assert {decide(program, arch, number) for arch in others for number in range(500)} == {"kill"}


@given(machine=st.sampled_from(list(ARCH)), number=st.integers(0, 469))
def test_filter_refuses_only_what_is_listed(machine: str, number: int) -> None:
    """The search over the numbers agrees with a look-up in the table.

    Calls that are checked by argument are left out: their cases are above.
    """
    table = seccomp._table()

    def numbers_in(*sections: str) -> set[int | None]:
        return {
            numbers if isinstance(numbers, int) else numbers.get(machine)
            for section in sections
            for numbers in table[section].values()
        }

    assume(number not in numbers_in("checked"))
    outcome = decide(seccomp.snippet_filter(machine), ARCH[machine], number)
    assert (outcome != "allow") == (number in numbers_in(*LISTED))


def test_filter_size(machine: str) -> None:
    """The kernel takes 4096 instructions; each jump ends inside, so each path returns."""
    code = list(struct.iter_unpack("<HBBI", seccomp.snippet_filter(machine)))
    assert len(code) < 512
    for at, (operation, if_true, if_false, _) in enumerate(code):
        if operation & 0x07 == 0x05:
            assert at + 1 + max(if_true, if_false) < len(code)
    assert code[-1][0] == 0x06


def test_filter_unknown_machine() -> None:
    """A machine without a table is named."""
    with pytest.raises(InputError, match="riscv64"):
        seccomp.snippet_filter("riscv64")


# The container's profile

FOR_THE_AGENT = """
    unshare clone clone3 setns mount umount2 pivot_root move_mount open_tree mount_setattr chroot
    sethostname seccomp prctl capset read futex execve epoll_wait mbind memfd_create
"""
FOR_NOBODY = """
    bpf perf_event_open kexec_load init_module keyctl add_key request_key io_uring_setup ptrace
    userfaultfd open_by_handle_at reboot swapon settimeofday clock_settime acct quotactl iopl
    ioperm process_vm_readv
"""


def rules_of(name: str) -> list[dict[str, Any]]:
    return [rule for rule in seccomp.container_profile()["syscalls"] if name in rule["names"]]


def test_profile_file() -> None:
    """The file that ships is what `python -m mlbench_exec.seccomp` writes."""
    file = resources.files("mlbench_exec") / "backends" / "docker_seccomp.json"
    made = json.dumps(seccomp.container_profile(), indent=2) + "\n"
    assert file.read_text(encoding="utf-8") == made


@pytest.mark.parametrize("name", FOR_THE_AGENT.split())
def test_profile_allows(name: str) -> None:
    """What the agent makes sandboxes with, and what programs need, may pass."""
    assert [rule["action"] for rule in rules_of(name)] == ["SCMP_ACT_ALLOW"]


@pytest.mark.parametrize("name", FOR_NOBODY.split())
def test_profile_refuses(name: str) -> None:
    """What reaches into the kernel fails with EPERM."""
    (rule,) = rules_of(name)
    assert (rule["action"], rule["errnoRet"]) == ("SCMP_ACT_ERRNO", 1)


def test_profile_names_a_call_once() -> None:
    """A call has one rule, or several with different arguments."""
    rules = seccomp.container_profile()["syscalls"]
    pairs = [(name, str(rule.get("args"))) for rule in rules for name in rule["names"]]
    assert len(pairs) == len(set(pairs))


# The filter, in this machine's kernel

INSTALL = """
import ctypes, errno, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

class Fprog(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

def call(number, *arguments):
    ctypes.set_errno(0)
    if libc.syscall(*map(ctypes.c_long, (number, *arguments))) != -1:
        return "done"
    return errno.errorcode[ctypes.get_errno()]

program = bytes.fromhex(sys.argv[1])
fprog = Fprog(len(program) // 8, program)
assert libc.prctl(38, *map(ctypes.c_ulong, (1, 0, 0, 0))) == 0
assert call(int(sys.argv[2]), 1, 0, ctypes.addressof(fprog)) == "done"
"""


def under_the_filter(body: str) -> str:
    """Run `body` in a fresh Python with the filter set; return its output."""
    program = seccomp.snippet_filter(MACHINE).hex()
    number = str(number_of("seccomp", MACHINE))
    ran = subprocess.run(
        [sys.executable, "-c", INSTALL + textwrap.dedent(body), program, number],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@on_a_known_machine
def test_kernel_refuses() -> None:
    """The kernel takes the filter, and refuses root itself with its errors."""
    calls: dict[str, tuple[tuple[int, ...], str]] = {
        "unshare": ((NEWUSER,), "EPERM"),
        "mount": ((), "EPERM"),
        "chroot": ((), "EPERM"),
        "bpf": ((), "EPERM"),
        "perf_event_open": ((), "EPERM"),
        "keyctl": ((0, -3, 0), "EPERM"),
        "io_uring_setup": ((), "EPERM"),
        "ptrace": ((), "EPERM"),
        "process_vm_readv": ((), "EPERM"),
        "userfaultfd": ((), "EPERM"),
        "settimeofday": ((), "EPERM"),
        "clock_settime": ((), "EPERM"),
        "clone": ((NEWUSER | 17,), "EPERM"),
        "clone3": ((), "ENOSYS"),
        "personality": ((0x40000,), "EPERM"),
        "ioctl": ((0, 0x5412), "EPERM"),
        "socket": ((40, 1, 0), "EAFNOSUPPORT"),
    }
    numbered = {name: (number_of(name, MACHINE), *given) for name, (given, _) in calls.items()}
    body = f"print(json.dumps({{name: call(*all) for name, all in {numbered!r}.items()}}))"
    assert json.loads(under_the_filter(body)) == {name: want for name, (_, want) in calls.items()}


@on_a_known_machine
def test_kernel_refuses_raw_sockets() -> None:
    """Neither raw nor packet sockets open; ordinary ones next to them do."""
    body = """
        import socket
        def opens(*kind):
            try:
                socket.socket(*kind).close()
            except OSError as error:
                return errno.errorcode[error.errno]
            return "opens"
        kinds = [(2, 3, 1), (17, 3, 0), (38, 5, 0), (16, 3, 16), (16, 3, 0), (2, 1), (2, 2), (1, 1)]
        print(*(opens(*kind) for kind in kinds))
    """
    assert under_the_filter(body).split() == [
        "EPERM",
        "EAFNOSUPPORT",
        "EAFNOSUPPORT",
        "EPROTONOSUPPORT",
        *["opens"] * 4,
    ]


@on_a_known_machine
def test_kernel_lets_programs_work() -> None:
    """Threads, processes, databases and sockets work under the filter."""
    body = """
        import socket, sqlite3, subprocess, tempfile, threading
        thread = threading.Thread(target=print, args=["thread"])
        thread.start()
        thread.join()
        if (child := os.fork()) == 0:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert subprocess.check_output(["sh", "-c", "echo $((6 * 7)) | cat"]) == b"42\\n"
        assert os.posix_spawn("/bin/true", ["true"], os.environ) > 0
        with tempfile.TemporaryDirectory() as folder:
            database = sqlite3.connect(folder + "/d")
            database.execute("pragma journal_mode=wal")
            database.execute("create table t as select 1")
            database.close()
        with socket.create_server(("127.0.0.1", 0)) as server:
            with socket.create_connection(server.getsockname()) as client:
                server.accept()[0].sendall(b"hello")
                assert client.recv(5) == b"hello"
        left, right = socket.socketpair()
        assert socket.if_nameindex()
        assert libc.getifaddrs(ctypes.byref(ctypes.c_void_p())) == 0
        assert socket.getaddrinfo("localhost", 80)
        assert os.cpu_count() and os.sched_getaffinity(0)
    """
    assert under_the_filter(body) == "thread\n"


@on_a_known_machine
@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_kernel_lets_multiprocessing_work(method: str) -> None:
    """Pools, queues, locks and shared memory work under the filter, however they start."""
    body = f"""
        import multiprocessing, operator
        from multiprocessing import shared_memory
        if __name__ == "__main__":
            context = multiprocessing.get_context({method!r})
            with context.Pool(2) as pool:
                print(sum(pool.map(operator.neg, range(10))))
            queue = context.Queue()
            process = context.Process(target=queue.put, args=[1])
            process.start()
            assert queue.get(timeout=30) == 1
            process.join()
            block = shared_memory.SharedMemory(create=True, size=4096)
            block.close()
            block.unlink()
    """
    assert under_the_filter(body) == "-45\n"


@on_a_known_machine
def test_kernel_keeps_the_filter_in_children() -> None:
    """A program that the snippet starts is refused the same."""
    body = """
        import subprocess
        again = "import ctypes; print(ctypes.CDLL(None, use_errno=True).unshare(0x10000000))"
        print(subprocess.check_output([sys.executable, "-c", again], text=True))
    """
    assert under_the_filter(body).split() == ["-1"]
