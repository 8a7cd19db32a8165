"""A program can't tell a warm interpreter from `python temp.py`, but by the clock."""

import platform
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from mlbench_exec.backends.local import LocalBackend
from mlbench_exec.environments import Environment, Mount
from mlbench_exec.samples import Language
from mlbench_exec.sandbox import Job, Limits, Observation, Sandbox
from warm.programs import COLD, PROGRAMS, has_fronts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LIMITS = Limits(memory_bytes=1 << 30, pids=128)
MODULES = {
    "ahead/__init__.py": "import os, warnings\nNAME = os.getenv('AHEAD_NAME', 'ahead')\n"
    "warnings.filterwarnings('ignore', message='of ahead')\n",
    "ahead/part.py": "import atexit, ahead_needs\nVALUE = ahead_needs.VALUE\n"
    "atexit.register(print, 'the part ends')\n",
    "ahead/final.py": "import functools, weakref\nclass A:\n    pass\nA.kept = A()\n"
    "def finish():\n    print('finished')\nweakref.finalize(A.kept, finish)\n"
    "import ahead.other\nweakref.finalize(A.kept, print, 'first')\n"
    "weakref.finalize(A.kept, functools.partial(print, 'second'))\n",
    "ahead/other.py": "import weakref\nclass A:\n    pass\nA.kept = A()\n"
    "weakref.finalize(A.kept, print, 'another')\n",
    "ahead_needs.py": "VALUE = 'needed'\n",
    "keeps.py": "import sys\nKEPT = []\ndef f(out=sys.stdout, err=sys.stderr):\n    pass\n",
    "optional_user.py": "try:\n    from optional_thing import NAME\nexcept ImportError:\n"
    "    NAME = 'none'\n",
    "optional_folder_user.py": "try:\n    from optional_folder.part import NAME\n"
    "except ImportError:\n    NAME = 'none'\n",
    "optional_spec.py": "import importlib.util\n"
    "FOUND = importlib.util.find_spec('optional_thing') is not None\n",
    "optional_chain.py": "try:\n    from needs_optional import NAME\nexcept ImportError:\n"
    "    NAME = 'none'\n",
    "needs_optional.py": "from optional_thing import NAME\n",
    "optional_broken.py": "try:\n    from broken_here import NAME\nexcept ImportError:\n"
    "    NAME = 'none'\n",
    "broken_here.py": "raise ImportError('no library')\n",
    "records.py": "from importlib._bootstrap import _find_spec as find\n",
    "hears.py": "import ctypes\nHEARD = []\nCALLS = [ctypes.CFUNCTYPE(None)(lambda word=word:"
    " HEARD.append(word)) for word in ('before', 'in the parent', 'in the child')]\n"
    "ctypes.CDLL(None).__register_atfork(*CALLS, None)\n",
    "torch/__init__.py": "from torch import library\n",
    "torch/library.py": "import os, weakref\nTABLE = ['add', 'mul']\nclass Library:\n    pass\n"
    "def _del_library(name):\n    TABLE.remove(name)\n    if os.path.exists('loud'):\n"
    "        print('without', name)\nKEPT = [Library() for _ in TABLE]\n"
    "for one, name in zip(KEPT, TABLE):\n    weakref.finalize(one, _del_library, name)\n",
}
FILES = {
    "data.txt": "data\n",
    "optional_thing.py": "NAME = 'a thing'\n",
    "optional_folder/part.py": "NAME = 'a part'\n",
    "broken_here.py": "NAME = 'whole'\n",
    "local_module.py": "NAME = 'local'\n",
    "broken.py": "import json\n\n\ndef f():\n    json.loads('[')\n\n\nf()\n",
    "late.py": "import os\nclass A:\n    def __del__(self, write=os.write):\n"
    "        for name in 'codecs', 'io', 'stat', 'os', 'site', 'sys', 'argparse':\n"
    "            try:\n"
    "                __import__(name)\n            except ImportError as e:\n"
    "                write(1, str(e).encode() + b'\\n')\n            else:\n"
    "                write(1, name.encode() + b'\\n')\n",
    "lib/in_lib.py": "X = 'in lib'\n",
    "shadow/ahead/__init__.py": "NAME = 'a shadow'\n",
    "shadow_dependency/ahead_needs.py": "VALUE = 'a shadow'\n",
}
PRELOAD: tuple[str, ...] = ("ahead", "ahead.part", "torch", "ahead.final", "hears")
PRELOAD += ("keeps", "optional_user", "optional_folder_user", "optional_spec", "optional_chain")
PRELOAD += ("optional_broken", "records")
PRELOAD += ("logging", "multiprocessing", "argparse", "asyncio", "unittest")
BASH = """
cat > temp.py.part <<'END OF PROGRAM'
%s
END OF PROGRAM
head -c -1 temp.py.part > temp.py; rm temp.py.part
python temp.py < /dev/null
echo "exit code $?"
for name in $(ls | sort); do
    [ -f $name ] && [ $name != temp.py ] && echo "== $name" && cat $name
done
"""
FEWEST_WARM = 60


class Place:
    """One sandbox that is warm and one that isn't, for the same environment."""

    def __init__(self, portal: BlockingPortal, environment: Environment) -> None:
        self.portal, self.environment = portal, environment
        self.sandboxes: dict[str, Sandbox] = {}

    def run(
        self, how: str, language: Language, code: str, limit_s: float = 60.0, path: str = ""
    ) -> Observation:
        job = Job(
            environment=self.environment,
            path=path,
            language=language,
            code=code.encode("utf-8", "surrogatepass"),
            time_limit_s=limit_s,
            limits=LIMITS,
        )
        return self.portal.call(self.sandboxes[how].run, job)


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Where modules are preloaded."""
    yield from opened(tmp_path_factory.mktemp("warm"), sys.executable, PRELOAD, slot=0)


@pytest.fixture(scope="module")
def bare_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Where nothing is."""
    yield from opened(tmp_path_factory.mktemp("bare"), sys.executable, (), slot=2)


def opened(
    folder: Path,
    python: str,
    preload: tuple[str, ...],
    slot: int,
    modules: dict[str, str] = MODULES,
) -> Iterator[Place]:
    folder.chmod(0o755)
    write(folder / "modules", modules)
    write(folder / "repo", FILES)
    (folder / "modules").mkdir(exist_ok=True)
    path = str(folder / "modules")
    environment = Environment(
        name="warm",
        github_ids=(1,),
        repo="warm",
        workdir=str(folder / "repo"),
        python=python,
        preload=preload,
        env={"PYTHONPATH": path},
        mounts=(Mount(source=path, target=path),),
    )
    with start_blocking_portal() as portal:
        place = Place(portal, environment)
        warm, cold = (
            LocalBackend(limits=LIMITS, preload_bytes=512 << 20),
            LocalBackend(limits=LIMITS),
        )
        with (
            portal.wrap_async_context_manager(warm),
            portal.wrap_async_context_manager(cold),
        ):
            for number, (how, backend) in enumerate((("warm", warm), ("cold", cold)), slot):
                place.sandboxes[how] = portal.call(backend.open, environment, number)
            try:
                yield place
            finally:
                for sandbox in place.sandboxes.values():
                    portal.call(sandbox.aclose)


def seen(observation: Observation) -> tuple[object, ...]:
    """What a program did, without addresses and process ids."""
    texts = (observation.stdout, observation.stderr)
    return (
        observation.exit_code,
        observation.signal,
        observation.limit,
        *(
            re.sub(r"0x[0-9a-f]+|(?<=pid=)\d+|line \d+:\s+\d+ (?=Killed|Aborted|Term)", "~", text)
            for text in texts
        ),
    )


def direct(code: str) -> str:
    return code


def through_bash(code: str) -> str:
    return BASH % code


def check_all(place: Place, language: Language, wrap: Callable[[str], str]) -> None:
    warm = compare(place, language, wrap, PROGRAMS)
    assert not [name for name in COLD if warm.get(name)]
    assert not [name for name, was_warm in warm.items() if not was_warm and name not in COLD]


def compare(
    place: Place, language: Language, wrap: Callable[[str], str], programs: dict[str, str]
) -> dict[str, bool]:
    """Which of them ran warm; all are the same, and enough of them were."""
    differ: dict[str, tuple[object, object]] = {}
    warm: dict[str, bool] = {}
    for name, code in programs.items():
        if language == "bash" and "\0" in code:
            continue
        expected = place.run("cold", language, wrap(code))
        got = place.run("warm", language, wrap(code))
        warm[name] = got.warm
        if seen(got) != seen(expected):
            differ[name] = (seen(expected), seen(got))
    assert not differ, differ
    assert sum(warm.values()) >= FEWEST_WARM, warm
    return warm


def test_enough_programs() -> None:
    """The suite has at least 80 programs."""
    assert len(PROGRAMS) >= 80


def test_python_programs_are_the_same_warm_and_cold(place: Place) -> None:
    """Output, exit code and signal of each program are those of `python temp.py`."""
    check_all(place, "python", direct)


def test_python_programs_are_the_same_where_nothing_is_preloaded(bare_place: Place) -> None:
    """A bare interpreter, which has imported nothing, makes no difference either."""
    bare_place.run("warm", "python", "pass")  # for a single snippet none is started
    warm = compare(bare_place, "python", direct, PROGRAMS)
    assert warm["patched_what_an_import_leaves_alone"]
    assert not [name for name, was_warm in warm.items() if not was_warm and name not in COLD]


@pytest.mark.skipif(
    not has_fronts(sys.executable),
    reason="a snippet doesn't see this Python, below /tmp",
)
def test_programs_called_by_bash_are_the_same_warm_and_cold(place: Place) -> None:
    """So it is with `python temp.py` in a script, with every file that the program leaves."""
    check_all(place, "bash", through_bash)


@pytest.mark.parametrize("language", ["python", "bash"])
def test_one_interpreter_serves_every_folder(place: Place, language: Language) -> None:
    """Each program starts where it is, whatever came before it: a longer path, a link, a script."""
    repo = Path(place.environment.workdir)
    long = "/".join(["a" * 200] * 15)
    (repo / long).mkdir(parents=True, exist_ok=True)
    if not (repo / "link").exists():
        (repo / "link").symlink_to("lib", target_is_directory=True)
    code = (
        "import os, sys\nprint(os.getcwd(), __file__, sys.argv, sys.path[0], os.environ['HOME'])\n"
        "print(getattr(sys, 'orig_argv', None))\nraise KeyError(open(__file__).read())"
    )
    wrap = direct if language == "python" else through_bash
    for path in ("./", long, "lib", "./link", "", "link", f"./{long}", "lib/../lib", "./"):
        place.run("warm", "bash" if language == "python" else "python", "exit")  # in between
        cold, warm = (place.run(how, language, wrap(code), path=path) for how in ("cold", "warm"))
        assert seen(warm) == seen(cold), path
        assert warm.warm, path


@pytest.mark.skipif(not has_fronts(sys.executable), reason="a snippet doesn't see this Python")
@pytest.mark.parametrize("path", ["./x.py", "lib/../x.py", "link/../x.py", "$PWD/./x.py", "/x.py"])
def test_a_script_is_called_what_bash_calls_it(place: Place, path: str) -> None:
    """Nothing is taken out of its path: behind a link, `..` is somewhere else."""
    code = (
        "mkdir -p far/lib; ln -sfn far/lib link; echo 'print(__file__, 1 / 0)' > x.py\n"
        f"echo 'print(__file__, 2)' > far/x.py; python {path}; echo $?"
    )
    cold, warm = (place.run(how, "bash", code) for how in ("cold", "warm"))
    assert seen(warm) == seen(cold)
    assert warm.warm == (path != "/x.py")


@pytest.mark.skipif(not has_fronts(sys.executable), reason="a snippet doesn't see this Python")
def test_a_program_called_by_bash_has_its_descriptors(place: Place) -> None:
    """All that the script had opened for it, whatever its helper had open itself."""
    code = (
        "cat > x.py <<'END'\nimport os\nfor fd in range(3, 9):\n"
        "    os.write(fd, b'%d\\n' % fd)\nEND\n"
        "exec 3>a 4>b 5>c 6>d 7>e 8>f\npython x.py\ncat a b c d e f"
    )
    cold, warm = (place.run(how, "bash", code) for how in ("cold", "warm"))
    assert (warm.stdout, warm.stderr) == (cold.stdout, cold.stderr) == ("3\n4\n5\n6\n7\n8\n", "")
    assert warm.warm


@pytest.mark.skipif(not has_fronts(sys.executable), reason="a snippet doesn't see this Python")
def test_a_redirected_stream_that_a_module_keeps_is_flushed(place: Place) -> None:
    """The module that was imported ahead holds the stream before, which goes the same way."""
    code = (
        "echo 'import keeps; print(1, file=keeps.f.__defaults__[0])' > x.py\n"
        "python x.py > out; cat out"
    )
    cold, warm = (place.run(how, "bash", code) for how in ("cold", "warm"))
    assert (warm.stdout, warm.stderr) == (cold.stdout, cold.stderr) == ("1\n", "")
    assert warm.warm


def test_finalizers_that_nobody_needs_are_spared(place: Place) -> None:
    """torch takes its table of operators apart, entry by entry; warm, only where it can be seen."""
    code = "import torch\nopen('loud', 'w').close()"
    cold, warm = (place.run(how, "python", code) for how in ("cold", "warm"))
    assert cold.stdout == "without mul\nwithout add\n"
    assert (warm.stdout, warm.warm) == ("", True)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the machine code is x86_64's")
def test_libraries_hear_of_a_fork_by_machine_code(place: Place) -> None:
    """As OpenBLAS asks to, for one, which stops its threads; the init is no copy for all that."""
    code = (
        "import hears, time\nfor _ in range(100):\n    name = open('/proc/1/comm').read().strip()\n"
        "    if name == 'init':\n        break\n    time.sleep(0.05)  # it isn't one yet\n"
        "print(name, *hears.HEARD[-4:])"
    )
    first, second = (place.run("warm", "python", code).stdout for _ in range(2))
    assert first.endswith("before in the child\n")
    assert second == "init before in the parent before in the child\n"
