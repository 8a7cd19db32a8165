"""The same programs with nothing to confine them: each does what a sandbox keeps it from."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hostile import host
from hostile.house import NEXT_PORT, PYTHON
from hostile.table import TABLE, Case, assert_told, read

pytestmark = [
    pytest.mark.slow,
    pytest.mark.hostile,
    pytest.mark.skipif(os.geteuid() != 0, reason="some of what is shown needs root"),
]
UID = 54322  # nobody has it
WITHIN_S = 60.0
Run = Callable[["Stage", Case], str]  # to what it printed


class Stage:
    """A scratch folder on the host, and the programs' words with it."""

    def __init__(self, folder: Path, surroundings: host.Surroundings) -> None:
        self.folder = folder
        self.surroundings = surroundings
        self.data = folder / "data"
        self.data.mkdir(parents=True)
        (self.data / "file.txt").write_text("the host's\n")
        surroundings.furnish(self.data)
        self.work = folder / "work"
        self.work.mkdir()
        (self.work / "README.md").write_text("a small repository\n")
        self.home = folder / "home"
        self.home.mkdir()
        self.programs = []
        for name in ("python3", "bash", "ls"):
            shutil.copy("/usr/bin/ls", folder / name)
            self.programs.append(str(folder / name))
        self.given = surroundings.given(self.data, confined=False) | {
            "flood": 200 << 20,
            "targets": ["host's"],
            "programs": self.programs,
            "search": str(surroundings.folder),
        }
        self.environment = os.environ | {"HOME": str(self.home), host.SECRET: "a token"}

    def command(self, case: Case, **changes: Any) -> list[str | Path]:
        if case.language == "c":
            path = self.folder / case.name
            path.write_bytes(self.surroundings.compiled(case.file))
            path.chmod(0o755)
            return [path]
        path = self.work / "temp.py"
        path.write_text(read(case, self.given | changes))
        return ["bash" if case.language == "bash" else PYTHON, path]

    def start(self, case: Case, *before: str, **options: Any) -> "subprocess.Popen[bytes]":
        changes = options.pop("changes", {})
        return subprocess.Popen(
            [*before, *self.command(case, **changes)],
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.work,
            env=self.environment | options.pop("env", {}),
            start_new_session=True,
            **options,
        )

    def run(self, case: Case, *before: str, **options: Any) -> str:
        process = self.start(case, *before, **options)
        out, err = process.communicate(timeout=WITHIN_S)
        assert process.returncode in {0, case.exit_code or 0}, err.decode()
        return out.decode()


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[host.Surroundings]:
    with host.surroundings(tmp_path_factory.mktemp("host")) as surroundings:
        yield surroundings


@pytest.fixture
def stage(surroundings: host.Surroundings) -> Iterator[Stage]:
    folder = Path(tempfile.mkdtemp(prefix="stage-"))  # where other users come too
    folder.chmod(0o755)
    yield Stage(folder, surroundings)
    subprocess.run(["rm", "-rf", folder], check=True)


def _to_a_timeout(stage: Stage, case: Case) -> str:
    """It is still there after a second, also where it was asked to end."""
    process = stage.start(case)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=1.0)
        if case.number == 17:
            for number in (signal.SIGTERM, signal.SIGINT):
                os.killpg(process.pid, number)
            time.sleep(0.2)
            assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0].decode()


def _flood(stage: Stage, case: Case) -> str:
    """All of it is kept in memory."""
    process = stage.start(case)
    streams = process.communicate(timeout=WITHIN_S)
    assert max(len(stream) for stream in streams) >= 200 << 20
    return ""


def _same_bytes(stage: Stage, case: Case) -> str:
    process = stage.start(case)
    out, _ = process.communicate(timeout=WITHIN_S)
    assert process.returncode == case.exit_code
    if case.number == 13:
        assert out == b"a\0b\xff\xfe\xed\xa0\x80\xf4\x90\x80\x80z"
    if case.number == 14:
        assert b"\x1b]52;c;" in out
    return ""


def _survives(stage: Stage, case: Case) -> str:
    """Its survivor lives on after it."""
    mark = {"HOSTILE_HOUSE": str(stage.folder)}
    process = stage.start(case, env=mark)
    out = process.stdout
    assert out is not None
    said = out.readline().decode()
    assert process.wait(WITHIN_S) == 0
    time.sleep(0.2)
    left = host.processes_of(stage.folder)
    try:
        assert left
        if case.number == 42:
            socket.create_connection(("127.0.0.1", NEXT_PORT), 5).close()
    finally:
        for name in left:
            os.kill(int(name.split()[1]), signal.SIGKILL)
        process.communicate()
    return said


def _victim(stage: Stage, case: Case) -> str:
    """A process of its own to be the victim; in 22 a parent that is killed says nothing more."""
    with subprocess.Popen(["sleep", "1000"], stdin=subprocess.PIPE) as victim:
        said = stage.run(case, changes={"victim": victim.pid})
        if case.number == 22:
            assert victim.wait(10) == -signal.SIGTERM
            code = stage.command(case, targets=["parent"])
            shell = f"{PYTHON} {code[1]}; echo survived"
            lived = subprocess.run(["sh", "-c", shell], capture_output=True, cwd=stage.work)
            assert lived.returncode == -signal.SIGTERM
            assert b"survived" not in lived.stdout
        victim.kill()
    return said


def _with_a_bystander(stage: Stage, case: Case) -> str:
    """In one pid namespace without further walls, another's process dies with its own."""
    script, path = "sleep 1000 & by=$!; $1 $2; wait $by; echo bystander $? >&2", stage.command(case)
    process = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh", *path],
        capture_output=True, cwd=stage.work, timeout=WITHIN_S, check=False,
    )  # fmt: skip
    assert process.stderr == b"bystander 137\n"
    return process.stdout.decode()


def _passes_a_descriptor(stage: Stage, case: Case) -> str:
    with (stage.folder / "journal").open("w") as journal:
        return stage.run(case, pass_fds=[journal.fileno()])


def _own_pid_namespace(stage: Stage, case: Case) -> str:
    """Somebody's open pipe in the same namespace, of the same user, can be written to."""
    script = "sleep 1000 <&3 3<&- & $1 $2; kill %1"
    read_end, write_end = os.pipe()
    process = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "bash", "-c",
         f"exec 3<>/proc/self/fd/{read_end}; {script}", "bash", *stage.command(case, victim=2)],
        capture_output=True, cwd=stage.work, timeout=WITHIN_S, check=False, pass_fds=[read_end],
    )  # fmt: skip
    os.close(write_end)
    os.close(read_end)
    return process.stdout.replace(b"\0\0\0\2{}", b"").decode()


def _same_interpreter(stage: Stage, case: Case) -> str:
    """Who comes after it in the same process finds a wrong sum and forged JSON."""
    after = "; print(sum([1, 2]), json.dumps(1), sys.path[0])"
    code = f"import json, sys; exec(open({str(stage.command(case)[1])!r}).read()){after}"
    seen = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.endswith("-1 forged /hostile\n")
    return seen.stdout


def _next_interpreter(stage: Stage, case: Case) -> str:
    """The next Python of the same user runs what was left."""
    said = stage.run(case)
    ask = "import builtins; print(hasattr(builtins, 'hostile'))"
    seen = subprocess.run(
        [PYTHON, "-c", ask], capture_output=True, text=True, env={"HOME": str(stage.home)}
    )
    assert seen.stdout == "True\n"
    return said


def _spoils_the_canary(stage: Stage, case: Case) -> str:
    canary = stage.folder / "canary"
    canary.write_text("the host's\n")
    said = stage.run(case, changes={"canary": str(canary)})
    assert canary.read_text().startswith("HOSTILE")
    return said


def _copied_out(stage: Stage, case: Case) -> str:
    """Who copies files by name while it runs gets the canary's text sooner or later."""
    mark = {"HOSTILE_HOUSE": str(stage.folder)}
    process = stage.start(case, env=mark)
    assert process.stdout is not None
    said = process.stdout.readline().decode()
    try:
        until = time.monotonic() + WITHIN_S
        while time.monotonic() < until:
            try:
                if (stage.work / "README.md").read_text() == "the host's\n":
                    return said
            except FileNotFoundError:
                continue
        raise AssertionError("the race was never lost")
    finally:
        for name in host.processes_of(stage.folder):
            os.kill(int(name.split()[1]), signal.SIGKILL)
        process.communicate()


def _immutable(stage: Stage, case: Case) -> str:
    said = stage.run(case)
    with pytest.raises(PermissionError):
        (stage.work / "immutable").unlink()
    subprocess.run(["chattr", "-i", stage.work / "immutable"], check=True)
    subprocess.run(["rm", "-rf", stage.work], check=True)
    return said


def _ordinary_user(stage: Stage, case: Case) -> str:
    stage.work.chmod(0o777)
    return stage.run(case, user=UID, group=UID, extra_groups=[])


def _keys(stage: Stage, case: Case) -> str:
    """The keys are there until they are taken back."""
    said = stage.run(case)
    keys = Path("/proc/keys").read_text()
    assert stage.given["key"] in keys
    for line in keys.splitlines():
        if stage.given["key"] in line:
            subprocess.run(["python3", "-c", _REVOKE, line.split()[0]], check=True)
    return said


_REVOKE = "import ctypes, sys; ctypes.CDLL(None).syscall(250, 21, int(sys.argv[1], 16))"


def _locked(stage: Stage, case: Case) -> str:
    with stage.surroundings.lock(stage.data / "file.txt", stage.work / "README.md"):
        return stage.run(case)


def _core(stage: Stage, case: Case) -> str:
    """The kernel hands its memory to the host's program."""
    with stage.surroundings.core_handler() as cores:
        process = stage.start(case)
        out, _ = process.communicate(timeout=WITHIN_S)
        until = time.monotonic() + 10
        while not cores() and time.monotonic() < until:
            time.sleep(0.05)
        assert process.returncode == -signal.SIGSEGV
        assert cores()
    return out.decode()


def _cgroup(stage: Stage, case: Case) -> str:
    said = stage.run(case)
    for path in Path("/sys/fs/cgroup").glob("hostile-*"):
        path.rmdir()
    return said


def _with_stdin(stage: Stage, case: Case) -> str:
    process = stage.start(case, stdin=subprocess.PIPE)
    return process.communicate(b"line\nmore\n", timeout=WITHIN_S)[0].decode()


def _owner(stage: Stage, case: Case) -> str:
    """A process of the same user that is no pid 1 is killed so."""
    with subprocess.Popen(["sleep", "1000"]) as victim:
        said = stage.run(case, changes={"owners": [victim.pid]})
        assert victim.wait(10) < 0
    return said


HOW: dict[str, Run] = {
    "owner": _owner,
    "plain": Stage.run,
    "to a timeout": _to_a_timeout,
    "flood": _flood,
    "same bytes": _same_bytes,
    "survives": _survives,
    "survives and listens": _survives,
    "victim": _victim,
    "with a bystander": _with_a_bystander,
    "passes a descriptor": _passes_a_descriptor,
    "own pid namespace": _own_pid_namespace,
    "same interpreter": _same_interpreter,
    "next interpreter": _next_interpreter,
    "spoils the canary": _spoils_the_canary,
    "copied out": _copied_out,
    "immutable": _immutable,
    "ordinary user": _ordinary_user,
    "keys": _keys,
    "locked": _locked,
    "core": _core,
    "cgroup": _cgroup,
    "with stdin": _with_stdin,
}
CASES = [case for case in TABLE if case.loose_how != "never"]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_unconfined(stage: Stage, case: Case) -> None:
    """The program succeeds where nothing stands against it."""
    assert_told(HOW[case.loose_how](stage, case), case.loose)


def test_the_table_is_whole() -> None:
    """Every number but 55, which is made, and 56, which needs a GPU, has its program."""
    assert {case.number for case in TABLE} == set(range(1, 62)) - {55, 56}
    files = {path.name for path in (Path(__file__).parent / "cases").iterdir()}
    assert {case.file for case in TABLE} | {"prelude.py", "44_gains.c"} == files - {"__pycache__"}
