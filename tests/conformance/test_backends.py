"""One suite for every backend: real sandboxes, real programs."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest

from conformance.rigs import PYTHON, VARIABLES, Rig, job_of, open_rig, snippet
from conftest import agents_of, own_containers
from mlbench_exec.backends.local import LocalBackend
from mlbench_exec.environments import Environment
from mlbench_exec.errors import EnvironmentUnusable, SandboxFailed
from mlbench_exec.sandbox import Observation
from mlbench_exec.testing.conformance import CASES, DIRTY, FINGERPRINT, LIMITS, Case

pytestmark = pytest.mark.slow
BACKENDS = [
    "local",
    "local-warm",
    pytest.param("docker-nested", marks=pytest.mark.docker),
    pytest.param("docker-fresh", marks=pytest.mark.docker),
]
WRITABLE = ["tiny", "mixed-owners", "other-owner", "read-only"]


@pytest.fixture(scope="module", params=BACKENDS)
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("rig")
    with open_rig(
        request.param, folder, lambda: str(request.getfixturevalue("conformance_image"))
    ) as rig:
        yield rig


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_case(rig: Rig, case: Case) -> None:
    """Each case's observation is what the case promises, whatever ran there before."""
    case.check(rig.run(case))


# What a snippet may write.


@pytest.mark.parametrize("role", WRITABLE)
def test_every_snippet_finds_everything_pristine(rig: Rig, role: str) -> None:
    """A snippet writes, appends and deletes everywhere in its folders; the next sees none of it."""
    before = rig.run(FINGERPRINT, role)
    FINGERPRINT.check(before)
    for case in (DIRTY, DIRTY):
        dirtied = rig.run(case, role)
        case.check(dirtied)
    after = rig.run(FINGERPRINT, role)
    assert after.stdout == before.stdout


def test_the_host_has_nothing_of_what_a_snippet_wrote(rig: Rig) -> None:
    """A folder that a snippet wrote to through its view is as it was on the host."""
    repo = rig.host / "read-only" / "repo"
    before = {path: path.stat().st_mtime_ns for path in repo.rglob("*")}
    DIRTY.check(rig.run(DIRTY, "read-only"))
    assert {path: path.stat().st_mtime_ns for path in repo.rglob("*")} == before


def test_sandboxes_side_by_side_share_nothing(rig: Rig) -> None:
    """Two snippets at once write the same files, and each reads its own."""
    code = "echo $RANDOM$$ | tee -a README.md /tmp/f ~/f >mine; sleep 0.5; cat mine\n"
    code += "[ $(tail -n1 README.md) = $(cat mine) ] && cmp mine /tmp/f && cmp mine ~/f"
    job = job_of(snippet("bash", code), rig.roles["tiny"])
    with rig.sandbox() as one, rig.sandbox() as other:
        runs = [rig.portal.start_task_soon(sandbox.run, job) for sandbox in (one, other)]
        seen = [run.result() for run in runs]
    assert [one.exit_code for one in seen] == [0, 0], seen


# Where it runs.


def test_the_working_folder_is_the_environments(rig: Rig) -> None:
    """A snippet starts in the environment's workdir, by that very name."""
    seen = rig.bash("pwd; python -c 'import os; print(os.getcwd())'; ls -d package README.md")
    workdir = rig.roles["tiny"].workdir
    assert seen.stdout.splitlines() == [workdir, workdir, "README.md", "package"]


def test_python_is_the_environments(rig: Rig) -> None:
    """Python snippets, and `python` in bash snippets, are the environment's interpreter."""
    code = "import sys; print(sys.executable, sys.version_info[:2])"
    direct, by_bash = rig.python(code), rig.bash(f'python -c "{code}"')
    assert direct.stdout == by_bash.stdout
    assert direct.stdout.startswith(PYTHON)


def test_a_missing_path_is_the_environments_fault(rig: Rig) -> None:
    """A row's folder that isn't there is named, and is no verdict; the sandbox stays usable."""
    with pytest.raises(EnvironmentUnusable, match="no-such-folder"):
        rig.bash("echo ran", path="no-such-folder")
    with pytest.raises(EnvironmentUnusable, match=r"README\.md"):
        rig.python("print('ran')", path="README.md")
    for path in ("package\0beside", "package/" + 300 * "x"):
        with pytest.raises(EnvironmentUnusable, match="there is no folder"):
            rig.bash("echo ran", path=path)
    assert rig.bash("echo ran").stdout == "ran\n"


def test_a_path_stays_below_the_workdir(rig: Rig) -> None:
    """A row's path can't lead the snippet's script out of the environment's workdir."""
    with pytest.raises(EnvironmentUnusable):
        rig.python("print('ran')", path="../../../../etc")


@pytest.mark.parametrize(
    ("role", "named"), [("no-workdir", "-missing"), ("no-python", "no-such-python")]
)
@pytest.mark.parametrize("language", ["python", "bash"])
def test_a_missing_environment_is_named(rig: Rig, role: str, named: str, language: str) -> None:
    """A workdir or interpreter that isn't there is `EnvironmentUnusable`, never a verdict."""
    run = rig.python if language == "python" else rig.bash
    with pytest.raises(EnvironmentUnusable, match=f"{role}.*{named}"):
        run("exit(0)", role)


def test_conda_environments_are_activated(rig: Rig) -> None:
    """Bash and python snippets run in the activated environment, with the file's variables."""
    seen = rig.bash("echo $CONDA_DEFAULT_ENV $EXTRA $(command -v python)", "conda")
    name, extra, python = seen.stdout.split()
    assert (name, extra) == ("tiny_conda", "mine")
    assert python.endswith("/envs/tiny_conda/bin/python")
    seen = rig.python("import os; print(os.environ['CONDA_PREFIX'])", "conda")
    assert python.startswith(seen.stdout.strip())


def test_an_unknown_conda_environment_is_named(rig: Rig) -> None:
    """A conda environment that isn't there is `EnvironmentUnusable`, never a verdict."""
    with pytest.raises(EnvironmentUnusable, match="no_such_env"):
        rig.bash("true", "unknown-conda")


def test_variables_reach_the_snippet_unchanged(rig: Rig) -> None:
    """An environment's variables arrive as they are written, empty ones and quotes included."""
    code = f"import os; print([os.environ[name] for name in {list(VARIABLES)}])"
    for seen in (rig.python(code, "variables"), rig.bash(f'python -c "{code}"', "variables")):
        assert seen.stdout == f"{list(VARIABLES.values())}\n"


# Mounts.


def test_a_mount_is_read_only(rig: Rig) -> None:
    """Writing to, appending to and deleting from a mount fails with EROFS."""
    code = """
import errno, os
def attempt(call, *arguments):
    try: call(*arguments)
    except OSError as error: print(errno.errorcode[error.errno])
    else: print("done")
print(open("/deep_data/file.txt").read().strip())
attempt(open, "/deep_data/file.txt", "a")
attempt(open, "/deep_data/new", "w")
attempt(os.unlink, "/deep_data/file.txt")
attempt(os.mkdir, "/deep_data/sub/new")
attempt(os.chmod, "/deep_data/file.txt", 0o777)
"""
    seen = rig.python(code, "mounts")
    assert seen.stdout.splitlines() == ["the host's"] + ["EROFS"] * 5


def test_a_mount_in_a_mount_leaves_both_read_only(rig: Rig) -> None:
    """A target made inside a read-only mount gives a snippet no place to write to."""
    if "fresh" in rig.backend.level:
        pytest.skip("Docker itself makes no folder in a read-only mount")
    code = "cat /deep_data/extra/more/file.txt; cd /deep_data; ls; for f in . extra extra/more sub;"
    seen = rig.bash(f"{code} do touch $f/new && echo wrote $f; done", "mount-in-mount")
    assert seen.stdout.split("\n") == ["the host's", "extra", "file.txt", "sub", ""], seen


def test_a_mount_below_the_workdir_needs_no_folder_there(rig: Rig) -> None:
    """A folder and a file can be mounted in the repository where it has nothing of the name."""
    seen = rig.bash(
        "cat weights/model/file.txt package/weights.bin; echo x >weights/model/new;"
        "echo x >weights/beside && echo x >package/beside && echo wrote",
        "mounts",
    )
    assert seen.stdout == "the host's\n" * 2 + "wrote\n", seen
    assert "Read-only file system" in seen.stderr


def test_a_writable_mount_changes_the_host(rig: Rig) -> None:
    """What a snippet writes to a mount with mode rw is there on the host afterwards."""
    out = rig.host / "out"
    try:
        out.chmod(0o777)
        seen = rig.bash("echo new >/out/new.txt && cat /out/file.txt", "mounts")
        assert (seen.exit_code, seen.stdout) == (0, "the host's\n"), seen
        assert (out / "new.txt").read_text() == "new\n"
    finally:
        (out / "new.txt").unlink(missing_ok=True)


# What is left.


@pytest.mark.parametrize(
    "start",
    [
        "bash -c 'exec -a {marker} sleep 1000' &",
        "setsid bash -c 'exec -a {marker} sleep 1000' >/dev/null 2>&1 </dev/null &",
        "nohup bash -c 'trap \"\" TERM; exec -a {marker} sleep 1000' & disown",
        "(setsid bash -c 'bash -c \"exec -a {marker} sleep 1000\" & sleep 0.1' &);",
    ],
    ids=["background", "setsid", "nohup", "double-fork"],
)
def test_survivors_die_with_their_snippet(rig: Rig, start: str) -> None:
    """Whatever a snippet left running is gone from the host when its observation is there."""
    marker = f"survivor-{uuid.uuid4().hex}"
    seen = rig.bash(start.format(marker=marker) + "\nsleep 0.3; echo done")
    assert seen.exit_code == 0, seen
    assert seen.stdout == "done\n"
    assert processes_with(marker) == []


def test_a_snippet_at_its_limit_leaves_no_process(rig: Rig) -> None:
    """What is still running at the limit is gone from the host when its observation is there."""
    marker = f"survivor-{uuid.uuid4().hex}"
    code = f"bash -c 'exec -a {marker} sleep 1000' & while :; do sleep 1; done"
    seen = rig.run(snippet("bash", code, time_limit_s=0.5))
    assert seen.limit == "time"
    assert processes_with(marker) == []


def processes_with(marker: str) -> list[str]:
    """Command lines on this machine that hold the marker."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if marker.encode() in line:
            found.append(line.decode())
    return found


# The network.


def test_listeners_of_this_machine_are_out_of_reach(rig: Rig) -> None:
    """No address of this machine, and none of its abstract sockets, takes a connection."""
    name = f"\0mlbench-{uuid.uuid4().hex}"
    with (
        socket.create_server(("0.0.0.0", 0)) as listener,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        abstract.bind(name)
        abstract.listen()
        port = listener.getsockname()[1]
        addresses = own_addresses()
        for address in addresses:
            socket.create_connection((address, port), 5).close()
            listener.accept()[0].close()
        code = f"""
import socket
for address in {addresses}:
    try: socket.create_connection((address, {port}), 2); print("reached", address)
    except OSError as error: print("refused")
with socket.socket(socket.AF_UNIX) as caller:
    try: caller.connect({name!r}); print("reached")
    except OSError: print("refused")
"""
        seen = rig.python(code)
        assert seen.stdout.split() == ["refused"] * (len(addresses) + 1), seen
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def own_addresses() -> list[str]:
    """This machine's IPv4 addresses, loopback and bridges included."""
    listed = Path("/proc/net/fib_trie").read_text().split("Local:")[-1].splitlines()
    pairs = itertools.pairwise(listed)
    found = {line.split()[-1] for line, after in pairs if "/32 host LOCAL" in after}
    return sorted(found)


# Sandboxes that break.


def test_closing_twice_is_safe(rig: Rig) -> None:
    """A sandbox may be closed twice, and answers no job after that."""
    with rig.sandbox() as sandbox:
        rig.portal.call(sandbox.aclose)
        with pytest.raises(SandboxFailed):
            rig.portal.call(sandbox.run, job_of(snippet("bash", "true"), rig.roles["tiny"]))


@pytest.mark.parametrize("at", ["idle", "running"])
@pytest.mark.parametrize("how", ["killed", "removed"])
def test_a_sandbox_killed_from_outside_has_failed(rig: Rig, how: str, at: str) -> None:
    """An agent or container that disappears is `SandboxFailed`, at once, and never a verdict."""
    if how == "removed" and rig.backend.name == "local":
        pytest.skip("only containers can be removed")
    rig.settle()
    containers, agents = own_containers(), agents_of(os.getpid())
    marker = f"victim-{uuid.uuid4().hex}"
    code = f"exec -a {marker} sleep 1000"
    with rig.sandbox() as sandbox:
        (victim,) = (own_containers() - containers) or (agents_of(os.getpid()) - agents)
        job = job_of(snippet("bash", code), rig.roles["tiny"])
        started = time.monotonic()
        if at == "idle":
            end(victim, how)
            run = rig.portal.start_task_soon(sandbox.run, job)
        else:
            run = rig.portal.start_task_soon(sandbox.run, job)
            wait_for(lambda: processes_with(marker))
            end(victim, how)
        with pytest.raises(SandboxFailed):
            run.result(timeout=30)
        assert time.monotonic() - started < 10
    wait_for(lambda: not processes_with(marker))
    assert rig.bash("echo alive").stdout == "alive\n"


def end(victim: str | int, how: str) -> None:
    if isinstance(victim, int):
        os.kill(victim, signal.SIGKILL)
    else:
        command = ["kill"] if how == "killed" else ["rm", "--force"]
        subprocess.run(["docker", *command, victim], check=True, capture_output=True)


def wait_for(condition: Callable[[], object], within_s: float = 10.0) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def test_cancelling_a_run_is_prompt(rig: Rig) -> None:
    """A cancelled run ends at once, and closing its sandbox ends the snippet."""
    marker = f"cancelled-{uuid.uuid4().hex}"
    job = job_of(snippet("bash", f"exec -a {marker} sleep 1000"), rig.roles["tiny"])
    with rig.sandbox() as sandbox:
        if sandbox.reusable:  # it is warm
            rig.portal.call(sandbox.run, job_of(snippet("bash", ":"), rig.roles["tiny"]))

        async def run_until_it_sleeps() -> float:
            async with anyio.create_task_group() as group:
                group.start_soon(sandbox.run, job)
                with anyio.fail_after(20):
                    # No process sends an event.
                    while not await anyio.to_thread.run_sync(processes_with, marker):  # noqa: ASYNC110
                        await anyio.sleep(0.05)
                cancelled = anyio.current_time()
                group.cancel_scope.cancel()
            return anyio.current_time() - cancelled

        assert rig.portal.call(run_until_it_sleeps) < 3
        assert processes_with(marker)
    wait_for(lambda: not processes_with(marker))


# The local backend alone: the host is around the corner.


@pytest.mark.parametrize("rig", ["local"], indirect=True)
def test_the_host_is_not_visible(rig: Rig, tmp_path: Path) -> None:
    """Of the host a snippet sees system folders and what its environment names, no more."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    hidden = [secret, "/etc/shadow", "/root", "/run/docker.sock", "/var/run/docker.sock",
              "/var/log", "/var/lib", "/sys/fs/cgroup", "/boot", "/proc/1/root/etc/shadow",
              Path(__file__), rig.host / "data", "/proc/sysrq-trigger"]  # fmt: skip
    code = f"""
import os
for path in {[str(path) for path in hidden]}:
    try: shown = os.listdir(path) if os.path.isdir(path) else open(path).read(1)
    except OSError: shown = None
    if shown: print(path, shown)
for path in "/run", "/home", "/mnt", "/srv", "/opt", "/media":
    found = os.listdir(path) if os.path.isdir(path) else []
    if found and found != [os.environ["USER"]]: print(path, found)
open("/proc/self/oom_score_adj").read()
print(sorted(name for name in os.listdir("/proc") if name.isdigit()))
"""
    seen = rig.python(code)
    assert len(seen.stdout.splitlines()) == 1, seen.stdout
    assert seen.exit_code == 0, seen
    assert "'1'" in seen.stdout
    assert len(seen.stdout.split()) <= 3


@pytest.mark.parametrize("rig", ["local"], indirect=True)
def test_a_private_interpreter_is_visible(rig: Rig) -> None:
    """An interpreter in somebody's private folder works, with its packages, read-only."""
    own = Path(sys.executable)
    environment = msgspec.structs.replace(rig.roles["tiny"], name="private", python=str(own))

    async def run() -> Observation:
        sandbox = await rig.backend.open(environment, 0)
        try:
            code = "import msgspec, sys; print(sys.prefix); open(msgspec.__file__, 'a')"
            return await sandbox.run(job_of(snippet("python", code), environment, LIMITS))
        finally:
            await sandbox.aclose()

    seen = rig.portal.call(run)
    assert seen.stdout == f"{sys.prefix}\n", seen
    assert "Error" in seen.stderr


@pytest.mark.asyncio
async def test_an_interpreters_link_shows_nothing_beside_it(tmp_path: Path) -> None:
    """A link to an interpreter in somebody's home folder doesn't show that folder."""
    (tmp_path / "repo").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "id_rsa").write_text("secret")
    python = tmp_path / "home" / "python"
    python.symlink_to(PYTHON)
    environment = Environment(
        name="tiny",
        github_ids=(1,),
        repo="tiny",
        workdir=str(tmp_path / "repo"),
        python=str(python),
    )
    code = f"import os; print(os.listdir({str(tmp_path / 'home')!r}))"
    async with LocalBackend(limits=LIMITS) as backend:
        sandbox = await backend.open(environment, 0)
        try:
            seen = await sandbox.run(job_of(snippet("python", code), environment))
        finally:
            await sandbox.aclose()
    assert (seen.stdout, seen.exit_code) == ("['python']\n", 0), seen


# What a snippet may not do to those that come after it, or to the agent.


def test_devices_stay_as_they_are(rig: Rig) -> None:
    """Taking everybody's rights to the devices is refused, or at least gone with the snippet."""
    rig.bash("chmod 000 /dev/null /dev/zero /dev/urandom /dev/pts/ptmx; true")
    code = (
        "import pty; pty.openpty(); open('/dev/null', 'w').write('x'); open('/dev/urandom', 'rb')"
    )
    after = rig.python(code)
    assert after.exit_code == 0, after


def test_memory_does_not_outlive_a_snippet(rig: Rig) -> None:
    """Memory in a descriptor that is only held by a socket in flight is gone before the next."""
    keep = """
import array, os, socket
memory = os.memfd_create("kept")
for _ in range(120):
    os.write(memory, bytes(1 << 20))
one, other = socket.socketpair()
fds = array.array("i", [memory, one.fileno(), other.fileno()])
one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
"""
    use = "block = b'x' * (150 << 20); print(len(block) >> 20)"
    assert (LIMITS.memory_bytes or 0) == 256 << 20
    for _ in range(3):
        assert rig.python(keep).exit_code == 0
        after = rig.python(use)
        assert (after.stdout, after.oom_kills) == ("150\n", 0), after


def test_a_port_is_free_for_the_next_snippet(rig: Rig) -> None:
    """A connection that a snippet closed leaves its port to the next one, without SO_REUSEADDR."""
    code = """
import socket
server = socket.socket()
server.bind(("127.0.0.1", 29500))
server.listen()
client = socket.create_connection(("127.0.0.1", 29500))
connection, _ = server.accept()
connection.close()
client.recv(1)
client.close()
"""
    for _ in range(2):
        seen = rig.python(code)
        assert seen.exit_code == 0, seen


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("a lease on a file", "fcntl.fcntl(os.open('/etc/passwd', os.O_RDONLY), 1024, 0)"),
        ("the agent's scheduling", "os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))"),
        ("the agent's cores", "os.sched_setaffinity(1, {0})"),
        ("the agent's limits", "resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0))"),
        ("the agent's priority", "os.setpriority(os.PRIO_PROCESS, 1, 19)"),
        ("all priorities", "os.setpriority(os.PRIO_USER, 0, 19)"),
        ("a set-user-id file", "os.chmod(os.open('mine', os.O_CREAT | os.O_RDWR), 0o4755)"),
        ("a file born set-user-id", "os.open('mine', os.O_CREAT | os.O_RDWR, 0o4755)"),
    ],
)
def test_refused(rig: Rig, what: str, code: str) -> None:
    """What would hold up, starve or outlive the sandbox fails with EPERM."""
    seen = rig.python(f"import errno, fcntl, os, resource\n{code}\n")
    assert seen.exit_code == 1, (what, seen)
    assert seen.stderr.rstrip().splitlines()[-1].startswith("PermissionError: [Errno 1]"), seen


def test_the_kernel_is_not_pointed_at_the_agent(rig: Rig) -> None:
    """No snippet can make the agent the first to go when memory runs out."""
    seen = rig.python("open('/proc/1/oom_score_adj', 'w').write('1000')")
    assert seen.exit_code == 1, seen


LOOKS_INTO_PID_1 = """
import os
tries = [lambda name=name: open("/proc/1/" + name, "rb").read(1) for name in ("environ", "mem")]
tries += [lambda: os.open("/proc/1/fd/2", os.O_RDONLY), lambda: os.listdir("/proc/1/root")]
tries += [lambda: os.readlink("/proc/1/cwd"), lambda: open("/proc/1/maps").read(1)]
for attempt in tries:
    try:
        print("got", attempt())
    except OSError as error:
        print(type(error).__name__)
"""


def test_pid_1_is_not_looked_into(rig: Rig) -> None:
    """What started a program has its user id, but neither its memory nor its files are open."""
    seen = rig.python(LOOKS_INTO_PID_1)
    assert seen.stdout.split() == ["PermissionError"] * 6, seen
