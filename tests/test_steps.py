"""System calls on a list: taken by machine code and by Python, and their numbers."""

import ctypes
import errno
import os
import platform
import re
from pathlib import Path
from typing import Any

import pytest

from mlbench_exec.agent import frames, kernel, view, warm
from mlbench_exec.agent.pid1 import Forker
from mlbench_exec.agent.program import Program, Start
from mlbench_exec.agent.steps import SAVES, USES, Maker, Step, Steps, address, do

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the machine code is x86_64's"
)
HEADERS = ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h")


class Python(Forker):
    """What is left where machine code isn't known."""

    def __init__(self) -> None:
        super().__init__()
        self._code = None


@pytest.fixture(params=[Forker, Python])
def forker(request: pytest.FixtureRequest) -> Forker:
    made: Forker = request.param()
    return made


def writing(path: Path, *texts: bytes) -> list[Step]:
    flags = os.O_CREAT | os.O_EXCL | kernel.O_WRITE
    steps = [Step("openat", kernel.AT_FDCWD, os.fsencode(path), flags, 0o640, how=SAVES)]
    steps += [Step("write", 0, text, len(text), how=USES) for text in texts]
    return [*steps, Step("close", 0, how=USES)]


def test_a_result_that_is_saved_is_used_by_those_after_it(forker: Forker, tmp_path: Path) -> None:
    """Until another one is."""
    steps = [*writing(tmp_path / "one", b"a\0b", b"c"), *writing(tmp_path / "two", b"d")]
    before = len(os.listdir("/proc/self/fd"))
    forker.do(Steps(*steps[:3]) + Steps(*steps[3:]))
    assert (tmp_path / "one").read_bytes() == b"a\0bc"
    assert (tmp_path / "two").read_bytes() == b"d"
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("at", range(4))
def test_a_step_that_fails_is_told_and_ends_the_list(
    forker: Forker, tmp_path: Path, at: int
) -> None:
    """Wherever it stands; and the next list is another one."""
    steps = [Step("mkdirat", kernel.AT_FDCWD, b"%s/%d" % (bytes(tmp_path), n)) for n in range(3)]
    steps.insert(at, Step("fchdir", 12345, said="going nowhere"))
    for _ in range(2):
        with pytest.raises(kernel.Refused, match=r"going nowhere: Bad file descriptor") as raised:
            forker.do(Steps(*steps))
        assert raised.value.errno == errno.EBADF
        assert sorted(os.listdir(tmp_path)) == [str(n) for n in range(at)]
        for name in os.listdir(tmp_path):
            (tmp_path / name).rmdir()
    forker.do(Steps())


def test_a_list_longer_than_its_place_is_taken_all_the_same(forker: Forker, tmp_path: Path) -> None:
    """One call after the other."""
    name = bytes(tmp_path)
    forker.do(Steps(*[Step("mkdirat", kernel.AT_FDCWD, b"%s/%d" % (name, n)) for n in range(900)]))
    assert len(os.listdir(tmp_path)) == 900


def test_what_was_made_is_made_again(forker: Forker, tmp_path: Path) -> None:
    """With the same contents, modes and times; what failed is no part of it."""
    made, seen = Maker(), []
    made.make_folders(f"{tmp_path}/a/b")
    made.make_file(f"{tmp_path}/a/b/file", b"text")
    made.set_mode(f"{tmp_path}/a/b/file", 0o604)
    made.set_times(f"{tmp_path}/a/b/file", 1_000_000_007, 2_000_000_009)
    with pytest.raises(OSError, match="mkdir"):
        made.make_folder(f"{tmp_path}/a")
    for _ in range(2):
        status = (tmp_path / "a/b/file").stat()
        seen.append((status.st_mode, status.st_atime_ns, status.st_mtime_ns))
        assert (tmp_path / "a/b/file").read_text() == "text"
        (tmp_path / "a/b/file").unlink()
        (tmp_path / "a/b").rmdir()
        (tmp_path / "a").rmdir()
        forker.do(made.steps())
    assert seen == [(0o100604, 1_000_000_007, 2_000_000_009)] * 2


def test_arguments_stay_where_they_are() -> None:
    """Also once nobody else has them."""
    steps = Steps(*[Step("write", 1, os.urandom(2000), 2000) for _ in range(50)]) + Steps()
    other = [bytes([n % 256]) * 2000 for n in range(500)]
    for n, step in enumerate(steps.steps):
        place = int.from_bytes(steps.data[64 * n + 16 : 64 * n + 24], "little")
        text = step.args[1]
        assert isinstance(text, bytes)
        assert address(text) == place
        assert ctypes.string_at(place, 2000) == text
    assert len(other) == 500


@pytest.mark.parametrize("machine", range(2), ids=["x86_64", "aarch64"])
def test_calls_have_the_numbers_that_the_kernel_gives_them(machine: int) -> None:
    """As its headers say, where they are installed."""
    header = Path(HEADERS[machine])
    if not header.exists():
        pytest.skip(f"there is no {header} here: linux-libc-dev has it")
    lines = re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)\n", header.read_text())
    numbers = {name: int(number) for name, number in lines}
    assert kernel._NUMBERS
    for name, each in kernel._NUMBERS.items():
        assert numbers[name] == each[machine], name


def test_an_unknown_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the first call that its kernel would have to be asked for."""
    monkeypatch.setattr(kernel, "machine", lambda: "riscv64")
    with pytest.raises(kernel.Refused, match="fchdir on riscv64"):
        do(Steps(Step("fchdir", 1)))


def home(folder: Path, files: dict[str, int]) -> list[str]:
    """The names of what would be copied of a home with files of these sizes."""
    for name, size in files.items():
        (folder / name).write_bytes(b"x" * size)
    return [os.path.basename(path) for path, _, _ in view._plain_files(str(folder), os.getuid())]


def test_a_small_home_is_copied(tmp_path: Path) -> None:
    """It and its files; up to so many of them and so many bytes."""
    assert home(tmp_path, {}) == [tmp_path.name]
    assert home(tmp_path, {".profile": 0}) == [tmp_path.name, ".profile"]
    names = [f"{n}" for n in range(view.MOST_COPIED_FILES - 2)]
    largest = {"large": view.MOST_COPIED_BYTES}
    assert len(home(tmp_path, dict.fromkeys(names, 0) | largest)) == view.MOST_COPIED_FILES + 1


@pytest.mark.parametrize("what", ["many", "large", "folder", "link", "FIFO", "hard", "xattr"])
def test_any_other_home_is_laid_over(tmp_path: Path, what: str) -> None:
    """Where copying took longer, or a copy could be told from the original."""
    path = tmp_path / "home" / what
    path.parent.mkdir()
    files = {"file": 1}
    if what == "many":
        files = {f"{n}": 0 for n in range(view.MOST_COPIED_FILES + 1)}
    elif what == "large":
        files = {"one": view.MOST_COPIED_BYTES, "two": 1}
    elif what == "folder":
        path.mkdir()
    elif what == "link":
        path.symlink_to("file")
    elif what == "FIFO":
        os.mkfifo(path)
    elif what == "hard":
        (tmp_path / "other").touch()
        path.hardlink_to(tmp_path / "other")
    else:
        path.touch()
        os.setxattr(path, "user.name", b"value")
    assert home(path.parent, files) == []


def test_a_home_of_somebody_elses_is_laid_over(tmp_path: Path) -> None:
    """Its files would seem to be the snippet's."""
    assert view._plain_files(str(tmp_path), os.getuid() + 1) == []


def test_the_host_is_told_the_same_by_either_encoder() -> None:
    """C's own and that of a Python without it; as UTF-16 escapes, and numbers as they are."""
    from json import JSONEncoder

    message = {
        "text": 'a "quoted"\\ \u00e9\U0001f600\ud800\n',
        "numbers": [0, -1, 1.5, 1e-7, 3e300, True, None],
        "nested": {"a": {"b": []}},
    }
    ours = "".join(frames.encode(message, 0))
    assert ours == "".join(JSONEncoder(separators=(",", ":")).iterencode(message))


LIMITS = {"files": 64, "pids": 8, "memory": None, "time": 5.0}
OTHERS: dict[str, dict[str, Any]] = {
    "variables": {"variables": {"A": "2"}},
    "limits": {"limits": dict(LIMITS, files=63)},
    "folder": {"cwd": 12},
    "stream": {"err": 13},
    "interpreter": {"python": "/usr/bin/python3.1"},
    "language": {"language": "bash"},
    "nothing": {},
    "script": {"code": b"2"},
}


@pytest.mark.parametrize("differing", OTHERS)
def test_steps_are_made_again_where_more_than_the_script_differs(differing: str) -> None:
    """Bash is given its script with its name, so for bash they always are."""
    sent = {"uid": 1, "gid": 1, "inner_uid": 1, "inner_gid": 1, "nproc": True, "filter": b""}
    start = Start(warm.World(dict(sent, has_memory=True)))

    def steps(**fields: Any) -> tuple[Steps, list[str]]:
        asked = {"language": "python", "code": b"1", "python": "/usr/bin/python3", **fields}
        limits, cwd, err = asked.get("limits", LIMITS), asked.get("cwd", 10), asked.get("err", 11)
        path = {"PATH": "/usr/bin:/bin"}
        one = Program(
            asked["language"],
            asked["code"],
            "/",
            "/",
            asked.get("variables", {"A": "1"}) | path,
            asked["python"],
            None,
        )
        made = start.execution(one, dict(limits), cwd, 9, err, 8).steps
        return made, [repr(step) for step in made.steps]

    first, listed = steps()
    again, others = steps(**OTHERS[differing])
    assert (again is first) == (differing in {"nothing", "script"})
    if again is first:
        assert others == listed
    bash, _ = steps(language="bash")
    assert steps(language="bash", code=b"2")[0] is not bash
