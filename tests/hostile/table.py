"""Table: every hostile program, what must be seen of it in a sandbox, and what it does outside one.

A program prints lines of what it tried, a tab, and how that ended. `told` holds what it must tell
in a sandbox; `loose` what the same program tells when nothing confines it, which shows that the
attempt is a real one. Both are compared line by line, a line left out is an error.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from mlbench_exec import Verdict

CASES = Path(__file__).parent / "cases"
LEVELS = ("local", "docker-nested", "docker-fresh")
MIB = 1 << 20


class Between(msgspec.Struct, frozen=True):
    """A number in a range, and what comes after it."""

    low: int
    high: int
    word: str

    def __str__(self) -> str:
        return f"{self.low} to {self.high} {self.word}"

    def matches(self, result: str) -> bool:
        number, _, word = result.partition(" ")
        return number.isdigit() and self.low <= int(number) <= self.high and word == self.word


EITHER = "either"  # a limit that may be met, and need not be
Told = Mapping[str, str | Between]  # a str is a regular expression for all of the result
Look = Callable[[Verdict], None]


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One program. `at` replaces fields of it at the levels it names."""

    file: str
    title: str
    expected: str
    status: str = "passed"  # a regular expression
    exit_code: int | None = 0
    limit: str | None = None  # or `EITHER`, where `look` says
    told: Told = {}
    look: Look | None = None
    short: bool = False  # it is to meet a time limit of a second
    alone: bool = False  # its neighbours would slow it down for long
    loose: Told = {}
    loose_how: str = "plain"  # how it is run unconfined; see `test_unconfined`
    at: Mapping[str, Mapping[str, Any]] = {}
    arguments: tuple[str, ...] = ()

    @property
    def number(self) -> int:
        return int(self.file[:2])

    @property
    def name(self) -> str:
        return self.file.rpartition(".")[0]

    @property
    def language(self) -> str:
        return {"py": "python", "sh": "bash", "c": "c"}[self.file.rpartition(".")[2]]

    def on(self, level: str) -> "Case":
        """The case as it is at one level."""
        return msgspec.structs.replace(self, **self.at.get(level, {}))

    def check(self, verdict: Verdict) -> None:
        """Raise `AssertionError` unless the verdict is of the stated kind."""
        assert re.fullmatch(self.status, verdict.status), verdict
        if self.exit_code is not None:
            assert verdict.exit_code == self.exit_code, verdict
        assert self.limit in {EITHER, verdict.limit}, verdict
        assert_told(verdict.stdout, self.told, verdict.stderr)
        if self.look is not None:
            self.look(verdict)


def lines_of(stdout: str) -> list[tuple[str, str]]:
    pairs = (line.split("\t", 1) for line in stdout.split("\n") if "\t" in line)
    return [(what, result) for what, result in pairs]


def assert_told(stdout: str, told: Told, stderr: str = "") -> None:
    """Each line is expected and ended as expected, and none is missing."""
    if not told:
        return
    lines = lines_of(stdout)
    wrong = [line for line in lines if not _fits(line, told)]
    assert not wrong, f"{wrong} of {lines}; expected {dict(told)}; {stderr[-2000:]}"
    missing = told.keys() - {what for what, _ in lines}
    assert not missing, f"{missing} is missing in {lines}; {stderr[-2000:]}"


def _fits(line: tuple[str, str], told: Told) -> bool:
    expected = told.get(line[0])
    if isinstance(expected, Between):
        return expected.matches(line[1])
    return expected is not None and re.fullmatch(expected, line[1]) is not None


def read(case: Case, given: Mapping[str, Any], *, program: bytes | None = None) -> str:
    """The text of a case as a snippet; a C program comes as `program` and is unpacked."""
    text = (CASES / case.file).read_text() if case.language != "c" else _UNPACK
    if case.language == "bash":
        return f"# hostile.sh \n{text}"
    if program is not None:
        import base64

        given = {**given, "program": base64.b85encode(program).decode()}
        given["arguments"] = list(case.arguments)
    prelude = (CASES / "prelude.py").read_text()
    return f"import json\nGIVEN = json.loads({json.dumps(given)!r})\n{prelude}\n\n{text}"


_UNPACK = """
import base64

with open("/tmp/program", "wb") as file:
    file.write(base64.b85decode(GIVEN["program"]))
os.chmod("/tmp/program", 0o755)
os.execv("/tmp/program", ["program", *GIVEN["arguments"]])
"""


def _cut(stream: str, least: int) -> Look:
    def look(verdict: Verdict) -> None:
        text = getattr(verdict, stream)
        assert getattr(verdict, f"{stream}_bytes") >= least, verdict
        assert "bytes left out" in text
        assert len(text) <= 64 * 1024 + 100

    return look


def _kept_within(verdict: Verdict) -> None:
    """Its sandbox's limit, met between two looks, makes sending fail; else the watch ends it."""
    told = dict(lines_of(verdict.stdout))
    assert told["begun"] == "done", verdict
    if verdict.status == "passed":
        assert int(told["MiB"]) < 256 + 64 + 64, verdict  # memory, disk, and the agent's own
    else:
        assert verdict.limit == "memory", verdict


def _killed_child(verdict: Verdict) -> None:
    assert verdict.peak_memory_bytes is not None
    assert verdict.peak_memory_bytes < 500 * MIB


def _valid_json(verdict: Verdict) -> None:
    """Whatever was printed, the record stays one line of valid JSON that says the same."""
    line = msgspec.json.encode(verdict)
    assert b"\n" not in line
    assert json.loads(line)["stdout"] == verdict.stdout
    assert verdict.stdout.startswith("a\0b\ufffd")
    assert verdict.stdout_bytes == 13
    assert verdict.stderr_bytes == 11


def _not_parsed(verdict: Verdict) -> None:
    assert '"type": "result"' in verdict.stdout  # it is there, as text
    assert verdict.wall_s != 0.1


def _prompt(verdict: Verdict) -> None:
    assert verdict.wall_s is not None
    assert verdict.wall_s < 8, verdict


def _on_time(verdict: Verdict) -> None:
    assert verdict.counted_s is not None
    assert 1 <= verdict.counted_s <= 2.5, verdict


def _idle(verdict: Verdict) -> None:
    _on_time(verdict)
    assert verdict.cpu_s is not None
    assert verdict.cpu_s < 0.5, verdict


def _crashed(verdict: Verdict) -> None:
    assert verdict.signal == 11, verdict


OOM: dict[str, Any] = {"status": "out_of_memory", "exit_code": None, "limit": "memory"}
AT_LIMIT: dict[str, Any] = {
    "status": "passed_at_limit",
    "exit_code": None,
    "limit": "time",
    "short": True,
    "loose_how": "to a timeout",
}
# Outside a sandbox the kernel lets these through, or answers with what it thinks of the arguments.
_REACHES_THE_KERNEL = "done|E(?!PERM)[A-Z0-9]+"
_CALLS = [
    "setns",
    "umount2",
    "pivot_root",
    "chroot",
    "open_tree",
    "move_mount",
    "fsopen",
    "fspick",
    "mount_setattr",
    "bpf",
    "perf_event_open",
    "io_uring_setup",
    "io_uring_register",
    "keyctl",
    "add_key",
    "request_key",
    "userfaultfd",
    "kexec_load",
    "init_module",
    "finit_module",
    "delete_module",
    "process_vm_readv",
    "pidfd_getfd",
    "open_by_handle_at",
    "fanotify_init",
    "quotactl",
    "syslog",
    "acct",
    "swapon",
    "memfd_secret",
    "kcmp",
]
_NAMESPACES = ["user", "mount", "pid", "net", "ipc", "uts", "cgroup", "time"]
_REFUSED_CALLS = {f"unshare {name}": "EPERM" for name in _NAMESPACES} | dict.fromkeys(
    ("clone user", "mount", *_CALLS), "EPERM"
)

TABLE = (
    Case(
        file="01_fork_bomb.py",
        title="fork bomb",
        expected="stopped at the pids limit; all reaped",
        limit="pids",
        told={"forks": Between(40, 80, "EAGAIN")},
        loose={"forks": "300 done"},
        at={"local": {"limit": "pids"}},
    ),
    Case(
        file="01_fork_bomb_for_ever.sh",
        title="fork bomb without end",
        expected="stopped at the pids limit; all reaped",
        limit="pids",
        told={"lit": "done"},
        loose_how="never",
    ),
    Case(
        file="02_thread_bomb.py",
        title="thread bomb",
        expected="stopped at the pids limit",
        limit="pids",
        told={"threads": Between(40, 80, "EAGAIN")},
        loose={"threads": "300 done"},
    ),
    Case(
        file="03_heap_bomb.py",
        title="heap bomb",
        expected="out_of_memory",
        told={"MiB": "100"},
        loose={"MiB": "100|700"},
        **OOM,
    ),
    Case(
        file="04_child_out_of_memory.py",
        title="a child runs out of memory, the parent exits 0",
        expected="passed, memory named in the verdict",
        limit="memory",
        told={"child": "-9|1"},
        look=_killed_child,
        loose={"child": "0"},
    ),
    Case(
        file="05_fills_tmp.py",
        title="fills /tmp and /dev/shm",
        expected="ENOSPC inside",
        limit="disk",
        told={"/tmp": Between(50, 64, "ENOSPC"), "/dev/shm": Between(110, 128, "ENOSPC")},
        loose={"/tmp": "200 done", "/dev/shm": "200 done"},
    ),
    *(
        Case(
            file=f"06_{kind}_bomb.py",
            title=f"{title} bomb",
            expected="out_of_memory; no IPC objects left",
            told=before,
            loose=before | {"MiB": "700"},
            **OOM,
        )
        for kind, title, before in (
            ("mmap", "mmap", {}),
            ("memfd", "memfd", {}),
            ("sysv", "System V shared memory", {"segment": "done"}),
        )
    ),
    Case(
        file="07_fills_its_folder.py",
        title="fills the disk through its working folder",
        expected="ENOSPC inside at the limit",
        limit="disk",
        told={"MiB": Between(50, 64, "ENOSPC")},
        loose={"MiB": "200 done"},
        # A container's own layer has no size: it is watched, and the snippet ended.
        at={"docker-fresh": {"status": "failed|passed", "exit_code": None, "limit": "disk",
                             "told": {}}},
    ),
    Case(
        file="08_uses_up_inodes.py",
        title="uses up inodes",
        expected="ENOSPC inside",
        limit="disk",
        told={"files": Between(16000, 16400, "ENOSPC")},
        loose={"files": "20000 done"},
        at={"docker-fresh": {"status": "failed|passed", "exit_code": None, "limit": "disk",
                             "told": {}}},
    ),
    Case(
        file="09_sparse_file.py",
        title="1 TB sparse file",
        expected="harmless: nothing on disk, nothing reads it",
        told={"1 TiB": "done", "on disk": "0"},
        look=_prompt,
        loose={"1 TiB": "done", "on disk": "0"},
    ),
    Case(
        file="10_opens_all_files.py",
        title="opens all file descriptors",
        expected="EMFILE inside",
        told={"files": Between(200, 253, "EMFILE")},
        loose={"files": "1000 done"},
    ),
    Case(
        file="11_floods_stdout.py",
        title="10 GB to stdout (1 GB at the fresh level)",
        expected="cut, and said so; exit code decides",
        status="failed",
        exit_code=3,
        look=_cut("stdout", 10**9),
        loose_how="flood",
        alone=True,
    ),
    Case(
        file="12_floods_stderr.py",
        title="10 GB to stderr only (1 GB at the fresh level)",
        expected="cut, with its own budget",
        told={"stdout": "done"},
        look=_cut("stderr", 10**9),
        loose_how="flood",
        alone=True,
    ),
    Case(
        file="13_bytes_that_are_no_text.py",
        title="no newline, invalid UTF-8, NUL bytes",
        expected="kept or replaced, valid JSON",
        look=_valid_json,
        loose_how="same bytes",
    ),
    Case(
        file="14_forged_output.py",
        title="terminal escapes, HTML and forged result frames",
        expected="never parsed; failed with its own exit code",
        status="failed",
        exit_code=3,
        look=_not_parsed,
        loose_how="same bytes",
    ),
    Case(
        file="15_endless_loop.py",
        title="endless loop",
        expected="passed at the limit, on time",
        told={"runs": "done"},
        loose={"runs": "done"},
        look=_on_time,
        **AT_LIMIT,
    ),
    Case(
        file="16_sleeps_for_ever.py",
        title="sleeps for ever",
        expected="passed at the limit, at next to no CPU",
        told={"sleeps": "done"},
        loose={"sleeps": "done"},
        look=_idle,
        **AT_LIMIT,
    ),
    Case(
        file="17_deaf_to_signals.sh",
        title="ignores SIGTERM and SIGINT",
        expected="dies all the same",
        told={"deaf": "done"},
        loose={"deaf": "done"},
        look=_on_time,
        **AT_LIMIT,
    ),
    Case(
        file="18_stops_itself.py",
        title="stops itself with SIGSTOP",
        expected="the limit applies",
        told={"stops": "done"},
        loose={"stops": "done"},
        look=_on_time,
        **AT_LIMIT,
    ),
    Case(
        file="19_double_fork.py",
        title="double fork + setsid",
        expected="dies with the snippet",
        told={"left": "done"},
        look=_prompt,
        loose_how="survives",
    ),
    Case(
        file="20_nohup.sh",
        title="nohup cmd &, parent exits 0",
        expected="verdict at once; survivor killed",
        told={"left": "done"},
        look=_prompt,
        loose_how="survives",
    ),
    Case(
        file="21_survivor_holds_stdout.sh",
        title="a survivor holds stdout open",
        expected="no hang",
        told={"left": "done"},
        look=_prompt,
        loose={"left": "done"},
        loose_how="to a timeout",
    ),
    Case(
        file="22_kills_its_parent.py",
        title="kills its parent, the warm interpreter, pid 1",
        expected="ignored or refused; its exit code decides",
        status="failed",
        exit_code=7,
        told={"parent": "done|EPERM|ESRCH", "pid 1": "done|EPERM|ESRCH", "host's": "ESRCH"},
        loose={"host's": "done"},
        loose_how="victim",
    ),
    Case(
        file="23_kills_everything.py",
        title="kill -9 -1",
        expected="only its own processes die",
        told={"kill -1": "done", "own child": "9"},
        loose={"kill -1": "done", "own child": "9"},
        loose_how="with a bystander",
    ),
    Case(
        file="24_ptrace.c",
        title="ptraces the agent or a sibling",
        expected="EPERM",
        told=dict.fromkeys(
            ("seize pid 1", "seize parent", "seize sibling", "read sibling", "write sibling",
             "trace me"), "EPERM"),
        arguments=("all",),
        loose=dict.fromkeys(("seize sibling", "read sibling", "write sibling", "trace me"), "done"),
    ),
    Case(
        file="25_reads_others.py",
        title="reads memory, environment, descriptors of others",
        expected="not visible; no secrets",
        told={"others readable": "none", "host's process": "not seen", "secret": "not there"},
        loose={"others readable": "some", "host's process": "seen", "secret": "there"},
        loose_how="victim",
    ),
    Case(
        file="26_inherited_descriptors.py",
        title="looks for inherited file descriptors",
        expected="none but 0-2",
        told={"descriptors": "0 1 2"},
        loose={"descriptors": r"0 1 (\d+ )?2( \d+)?"},
        loose_how="passes a descriptor",
    ),
    Case(
        file="27_control_stream.py",
        title="writes to the agent's control stream",
        expected="not reachable",
        told={"streams": "none"},
        loose={"streams": "written to"},
        loose_how="own pid namespace",
    ),
    Case(
        file="28_exits_at_once.py",
        title="os._exit(0) in the first line",
        expected="passes by ML-Bench's rule; recorded",
        loose_how="same bytes",
    ),
    Case(
        file="29_patches_builtins.py",
        title="monkeypatches builtins and modules",
        expected="the next one is clean",
        told={"patched": "done"},
        loose_how="same interpreter",
    ),
    Case(
        file="30_site_packages.py",
        title="writes site-packages, sitecustomize, .pth",
        expected="gone, or refused",
        told={"site-packages": "EROFS|EACCES", "standard library": "EROFS|EACCES",
              "user's": "done"},
        loose={"user's": "done"},
        loose_how="next interpreter",
        at={"docker-fresh": {"told": {"site-packages": "done", "standard library": "done",
                                      "user's": "done"}}},
    ),
    Case(
        file="31_replaces_programs.py",
        title="replaces python, bash, ls",
        expected="gone, or refused",
        told={f"{what} {name}": "EROFS|EACCES|ETXTBSY"
              for name in ("python3", "bash", "ls") for what in ("replace", "write")},
        loose={f"{what} {name}": "done"
               for name in ("python3", "bash", "ls") for what in ("replace", "write")},
        at={"docker-fresh": {"told": {f"{what} {name}": "done|ETXTBSY"
              for name in ("python3", "bash", "ls") for what in ("replace", "write")}}},
    ),
    Case(
        file="32_edits_mounts.py",
        title="edits weights or data mounts",
        expected="EROFS",
        told=dict.fromkeys(("append", "make", "chmod", "utime", "xattr", "link", "rename",
                            "unlink"), "EROFS"),
        loose=dict.fromkeys(("append", "make", "chmod", "utime", "link", "rename", "unlink"),
                            "done") | {"xattr": "done|EOPNOTSUPP"},
    ),
    Case(
        file="33_looks_for_gold.py",
        title="looks for gold outputs, other samples, the journal",
        expected="not there",
        told={"gold": "not there"},
        loose={"gold": "found"},
    ),
    Case(
        file="34_symlinks_to_the_host.py",
        title="result paths that are symlinks to host files",
        expected="nothing of the host is read or written",
        told={"through the link": "ENOENT|EACCES", "link": "True"},
        loose={"through the link": "done", "link": "True"},
        loose_how="spoils the canary",
    ),
    Case(
        file="35_swaps_symlinks.py",
        title="swaps symlinks while files are copied in or out",
        expected="nothing of the host is read or written",
        told={"swapping": "done"},
        loose={"swapping": "done"},
        loose_how="copied out",
    ),
    Case(
        file="36_fifos_and_devices.py",
        title="FIFO or device where a file is expected",
        expected="refused; no blocking",
        told={"fifo temp.py": "done", "fifo README.md": "done", "device": "EPERM",
              "memory": "EPERM"},
        look=_prompt,
        loose=dict.fromkeys(("fifo temp.py", "fifo README.md", "device", "memory"), "done"),
    ),
    Case(
        file="37_deep_and_closed.py",
        title="deep trees, chmod 000, immutable bits in its folder",
        expected="reset works, or the sandbox goes",
        told={"depth": Between(1500, 1500, ""), "immutable": "E[A-Z]+", "closed": "done"},
        loose={"depth": "1500", "immutable": "done", "closed": "done"},
        loose_how="immutable",
    ),
    Case(
        file="38_hostile_archive.py",
        title="tar entries with ../ and hard links in a download",
        expected="nothing outside its own view is written",
        told={"..": "done|E[A-Z]+", "link": "done", "hard": "done|E[A-Z]+"},
        loose={"..": "done", "link": "done", "hard": "done"},
        loose_how="spoils the canary",
    ),
    Case(
        file="39_network.py",
        title="TCP, UDP and DNS to anywhere",
        expected="blocked",
        told={"tcp": "ECONNREFUSED|ENETUNREACH", "route": "ENETUNREACH",
              "route 6": "ENETUNREACH|EADDRNOTAVAIL|EAFNOSUPPORT", "interfaces": "lo",
              "dns": "EAI -[23]"},
        loose={"tcp": "done", "route": "done", "route 6": "done|E[A-Z]+",
               "interfaces": "lo .+|lo"},
    ),
    Case(
        file="40_metadata_address.py",
        title="link-local metadata addresses, the host's bridge address",
        expected="blocked",
        told={"metadata": "ENETUNREACH", "bridge": "ECONNREFUSED|ENETUNREACH"},
        loose={"metadata": "done|ENETUNREACH", "bridge": "done"},
    ),
    Case(
        file="41_abstract_sockets.py",
        title="abstract unix sockets of another run",
        expected="not reachable",
        told={"connect": "ECONNREFUSED", "listed": "no"},
        loose={"connect": "done", "listed": "yes"},
    ),
    Case(
        file="42_listens_on.py",
        title="listens on a port; the next snippet connects",
        expected="dead",
        told={"listening": "done"},
        look=_prompt,
        loose_how="survives and listens",
    ),
    Case(
        file="43_looks_for_the_daemon.py",
        title="looks for the Docker socket and /run of the host",
        expected="not there",
        told={"looked": "done"},
        loose={"looked": "done", "there": "/.*"},
    ),
    Case(
        file="44_setuid.py",
        title="setuid binaries, file capabilities",
        expected="no gain",
        told={"setuid": "user same 0+ 0+", "capable": "user same 0+ 0+", "chmod u+s": "EPERM",
              "capability": "EPERM|EOPNOTSUPP", "no new privileges": "1"},
        loose={"setuid": "user other .*[1-9a-f].*", "capable": "user same .*[1-9a-f].*",
               "chmod u+s": "done", "capability": "EPERM", "no new privileges": "0"},
        loose_how="ordinary user",
    ),
    Case(
        file="45_system_calls.py",
        title="mount, unshare, bpf, perf_event_open, io_uring, keyctl, …",
        expected="refused",
        told=_REFUSED_CALLS,
        loose=dict.fromkeys(_REFUSED_CALLS, _REACHES_THE_KERNEL),
    ),
    Case(
        file="45_other_numbers.c",
        title="the same by 32-bit and x32 numbers",
        expected="killed, or not there",
        told={"32-bit": "Bad system call", "x32": "ENOSYS|Bad system call"},
        loose={"32-bit": "done|Segmentation fault", "x32": "done|ENOSYS"},
    ),
    Case(
        file="46_keyrings.py",
        title="kernel keyring between runs",
        expected="nothing carried over",
        told=dict.fromkeys(("session", "user", "user session", "process"), "EPERM"),
        loose=dict.fromkeys(("session", "user", "user session", "process"), "done"),
        loose_how="keys",
    ),
    Case(
        file="47_vsock.py",
        title="AF_VSOCK, and other ways to the kernel by sockets",
        expected="refused",
        told={"vsock": "EAFNOSUPPORT", "packet": "EAFNOSUPPORT", "raw": "EPERM",
              "alg": "EAFNOSUPPORT", "netlink audit": "EPROTONOSUPPORT"},
        loose={"vsock": "done|EAFNOSUPPORT", "packet": "done|EAFNOSUPPORT", "raw": "done",
               "alg": "done|EAFNOSUPPORT", "netlink audit": "done|EPROTONOSUPPORT"},
    ),
    Case(
        file="48_flock.py",
        title="flock on files shared between sandboxes",
        expected="documented: a shared mount carries a bit",
        told={"shared mount": "EAGAIN", "own folder": "done"},
        loose={"shared mount": "EAGAIN", "own folder": "EAGAIN"},
        loose_how="locked",
    ),
    Case(
        file="49_core_dump.py",
        title="core dump with a piped core_pattern",
        expected="none on the host",
        status="killed",
        exit_code=None,
        told={"no limit": "EPERM"},
        look=_crashed,
        loose={"no limit": "done"},
        loose_how="core",
    ),
    Case(
        file="50_cgroups.py",
        title="writes to cgroup files, release_agent",
        expected="read-only or not there",
        told={"writable": "none", "new group": "ENOENT|EROFS|EACCES"},
        loose={"writable": "some", "new group": "done|EROFS|EPERM|ENOENT|EACCES"},
        loose_how="cgroup",
    ),
    Case(
        file="51_sets_the_clock.py",
        title="sets the clock",
        expected="EPERM",
        told={"clock_settime": "EPERM", "settimeofday": "EPERM"},
        loose={"clock_settime": "done", "settimeofday": "done"},
    ),
    Case(
        file="52_priorities.py",
        title="nice, affinity, real-time priority",
        expected="keeps within its own share",
        told={"nice": "EPERM|EACCES", "real time": "EPERM", "round robin": "EPERM", "cores": "1"},
        loose={"nice": "done", "real time": "done|EPERM", "round robin": "done|EPERM",
               "cores": r"\d+"},
    ),
    Case(
        file="53_zombies.py",
        title="leaves a thousand zombies",
        expected="reaped",
        limit="pids",
        told={"zombies": Between(40, 80, "EAGAIN"), "orphans": "1000 done"},
        loose={"zombies": "1000 done", "orphans": "1000 done"},
    ),
    Case(
        file="54_reads_stdin.sh",
        title="reads stdin",
        expected="end of file at once",
        told={"read": "1 ", "bytes": "0"},
        look=_prompt,
        loose={"read": "0 line", "bytes": "5"},
        loose_how="with stdin",
    ),
    # Found by trying what no table says: from 57 on.
    Case(
        file="57_kernel_memory.py",
        title="memory that the kernel keeps for it",
        expected="bounded by its own limit, not the machine's fault",
        status="passed|out_of_memory",
        exit_code=None,
        limit=EITHER,
        look=_kept_within,
        loose={"begun": "done", "MiB": Between(1000, 1300, "")},
    ),
    Case(
        file="58_quotas_of_the_machine.py",
        title="quotas that the whole machine shares",
        expected="refused, or a small part",
        told={"aio": "EPERM", "core scheduling": "EPERM", "huge pages": "ENOMEM",
              "huge memfd": "ENOMEM", "terminals": Between(100, 128, "ENOSPC")},
        loose={"aio": "done|EAGAIN", "core scheduling": "done|EINVAL|ENODEV",
               "huge pages": "done|ENOMEM", "huge memfd": "done|E[A-Z]+",
               "terminals": Between(200, 220, "done")},
        # There the terminals are Docker's own, and only open files bound them.
        at={"docker-fresh": {"told": {"aio": "EPERM", "core scheduling": "EPERM",
              "huge pages": "ENOMEM", "huge memfd": "ENOMEM", "terminals": "220 done"}}},
    ),
    Case(
        file="59_signals_by_files.py",
        title="signals by the owner of a descriptor",
        expected="the agent and its init live on",
        told={"sent": "done"},
        loose={"sent": "done"},
        loose_how="owner",
    ),
    Case(
        file="60_proc_and_sys.py",
        title="switches in /proc, /sys and /dev",
        expected="none can be written to",
        told={"writable": "none"},
        loose={"writable": "/.*"},
    ),
    Case(
        file="61_fills_another_folder.py",
        title="fills the disk beside its folder",
        expected="ENOSPC, or ended for it; a verdict",
        limit="disk",
        told={"MiB": Between(50, 64, "ENOSPC")},
        loose={"MiB": "700 done"},
        at={"docker-fresh": {"status": "failed|passed", "exit_code": None, "told": {}}},
    ),
)  # fmt: skip
