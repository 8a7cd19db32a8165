"""Conformance: snippets with what any sandbox must have seen of them, as data.

A backend's tests run every one of `CASES` in an environment whose workdir has a folder `package`
with a folder `deep`, some files in each, and a `python` of 3.7 or later, under `LIMITS` and
without a network. The cases may share a sandbox: each must find it as if it were the first.
"""

import json
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from mlbench_exec.samples import Language
from mlbench_exec.sandbox import Limits, Observation

__all__ = ["CASES", "DIRTY", "FINGERPRINT", "LIMITS", "Case"]

MIB = 1 << 20
LIMITS = Limits(
    memory_bytes=256 * MIB,
    cpus=2.0,
    pids=64,
    disk_bytes=64 * MIB,
    open_files=256,
    output_bytes=64 * 1024,
)
Check = Callable[[Observation], None]


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One snippet. `check` raises `AssertionError` if the observation breaks the promise."""

    name: str
    language: Language
    code: bytes
    check: Check
    path: str = "./"
    time_limit_s: float = 10.0
    clock: Literal["fair", "wall"] = "fair"


def _sees(**expected: Any) -> Check:
    """A check: these fields, and of the others an ordinary exit with 0 and no limit met."""
    ordinary = {"exit_code": 0, "signal": None, "limit": None, "oom_kills": 0}

    def check(seen: Observation) -> None:
        wanted = ordinary | expected
        found = {field: getattr(seen, field) for field in wanted}
        assert found == wanted, f"{found} is not {wanted}: {seen}"

    return check


def _python(name: str, code: str, check: Check, **fields: Any) -> Case:
    return Case(name=name, language="python", code=code.encode(), check=check, **fields)


def _bash(name: str, code: str, check: Check, **fields: Any) -> Case:
    return Case(name=name, language="bash", code=code.encode(), check=check, **fields)


# How a snippet ends.


def _zero_division(seen: Observation) -> None:
    _sees(exit_code=1)(seen)
    assert 'temp.py", line 1' in seen.stderr
    assert seen.stderr.endswith("ZeroDivisionError: division by zero\n")


def _runs_into_the_limit(seen: Observation) -> None:
    _sees(exit_code=None, limit="time")(seen)
    assert 0.6 <= seen.counted_s <= 2, seen


def _spins_into_the_limit(seen: Observation) -> None:
    _runs_into_the_limit(seen)
    assert seen.cpu_s >= 0.3, seen


def _sleeps_into_the_limit(seen: Observation) -> None:
    _runs_into_the_limit(seen)
    assert seen.cpu_s <= 0.3, seen


def _out_of_memory(seen: Observation) -> None:
    assert seen.limit == "memory", seen
    assert seen.oom_kills >= 1
    assert (seen.exit_code, seen.signal) in {(None, 9), (None, None)}


def _child_out_of_memory(seen: Observation) -> None:
    assert seen.limit == "memory", seen
    assert seen.oom_kills >= 1
    assert seen.exit_code == 0
    assert seen.stdout == "child -9\n"


def _exact_memory(seen: Observation) -> None:
    assert seen.limit == "memory", seen
    reached = int(seen.stdout.split()[-1])
    assert LIMITS.memory_bytes is not None
    limit = LIMITS.memory_bytes / MIB
    assert 0.85 * limit <= reached <= 1.15 * limit, f"{reached} MiB of {limit}"


_EAT = "x = []\nwhile True: x.append(bytearray(4 << 20))"
_ENDS = (
    _bash("exit-0", "exit 0", _sees()),
    _bash("exit-n", "exit 3", _sees(exit_code=3)),
    _python("sys-exit", "import sys; sys.exit(7)", _sees(exit_code=7)),
    _python("uncaught-exception", "1/0", _zero_division),
    _python("cpu-loop", "while True: pass", _spins_into_the_limit, time_limit_s=0.7),
    _python(
        "cpu-loop-by-the-wall-clock",
        "while True: pass",
        _runs_into_the_limit,
        time_limit_s=0.7,
        clock="wall",
    ),
    _bash("sleep", "sleep 1000", _sleeps_into_the_limit, time_limit_s=0.7),
    _bash(
        "deaf-to-signals",
        "trap '' TERM INT HUP QUIT; while :; do sleep 1; done",
        _runs_into_the_limit,
        time_limit_s=0.7,
    ),
    _python(
        "stops-itself",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
        _runs_into_the_limit,
        time_limit_s=0.7,
    ),
    _python("out-of-memory", _EAT, _out_of_memory),
    _python(
        "child-out-of-memory",
        "import subprocess, sys\n"
        f"done = subprocess.run([sys.executable, '-c', {_EAT!r}])\n"
        "print('child', done.returncode)",
        _child_out_of_memory,
    ),
    _python(
        "memory-limit-is-exact",
        "import time\nx = []\nwhile True:\n"
        "    x.append(bytearray(b'x') * (2 << 20)); print(2 * len(x), flush=True)\n"
        "    time.sleep(0.005)",
        _exact_memory,
    ),
    _python("segfault", "import ctypes; ctypes.string_at(0)", _sees(exit_code=None, signal=11)),
    _bash("killed-by-a-signal", "kill -KILL $$", _sees(exit_code=None, signal=9)),
    _bash("a-child-is-killed", "sh -c 'kill -SEGV $$'; exit $?", _sees(exit_code=139)),
    _bash("last-command-passes", "false; true", _sees()),
    _bash("last-command-fails", "true; false", _sees(exit_code=1)),
    _bash("command-not-found", "no-such-command", _sees(exit_code=127)),
)

# How a snippet is started.


def _all_true(seen: Observation) -> None:
    """The snippet prints one JSON object: what it looked at, and whether it is as it should."""
    _sees()(seen)
    answers = json.loads(seen.stdout)
    assert answers, seen
    assert all(answers.values()), answers


_LOOK = "import getpass, json, os, pwd, signal, socket, sys\nprint(json.dumps({%s}))"


def _look(name: str, **questions: str) -> Case:
    return _python(
        name, _LOOK % ", ".join(f"{key!r}: bool({q})" for key, q in questions.items()), _all_true
    )


_STARTS = (
    _look(
        "python-temp.py",
        argv="sys.argv == ['temp.py']",
        main="__name__ == '__main__'",
        file="os.path.abspath(__file__) == os.getcwd() + '/temp.py'",
        path="sys.path[0] == os.getcwd()",
        flags="sys.flags.isolated == 0 and sys.flags.no_site == 0",
        spec="__spec__ is None",
        umask="os.umask(0o22) == 0o22",
    ),
    _look(
        "clean-process",
        ignored="{s for s in signal.Signals if signal.getsignal(s) is signal.SIG_IGN}"
        " <= {signal.SIGPIPE, getattr(signal, 'SIGXFSZ', 0)}",
        blocked="not signal.pthread_sigmask(signal.SIG_BLOCK, [])",
        descriptors="len(os.listdir('/proc/self/fd')) == 4",  # the fourth reads the folder
        agents="not [v for v in os.environ if 'MLBENCH' in v.upper()]",
    ),
    _look(
        "home-and-name",
        home="os.path.isdir(os.environ['HOME']) and os.access(os.environ['HOME'], os.W_OK)",
        expanded="os.path.expanduser('~') == os.environ['HOME']",
        user="getpass.getuser() == pwd.getpwuid(os.getuid()).pw_name",
        logname="os.environ['USER'] == os.environ['LOGNAME'] == getpass.getuser()",
        tmp="os.access('/tmp', os.W_OK)",
        clean_tmp="not [n for n in os.listdir('/tmp') if not (os.getcwd() + os.environ['PATH'])"
        ".count('/tmp/' + n)]",
        host="bool(socket.gethostname())",
        resolves="socket.gethostbyname('localhost') == '127.0.0.1'",
    ),
    _bash("bash-c", 'echo "$0" $#; grep SigIgn /proc/self/status | tr -d "0\\t"',
          _sees(stdout="bash 0\nSigIgn:\n")),
    _bash("python-on-the-path", "python -c 'print(42)'", _sees(stdout="42\n")),
    _bash("sub-folder", "basename $PWD", _sees(stdout="package\n"), path="package"),
    _bash("sub-folder-with-a-slash", "basename $PWD", _sees(stdout="deep\n"),
          path="/package/deep/"),
    _python("python-in-a-sub-folder", "import os; print(os.path.basename(os.getcwd()))",
            _sees(stdout="deep\n"), path="./package/deep"),
    _python("stdin-is-empty", "import sys; print(repr(sys.stdin.read()))", _sees(stdout="''\n")),
    _bash("bash-stdin-is-empty", "read line; echo $? $line", _sees(stdout="1\n")),
    _python(
        "multiprocessing",
        "import multiprocessing as m\nfrom multiprocessing import shared_memory\n"
        "block = shared_memory.SharedMemory(create=True, size=8 << 20)\n"
        "block.buf[:8 << 20] = bytes(8 << 20); block.close(); block.unlink()\n"
        "with m.Pool(2) as pool: print(pool.map(abs, [-1, 2]))",
        _sees(stdout="[1, 2]\n"),
    ),
    _python(
        "own-loopback",
        "import socket\nlistener = socket.create_server(('127.0.0.1', 0))\n"
        "caller = socket.create_connection(listener.getsockname(), 5)\n"
        "caller.sendall(b'hello'); print(listener.accept()[0].recv(5).decode())",
        _sees(stdout="hello\n"),
    ),
)  # fmt: skip

# What a snippet says.


def _cut_output(stream: str) -> Check:
    def check(seen: Observation) -> None:
        _sees(**{f"{stream}_bytes": 10_000_009})(seen)
        text = getattr(seen, stream)
        assert text.startswith("head:xxxx"), text[:50]
        assert text.endswith("xxxxtail")
        assert "bytes left out" in text
        assert len(text) <= LIMITS.output_bytes + 100

    return check


_SAYS = (
    _python("10-MB-to-stdout", "import os\nos.write(1, b'head:')\n"
            "for _ in range(1000): os.write(1, b'x' * 10000)\nos.write(1, b'tail')",
            _cut_output("stdout")),
    _python("10-MB-to-stderr", "import sys\nsys.stderr.write('head:' + 'x' * 10**7 + 'tail')",
            _cut_output("stderr")),
    _python("bytes-that-are-no-text",
            r"import os; os.write(1, b'a\0b\xff\xfe\xe2\x82\xacz')",
            _sees(stdout="a\0b\ufffd\ufffd\u20acz", stdout_bytes=9)),
    _bash("no-newline", "printf out; printf err >&2",
          _sees(stdout="out", stderr="err", stdout_bytes=3, stderr_bytes=3)),
    _python("exactly-the-limit", f"import os; os.write(1, b'x' * {LIMITS.output_bytes})",
            _sees(stdout="x" * LIMITS.output_bytes, stdout_bytes=LIMITS.output_bytes)),
)  # fmt: skip

# What a snippet leaves running.


def _prompt(seen: Observation) -> None:
    _sees(stdout="done\n")(seen)
    assert seen.wall_s - seen.stalled_s < 5, seen


_LEAVES = (
    _bash("background-survivor", "sleep 1000 & echo done", _prompt),
    _bash("survivor-in-its-own-session", "setsid sleep 1000 & echo done", _prompt),
    _bash("nohup-survivor", "nohup sleep 1000 >/dev/null 2>&1 & echo done", _prompt),
    _bash("double-fork", "(setsid sh -c 'sleep 1000 & sleep 1000' &) ; echo done", _prompt),
    _bash("many-short-children",
          "for i in {1..15}; do for j in {1..20}; do (:) & done; wait; done; echo done", _prompt),
)  # fmt: skip

# What a snippet may use.


def _fork_bomb(seen: Observation) -> None:
    _sees(limit="pids")(seen)
    assert LIMITS.pids is not None
    assert 0.5 * LIMITS.pids <= int(seen.stdout) <= LIMITS.pids + 20, seen.stdout


def _disk_full(seen: Observation) -> None:
    """ENOSPC inside, or ended for it where a folder can't be given a size."""
    assert seen.limit == "disk", seen
    if seen.exit_code is not None:
        assert seen.exit_code == 0
        name, written = seen.stdout.split()
        assert name == "ENOSPC"
        assert 0.8 * LIMITS.disk_bytes <= int(written) <= LIMITS.disk_bytes


def _tmp_full(seen: Observation) -> None:
    _disk_full(seen)
    assert seen.exit_code == 0, seen


def _plausible(seen: Observation) -> None:
    _sees()(seen)
    assert 0.55 <= seen.wall_s <= 5, seen
    assert 0.28 <= seen.cpu_s <= 1.2, seen
    assert 0 <= seen.stalled_s <= seen.wall_s
    assert 0.5 <= seen.counted_s <= seen.wall_s
    assert 100 * MIB <= seen.peak_memory_bytes <= 160 * MIB, seen.peak_memory_bytes


_FILL = (
    "import errno\nwritten = 0\nwith open(%r, 'wb', 0) as file:\n    try:\n"
    "        while True: written += file.write(bytes(1 << 20))\n"
    "    except OSError as error: print(errno.errorcode[error.errno], written)"
)
_USES = (
    _python(
        "fork-bomb",
        "import os, signal\nn = 0\ntry:\n    while n < 5000:\n"
        "        if os.fork() == 0: signal.pause()\n        n += 1\n"
        "except BlockingIOError: print(n)",
        _fork_bomb,
    ),
    _python(
        "thread-bomb",
        "import threading, time\nn = 0\ntry:\n    while n < 5000:\n"
        "        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
        "        n += 1\nexcept RuntimeError: print(n, flush=True)",
        _fork_bomb,
    ),
    _python("full-workdir", _FILL % "big", _disk_full),
    _python("full-tmp", _FILL % "/tmp/big", _tmp_full),
    _python(
        "open-files",
        "import errno\nfiles = []\ntry:\n    while True: files.append(open('/dev/null'))\n"
        "except OSError as error: print(errno.errorcode[error.errno], len(files))",
        _sees(stdout=f"EMFILE {LIMITS.open_files - 3}\n"),
    ),
    _python(
        "figures",
        "import time\nx = bytearray(b'x') * (100 << 20)\nuntil = time.process_time() + 0.3\n"
        "while time.process_time() < until: pass\ntime.sleep(0.3)",
        _plausible,
    ),
)

# What a snippet can't do.

_REFUSED = (
    _python(
        "no-capabilities",
        "status = dict(line.split(':\\t') for line in open('/proc/self/status'))\n"
        "print([int(status['Cap' + kind], 16) for kind in ('Inh', 'Prm', 'Eff', 'Amb')],"
        " status['NoNewPrivs'].strip(), status['Seccomp'].strip())",
        _sees(stdout="[0, 0, 0, 0] 1 2\n"),
    ),
    _python(
        "no-namespaces-and-mounts",
        "import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "for flags in 0x10000000, 0x20000, 0x20000000, 0x40000000:\n"
        "    print(libc.unshare(flags), errno.errorcode[ctypes.get_errno()])\n"
        "print(libc.mount(b'none', b'/tmp', b'tmpfs', 0, None),"
        " errno.errorcode[ctypes.get_errno()])\n",
        _sees(stdout="-1 EPERM\n" * 5),
    ),
    _python(
        "no-network",
        "import errno, socket\nprint([name for _, name in socket.if_nameindex()])\n"
        "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:\n"
        "    try: probe.connect(('192.0.2.1', 9))\n"
        "    except OSError as error: print(errno.errorcode[error.errno])",
        _sees(stdout="['lo']\nENETUNREACH\n"),
    ),
)

# Code that is hardly code: each has a result of its own.


def _own_failure(seen: Observation) -> None:
    assert seen.exit_code not in (0, None), seen
    assert seen.limit is None
    assert seen.stderr


def _ends_by_itself(seen: Observation) -> None:
    """Python up to 3.11 stops reading at a NUL byte, later ones refuse it."""
    assert (seen.exit_code, seen.limit) in {(0, None), (1, None)}, seen


_ODD = (
    _python("nul-byte", "print(1)\0", _ends_by_itself),
    _bash("nul-byte-in-bash", "echo 1\0", _own_failure),
    Case(name="lone-surrogate", language="python", code=b"print('\xed\xa0\x80')",
         check=_own_failure),
    Case(name="lone-surrogate-in-bash", language="bash", code=b"printf '\xed\xa0\x80' | wc -c",
         check=_sees(stdout="3\n")),
    _python("4-MB-of-python", f"print(len('{'x' * (4 << 20)}'))", _sees(stdout="4194304\n")),
    _bash("bash-of-100-KiB", f": {'x' * (100 << 10)}; echo end", _sees(stdout="end\n")),
    _bash("bash-of-200-KiB", f": {'x' * (200 << 10)}; echo end", _own_failure),
    _bash("4-MB-of-bash", f": {'x' * (4 << 20)}; echo end", _own_failure),
    _python("deep-nesting", "(" * 100_000, _own_failure),
    _python("no-code", "", _sees(stdout="")),
    _bash("no-code-in-bash", "", _sees(stdout="")),
)  # fmt: skip

CASES: tuple[Case, ...] = (
    *_ENDS,
    *_STARTS,
    *_SAYS,
    *_LEAVES,
    *_USES,
    *_REFUSED,
    *_ODD,
)

# Pristine: what `FINGERPRINT` prints is the same before and after `DIRTY` in any workdir.

FINGERPRINT = _python(
    "fingerprint",
    "import hashlib, os\nlines = []\n"
    "for root in (os.getcwd(), os.environ['HOME'], '/tmp', '/var/tmp', '/dev/shm'):\n"
    "    for folder, folders, files in os.walk(root):\n"
    "        for name in sorted(files + folders):\n"
    "            path = os.path.join(folder, name)\n"
    "            if path == os.path.abspath('temp.py'): continue\n"
    "            text = open(path, 'rb').read() if os.path.isfile(path) else b''\n"
    "            mode = oct(os.stat(path).st_mode)\n"
    "            lines.append(' '.join((path, mode, hashlib.sha256(text).hexdigest()[:8])))\n"
    "print('\\n'.join(sorted(lines)))",
    _sees(),
)
DIRTY = _python(
    "dirty",
    "import os, shutil\ncount = 0\nhere = os.getcwd()\n"
    "for folder, folders, files in list(os.walk('.')):\n"
    "    with open(os.path.join(folder, 'new'), 'w') as file: file.write('new')\n"
    "    os.mkdir(os.path.join(folder, 'new-folder'))\n"
    "    for number, name in enumerate(sorted(files)):\n"
    "        path = os.path.join(folder, name)\n"
    "        if os.path.islink(path) or path == './temp.py': continue\n"
    "        with open(path, 'a') as file: file.write('more')\n"
    "        with open(path) as file: assert file.read().endswith('more')\n"
    "        os.rename(path, path + '.old'); os.rename(path + '.old', path)\n"
    "        os.chmod(path, 0o600)\n"
    "        if number % 2: os.unlink(path)\n"
    "        count += 1\n"
    "assert count, 'the repository is empty'\n"
    "shutil.rmtree('package'); os.makedirs('package/other')\n"
    "open('package/other/file', 'w').close()\n"
    "os.rename('package/other', 'package/moved'); os.rename('package', 'moved')\n"
    "for root in (os.environ['HOME'], '/tmp', '/var/tmp', '/dev/shm'):\n"
    "    os.makedirs(os.path.join(root, 'a', 'b'))\n"
    "    with open(os.path.join(root, 'a', 'b', 'file'), 'w') as file: file.write('x')\n"
    "print(count)",
    _sees(),
)  # fmt: skip
