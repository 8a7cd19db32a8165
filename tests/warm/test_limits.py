"""What warm interpreters must not change, and when there are none."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread
import msgspec
import pytest

from conftest import alter_agent
from mlbench_exec.backends.local import LocalBackend
from mlbench_exec.environments import Environment, Mount
from mlbench_exec.sandbox import Job, Limits, Observation, Sandbox
from warm.programs import has_fronts

pytestmark = [pytest.mark.slow, pytest.mark.asyncio]
LIMITS = Limits(memory_bytes=1 << 30, pids=128)
SLOW = "import time\ntime.sleep(0.6)\n"
REFUSED = {
    "import threading, time\nthreading.Timer(99, print).start()": "starts threads",
    "print('hello')": "prints 'hello'",
    "import signal\nsignal.signal(signal.SIGUSR1, lambda *a: None)": "changes signal handlers",
    "import os\nos.environ['NEW'] = '1'": "changes environment variables (NEW: 1)",
    "import os\nos.getcwd = lambda: 'x'": "changes os.getcwd",
    "kept = open('/etc/passwd')": "keeps files open",
    "import mmap\nkept = mmap.mmap(-1, 4096)": "shares memory",
    "import tempfile\nkept = tempfile.mkdtemp()": "writes files",
    "1 / 0": "can't be imported: ZeroDivisionError",
    "import sys\nsys.path.append('/x')": "changes sys.path",
    "import os\nos.umask(0o077)": "changes the umask",
    "import ctypes\nlibc = ctypes.CDLL(None)\n"
    "libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, libc.pause, None)": (
        "starts threads of a library"
    ),
    "import sys, types\ncuda = types.SimpleNamespace(is_initialized=lambda: True)\n"
    "sys.modules['torch'] = types.SimpleNamespace(cuda=cuda)": "touches a GPU",
}


# Looks for MARKs in its own memory, as they stand or in base64, without knowing one.
LOOKS_FOR_OTHERS = r"""
import base64, re
found, packed = set(), re.compile(rb"[A-Za-z0-9+/=]{40,}")
def look(data):
    found.update(each.decode() for each in re.findall(rb"MARK-[A-Z]+", data))
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    for line in maps.read().splitlines():
        where, mode = line.split()[:2]
        start, end = (int(part, 16) for part in where.split("-"))
        if not mode.startswith("rw"):
            continue
        memory.seek(start)
        data = memory.read(end - start)
        look(data)
        for text in packed.findall(data):
            for at in range(4):
                part = text[at:]
                try:
                    look(base64.b64decode(part[: len(part) // 4 * 4]))
                except ValueError:
                    pass
print(sorted(found))
"""


@asynccontextmanager
async def sandbox(
    folder: Path, preload: tuple[str, ...], preload_bytes: int = 256 << 20, **env: str
) -> AsyncIterator[tuple[Sandbox, Environment]]:
    """One whose environment finds the modules in `folder`."""
    (folder / "repo").mkdir()
    environment = Environment(
        name="warm",
        github_ids=(1,),
        repo="warm",
        workdir=str(folder / "repo"),
        python=sys.executable,
        preload=preload,
        env={"PYTHONPATH": str(folder / "modules"), **env},
        mounts=(Mount(source=str(folder / "modules"), target=str(folder / "modules")),),
    )
    async with LocalBackend(limits=LIMITS, preload_bytes=preload_bytes) as backend:
        opened = await backend.open(environment, 0)
        try:
            yield opened, environment
        finally:
            await opened.aclose()


def modules(folder: Path, **sources: str) -> tuple[str, ...]:
    (folder / "modules").mkdir()
    for name, source in sources.items():
        (folder / "modules" / f"{name}.py").write_text(source + "\n")
    return tuple(sources)


async def run(
    place: tuple[Sandbox, Environment], code: str, limit_s: float = 30.0, language: str = "python"
) -> Observation:
    return await place[0].run(
        Job(
            environment=place[1],
            path="",
            language="bash" if language == "bash" else "python",
            code=code.encode(),
            time_limit_s=limit_s,
            limits=LIMITS,
        )
    )


@pytest.mark.parametrize("preload_bytes", [0, 256 << 20], ids=["cold", "warm"])
async def test_a_saved_import_counts_as_if_it_had_been_made(
    tmp_path: Path, preload_bytes: int
) -> None:
    """A limit that the import alone exceeds is met either way, through bash as well."""
    async with sandbox(tmp_path, modules(tmp_path, slow=SLOW), preload_bytes) as place:
        over = await run(place, "import slow", 0.5)
        assert (over.limit, over.exit_code) == ("time", None)
        bash = await run(place, "echo import slow > s.py; python s.py; echo on", 0.5, "bash")
        assert (bash.limit, bash.exit_code) == ("time", None)
        within = await run(place, "import slow")
        assert (within.limit, within.exit_code) == (None, 0)
        assert within.counted_s >= 0.55
        without = await run(place, "print(1)")
        assert (without.exit_code, without.stdout) == (0, "1\n")
        assert {over.warm, within.warm, without.warm} == {preload_bytes > 0}
        assert bash.warm == (preload_bytes > 0 and has_fronts(sys.executable))


async def test_what_may_not_be_imported_ahead_is_refused_with_the_reason(tmp_path: Path) -> None:
    """Each such module is left out and named; a snippet that imports it works all the same."""
    names = {f"module{number}": source for number, source in enumerate(REFUSED)}
    for number, (name, reason) in enumerate(zip(names, REFUSED.values(), strict=True)):
        folder = tmp_path / str(number)
        folder.mkdir()
        async with sandbox(folder, modules(folder, **{name: names[name]})) as place:
            seen = await run(place, "print('on')")
            assert seen.stdout == "on\n"
            assert any(f"{name} is not preloaded" in n and reason in n for n in seen.notes), seen


async def test_an_interpreter_over_its_memory_is_given_up(tmp_path: Path) -> None:
    """Its environment's snippets run cold, and the reason is told."""
    big = modules(tmp_path, big="held = bytearray(64 << 20)\nheld[:] = b'x' * len(held)")
    async with sandbox(tmp_path, big, 32 << 20) as place:
        for _ in range(2):
            seen = await run(place, "import big; print(len(big.held))")
            assert (seen.exit_code, seen.warm) == (0, False)
            assert "no warm interpreter: it takes more than 32 MiB" in seen.notes


async def test_the_least_recently_used_interpreter_makes_room(tmp_path: Path) -> None:
    """Of several environments in one sandbox, those that were used last stay as they are."""
    source = "import os\nheld = bytearray(30 << 20)\nheld[:] = b'x' * len(held)\nME = os.urandom(8)"
    names = modules(tmp_path, a=source, b=source, c=source)
    async with sandbox(tmp_path, names, 100 << 20) as (opened, environment):

        async def who(name: str) -> str:
            """Which interpreter serves this environment: its module was imported once."""
            one = msgspec.structs.replace(environment, name=name, preload=(name,))
            seen = await run((opened, one), f"import {name}; print({name}.ME)")
            assert (seen.warm, seen.notes) == (True, ())
            return seen.stdout

        of_a, of_b = await who("a"), await who("b")
        assert (await who("a"), await who("b"), await who("a")) == (of_a, of_b, of_a)
        of_c = await who("c")  # b goes, which was not used for longest
        assert (await who("a"), await who("c")) == (of_a, of_c)
        assert await who("b") != of_b


async def test_a_single_snippet_starts_no_bare_interpreter(tmp_path: Path) -> None:
    """The second one does; bash, for which a front would take longer, never uses it."""
    (tmp_path / "modules").mkdir()
    async with sandbox(tmp_path, ()) as place:
        seen = [await run(place, "print(1)") for _ in range(3)]
        assert [(one.warm, one.stdout) for one in seen] == [(False, "1\n")] + [(True, "1\n")] * 2
        assert not (await run(place, "python -c 'print(1)'", language="bash")).warm


async def test_nothing_reaches_the_warm_interpreter(tmp_path: Path) -> None:
    """Killing all that can be seen, and tearing at modules, leaves the next snippet whole."""
    attack = """
import os, signal
import ahead
ahead.NAME = 'torn'
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
    for pid in [1, os.getppid()] + [int(p) for p in os.listdir('/proc') if p.isdigit()]:
        try:
            if pid != os.getpid():
                os.kill(pid, number)
        except OSError:
            pass
print(sorted(int(p) for p in os.listdir('/proc') if p.isdigit()))
"""
    async with sandbox(tmp_path, modules(tmp_path, ahead="NAME = 'ahead'")) as place:
        for _ in range(2):
            seen = await run(place, attack)
            assert (seen.exit_code, seen.warm) == (0, True), seen
            assert len(seen.stdout.split(",")) == 2  # init and itself
            after = await run(place, "import ahead; print(ahead.NAME)")
            assert (after.stdout, after.warm) == ("ahead\n", True)


async def test_a_program_shares_no_memory_but_the_page_of_its_account(tmp_path: Path) -> None:
    """What else it shared with its interpreter it could write to, the code of a fork above all."""
    shared = """
for line in open("/proc/self/maps"):
    mode, *path = line.split()[1:2] + line.split()[5:]
    if mode.endswith("s") and (not path or path[-1] == "(deleted)"):  # no file of the system's
        print("its account" if "memfd:mlbench" in line else line)
"""
    async with sandbox(tmp_path, modules(tmp_path, ahead="NAME = 'ahead'")) as place:
        seen = await run(place, shared)
        assert (seen.stdout, seen.warm) == ("its account\n", True), seen


@pytest.mark.skipif(not has_fronts(sys.executable), reason="a snippet doesn't see this Python")
async def test_a_script_that_cannot_be_read_fails_as_it_does_cold(tmp_path: Path) -> None:
    """Python ends by itself then, without an exception."""
    code = "echo 'print(1)' > s.py; chmod 000 s.py; python s.py 2> /dev/null; echo $?"
    async with sandbox(tmp_path, modules(tmp_path, ahead="NAME = 'ahead'")) as place:
        await run(place, "python -c pass; echo 1", language="bash")
        seen = await run(place, code, language="bash")
        assert (seen.stdout, seen.warm) == ("2\n", True), seen


async def test_no_snippet_finds_another_in_its_memory(tmp_path: Path) -> None:
    """The interpreter that they are forked from never read their texts."""
    async with sandbox(tmp_path, modules(tmp_path, ahead="NAME = 'ahead'")) as place:
        await run(place, "print(1)\n" + "# MARK-PYTHON\n" * 1000)
        await run(place, "echo 1\n" + "# MARK-BASH\n" * 1000, language="bash")
        seen = await run(place, LOOKS_FOR_OTHERS)
        assert (seen.stdout, seen.warm) == ("[]\n", True), seen
        own = await run(place, "kept = 'MARK-' + 'own'.upper()\n" + LOOKS_FOR_OTHERS)
        assert own.stdout == "['MARK-OWN']\n", own


@pytest.mark.parametrize("forged", ["1e300", "-1e300", "float('nan')", "float('inf')"])
async def test_a_forged_account_of_imports_is_no_figure_of_its_own(
    tmp_path: Path, forged: str
) -> None:
    """A program can write to where it is kept: it meets its limit by that, or it doesn't."""
    forge = f"""
import ctypes, struct, sys
(line,) = [one for one in open("/proc/self/maps") if "memfd:mlbench" in one]
page = (ctypes.c_char * 64).from_address(int(line.split("-")[0], 16))
struct.pack_into("=d", page, 0, {forged})
sys.exit(1)
"""
    async with sandbox(tmp_path, modules(tmp_path, ahead="NAME = 'ahead'")) as place:
        seen = await run(place, forge)
        assert seen.warm
        assert (seen.limit, seen.exit_code) == (("time", None) if forged == "1e300" else (None, 1))
        assert 0 <= seen.counted_s < 2 * 30


@pytest.mark.parametrize("given", [{"LANG": "C"}, {"LANG": "C", "LC_CTYPE": "C"}])
async def test_the_locale_that_python_chooses_is_in_the_variables(
    tmp_path: Path, given: dict[str, str]
) -> None:
    """Where it would be C's, Python tells its children of another."""
    names = modules(tmp_path, nothing="")
    code = (
        "import os, sys\nprint(list(os.environ), os.environ.get('LC_CTYPE'), sys.stdout.encoding)"
    )
    seen = []
    for preload_bytes in (0, 256 << 20):
        home = tmp_path / str(preload_bytes)
        home.mkdir()
        (home / "modules").symlink_to(tmp_path / "modules")
        async with sandbox(home, names, preload_bytes, **given) as place:
            seen.append(await run(place, code))
    cold, warm = seen
    assert (cold.warm, warm.warm) == (False, True), warm
    assert (warm.stdout, warm.stderr) == (cold.stdout, ""), cold


async def test_an_interpreter_that_is_gone_before_it_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sandbox serves on, without one."""
    old = "frames.write(self._channel.fileno(), order)"
    slow = f"time.sleep(0.5); {old}"
    await anyio.to_thread.run_sync(alter_agent, monkeypatch, "interpreter", old, slow)
    old = "os.execve(path, [argv[0], terms.PLACE], variables)"
    dead = "raise OSError('no such thing')"
    await anyio.to_thread.run_sync(alter_agent, monkeypatch, "interpreter", old, dead)
    async with sandbox(tmp_path, modules(tmp_path, nothing="")) as place:
        seen = await run(place, "print(1)")
        assert (seen.stdout, seen.warm) == ("1\n", False)
        assert any("it doesn't start: OSError: no such thing" in one for one in seen.notes), seen
        assert (await run(place, "print(2)")).stdout == "2\n"


async def test_an_import_path_that_means_another_folder_elsewhere(tmp_path: Path) -> None:
    """An interpreter has made it absolute, once; so it serves only where that is the same."""
    names = modules(tmp_path, nothing="")
    path = f"{tmp_path / 'modules'}:."
    async with sandbox(tmp_path, names, PYTHONPATH=path) as place:
        for folder in ("repo/sub", "repo"):
            await anyio.Path(tmp_path, folder).mkdir(exist_ok=True)
        await anyio.Path(tmp_path, "repo/here.py").write_text("print('found')")
        code = "try:\n    import here\nexcept ImportError as e:\n    print(e)"
        for where, said, warm in (
            ("", "found\n", True),
            ("sub", "No module named 'here'\n", False),
        ):
            seen = await place[0].run(
                Job(
                    environment=place[1],
                    path=where,
                    language="python",
                    code=code.encode(),
                    time_limit_s=30.0,
                    limits=LIMITS,
                )
            )
            assert (seen.stdout, seen.warm) == (said, warm), seen
        seen = await run(place, "cd sub; echo 'import here' > x.py; python x.py", language="bash")
        assert "No module named 'here'" in seen.stderr
        assert not seen.warm


@pytest.mark.skipif(not has_fronts(sys.executable), reason="a snippet doesn't see this Python")
async def test_streams_without_a_buffer_have_none_where_bash_redirects_them(tmp_path: Path) -> None:
    """What was printed before a program leaves in haste is in the file, in its order."""
    names = modules(tmp_path, nothing="")
    code = (
        "echo 'import os; print(1); os.write(1, b\"2\\n\"); print(3); os._exit(0)' > x.py\n"
        "python x.py > out; cat out"
    )
    async with sandbox(tmp_path, names, PYTHONUNBUFFERED="1") as place:
        seen = await run(place, code, language="bash")
        assert (seen.stdout, seen.stderr, seen.warm) == ("1\n2\n3\n", "", True), seen
