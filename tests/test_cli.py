import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import mlbench_exec.backends.choice
from mlbench_exec.cli import default_name, main, parse_only
from mlbench_exec.command import INCOMPLETE, exit_code
from mlbench_exec.errors import InputError
from mlbench_exec.options import with_limits
from mlbench_exec.run import Outcome
from mlbench_exec.sandbox import GIB, Job, Limits, Observation
from mlbench_exec.scores import Tally, summarize
from mlbench_exec.settings import Settings
from mlbench_exec.testing.fakes import FakeBackend, observation
from mlbench_exec.verdicts import Unjudged

EXECUTABLE = Path(sysconfig.get_path("scripts")) / "mlbench-exec"
ENVIRONMENTS = """
[environments.one]
github_ids = [1]
workdir = "{workdir}"
"""
START_WITHIN_S = 60.0
END_WITHIN_S = 5.0


def play(job: Job) -> Observation | Exception:
    return observation(exit_code=0 if job.code.startswith(b"ok") else 1)


class Place:
    """A folder with what the command needs; the command runs inside this process."""

    def __init__(self, folder: Path) -> None:
        self.home = folder
        self.backend = FakeBackend(play)
        rows = [
            {"github_id": 1, "id": n, "type": kind, "path": "./", "arguments": "{}"}
            for n, kind in ((1, "Python Code"), (2, "Bash Script"))
        ]
        self.write("rows.jsonl", rows)
        self.write("outputs.jsonl", [self.line(1, "ok", "bad")])
        (folder / "repo").mkdir(mode=0o755)
        text = ENVIRONMENTS.format(workdir=folder / "repo")
        (folder / "environments.toml").write_text(text)

    @staticmethod
    def line(row_id: int, *output: str) -> dict[str, Any]:
        return {"github_id": 1, "id": row_id, "output": list(output)}

    def write(self, name: str, lines: Iterable[object]) -> None:
        (self.home / name).write_text("".join(f"{json.dumps(one)}\n" for one in lines))

    def options(self, *more: str) -> list[str]:
        return [
            f"--dataset={self.home / 'rows.jsonl'}",
            f"--environments={self.home / 'environments.toml'}",
            "--backend=local",
            f"--out={self.home / 'run'}",
            *more,
        ]

    def run(self, *more: str, outputs: str | None = None) -> Result:
        outputs = outputs or str(self.home / "outputs.jsonl")
        return call("run", outputs, *self.options(*more))


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The command's local backend is a fake one."""
    found = Place(tmp_path)
    monkeypatch.setattr(mlbench_exec.backends.choice, "LocalBackend", lambda **_: found.backend)
    return found


# What flags mean.


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        (None, ()),
        ("", ()),
        ("9", ((9, None),)),
        ("9/261", ((9, 261),)),
        ("9, 3/4 ,1", ((9, None), (3, 4), (1, None))),
    ],
)
def test_only_names_repositories_and_rows(
    text: str | None, chosen: tuple[tuple[int, int | None], ...]
) -> None:
    """GITHUB_ID or GITHUB_ID/ID, with commas between them."""
    assert parse_only(text) == chosen


@pytest.mark.parametrize("text", ["x", "9/", "9,", "9/2/6", "/9", "9-12", "1.5"])
def test_what_only_cant_read_is_refused(text: str) -> None:
    """The message shows the form."""
    with pytest.raises(InputError, match="write GITHUB_ID or GITHUB_ID/ID, 9/261"):
        parse_only(text)


@pytest.mark.parametrize(
    ("outputs", "name"),
    [("gpt.jsonl", "gpt"), ("/data/gpt-4.1.jsonl", "gpt-4.1"), ("-", "stdin"), ("gpt", "gpt")],
)
def test_a_run_is_named_after_its_outputs(outputs: str, name: str) -> None:
    """Without --out its folder is runs/<name>."""
    assert default_name(outputs) == name


def test_explicit_flags_go_before_the_profile() -> None:
    """What ML-Bench does not limit can be limited again, one by one."""
    profile = Settings().with_profile("mlbench")
    plain = with_limits(profile, None, None, None, None, None, None)
    assert plain == profile
    some = with_limits(profile, "fair", "4g", None, 64, None, "none")
    assert some.network == "none"
    assert some.limits == Limits(memory_bytes=4 * GIB, cpus=None, pids=64, clock="fair")
    other = with_limits(Settings(), "wall", None, 0.5, None, "512m", "bridge")
    assert other.network == "bridge"
    assert other.limits == Limits(clock="wall", cpus=0.5, disk_bytes=512 << 20)


def test_exit_codes_tell_how_it_ended() -> None:
    """0: every output has a verdict; 1: some have none; 2: nothing could be used."""
    empty = summarize(Tally())
    tally = Tally()
    tally.add_unjudged(Unjudged(reason="r", kind="infrastructure", github_id=1, id=1, index=0))
    missing = summarize(tally)
    assert exit_code(Outcome(summary=empty, unjudged=0, usable=1)) == 0
    assert exit_code(Outcome(summary=empty, unjudged=1, usable=1)) == 1
    assert exit_code(Outcome(summary=missing, unjudged=0, usable=1)) == 1
    assert exit_code(Outcome(summary=empty, unjudged=3, usable=0)) == 2


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--memory=lots", "'lots' is not a size"),
        ("--disk=0", "'0' is not a size"),
        ("--mount=/data", "--mount '/data': write SRC:DST"),
        ("--gpus=some", "--gpus 'some': write none, all"),
        ("--only=EAP", "--only 'EAP': write GITHUB_ID"),
        ("--time-limit=nan", "time limit nan: give a number above 0"),
        ("--cpus=inf", "cpus inf: give a number above 0"),
        ("--concurrency=0", "0 is not in the range x>=1"),
        ("--backend=podman", "'podman' is not one of"),
    ],
)
def test_flags_that_mean_nothing_are_refused_by_name(place: Place, flag: str, message: str) -> None:
    """Bad usage ends with 2 and without a traceback, before anything is started."""
    result = place.run(flag)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert not place.backend.sandboxes
    assert not (place.home / "run").exists()


def test_the_manifest_holds_what_was_asked_for(place: Place) -> None:
    """Flags reach the run's settings."""
    flags = ["--profile=mlbench", "--pids=64", "--time-limit=2", "--mount=/etc:/weights:rw"]
    assert place.run(*flags, "--until-pass", "--concurrency=3").exit_code == 0
    settings = json.loads((place.home / "run" / "manifest.json").read_text())["settings"]
    assert settings["limits"]["pids"] == 64
    assert settings["limits"]["memory_bytes"] is None
    assert settings["network"] == "bridge"
    assert settings["concurrency"] == 3
    assert settings["until_pass"] is True
    assert settings["mounts"] == [{"source": "/etc", "target": "/weights", "mode": "rw"}]
    assert {job.time_limit_s for job in place.backend.jobs} == {2.0}


# What goes where.


def test_json_is_all_that_stdout_gets(place: Place) -> None:
    """The summary's JSON can be piped on; header and progress are on stderr."""
    result = place.run("--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert summary == json.loads((place.home / "run" / "summary.json").read_text())
    assert summary["statuses"]["passed"] == 1
    assert "fake (as asked)" in result.stderr
    assert "2/2" in result.stderr
    assert f"Everything is in {place.home / 'run'}/" in result.stderr


def test_the_summary_is_on_stdout(place: Place) -> None:
    """A table for people, and nothing of the progress in it."""
    result = place.run()
    assert "pass@1" in result.stdout
    assert "2/2" not in result.stdout
    assert "sandboxes" not in result.stdout


def test_a_report_shows_the_same(place: Place) -> None:
    """From the folder alone; also as JSON."""
    assert place.run().exit_code == 0
    folder = place.home / "run"
    first = json.loads((folder / "summary.json").read_text())
    (folder / "results.jsonl").unlink()
    result = call("report", str(folder), "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    again = json.loads(result.stdout)
    assert {**again, "timings": None} == {**first, "timings": None}
    assert json.loads((folder / "summary.json").read_text()) == again
    assert (folder / "results.jsonl").exists()
    assert "pass@1" in call("report", str(folder)).stdout


def test_a_report_of_no_run_is_refused(tmp_path: Path) -> None:
    """The message names the folder."""
    result = call("report", str(tmp_path))
    assert result.exit_code == 2
    assert f"{tmp_path} holds no run" in result.stderr


def test_a_dry_run_starts_nothing(place: Place) -> None:
    """It tells what would be run; its exit code, whether all of it could be."""
    result = place.run("--dry-run")
    assert result.exit_code == 0
    assert "one" in result.stdout
    assert "0 outputs are decided by the static checks" in result.stderr
    as_json = json.loads(place.run("--dry-run", "--json").stdout)
    assert as_json["planned"] == [{"environment": "one", "executions": 2, "problem": None}]
    place.write("outputs.jsonl", [place.line(1, "ok"), place.line(7, "ok")])
    some = place.run("--dry-run")
    assert some.exit_code == 1
    assert "can't be judged:" in some.stderr
    assert "id 7 is not in the dataset" in some.stderr
    place.write("outputs.jsonl", [])
    assert place.run("--dry-run").exit_code == 2
    assert place.backend.jobs == []
    assert not (place.home / "run").exists()


# How it ends.


def test_outputs_that_are_missing_end_it_at_once(place: Place) -> None:
    """Exit code 2, the path in the message, no traceback and no folder."""
    result = place.run(outputs="gone.jsonl")
    assert result.exit_code == 2
    assert result.stderr == (
        "mlbench-exec: gone.jsonl: can't be read (No such file or directory): "
        "check the path of OUTPUTS\n"
    )
    assert not (place.home / "run").exists()


def test_a_bad_environments_file_is_named_with_its_field(place: Place) -> None:
    """So that it can be corrected without a look at the code."""
    file = place.home / "environments.toml"
    file.write_text(file.read_text() + 'pythn = "/usr/bin/python3"\n')
    result = place.run()
    assert result.exit_code == 2
    assert f"{file}: [environments.one]: unknown key 'pythn': did you mean python?" in result.stderr


def test_nothing_that_can_be_used_is_bad_input(place: Place) -> None:
    """Each line's reason is kept, and the message says where."""
    place.write("outputs.jsonl", ["no row", place.line(7, "ok")])
    result = place.run("--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["counts"] == 0
    assert "nothing in the input can be used" in result.stderr
    unjudged = place.home / "run" / "unjudged.jsonl"
    assert f"{unjudged} says why" in result.stderr
    assert len(unjudged.read_text().splitlines()) == 2
    empty = place.run("--only=8")
    assert empty.exit_code == 2


def test_no_row_at_all_is_bad_input(place: Place) -> None:
    """An empty file, or a choice that leaves nothing."""
    result = place.run("--only=8")
    assert result.exit_code == 2
    assert "no row was given: OUTPUTS is empty, or --only leaves nothing" in result.stderr


def test_an_output_without_a_verdict_is_told_by_the_exit_code(place: Place) -> None:
    """1: the run ended, and something is missing; the same command tries it again."""
    place.write("outputs.jsonl", [place.line(1, "ok"), place.line(7, "ok")])
    result = place.run()
    assert result.exit_code == 1
    assert "is not in the dataset" in result.stdout
    place.write("outputs.jsonl", [place.line(1, "ok")])
    assert place.run().exit_code == 0


def test_changed_settings_are_bad_usage(place: Place) -> None:
    """Named, with the ways out."""
    assert place.run().exit_code == 0
    result = place.run("--memory=1g")
    assert result.exit_code == 2
    assert "limits.memory_bytes: was 8589934592, now 1073741824" in result.stderr
    assert "--restart" in result.stderr
    assert place.run("--memory=1g", "--restart").exit_code == 0


def test_no_backend_is_an_exit_code_of_its_own(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3, with what would help."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{place.home}/no.sock")
    result = place.run("--backend=docker")
    assert result.exit_code == 3
    assert "mlbench-exec: " in result.stderr
    assert "Traceback" not in result.stderr


def test_versions_and_help_are_there() -> None:
    """Every flag says what it does."""
    assert "mlbench-exec, version" in call("--version").stdout
    shown = call("run", "--help").stdout
    assert "Judge OUTPUTS" in shown
    command = main.commands["run"]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in shown


# Being interrupted.


def wait_until(is_so: Callable[[], bool], within_s: float) -> None:
    until = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


def is_running(*command: str) -> bool:
    wanted = b"".join(f"{part}\0".encode() for part in command)
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if file.read_bytes() == wanted:
                return True
        except OSError:  # it has just ended
            continue
    return False


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_it_leaves_a_run_to_continue(tmp_path: Path, signum: signal.Signals) -> None:
    """130 within five seconds; the program is dead, no file is left, the verdicts are kept."""
    place, temporary = Place(tmp_path), tmp_path / "tmp"
    temporary.mkdir()
    nap = ("sleep", f"{os.getpid()}.{int(signum)}")
    quick, slow = "true # a.sh ", f"{' '.join(nap)} # a.sh "
    place.write("outputs.jsonl", [place.line(2, quick, slow)])
    flags = ["--json", "--concurrency=1", "--time-limit=60"]
    command: list[str | Path] = [
        EXECUTABLE,
        "run",
        tmp_path / "outputs.jsonl",
        *place.options(*flags),
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        start_new_session=True,
    )
    try:
        wait_until(lambda: is_running(*nap), START_WITHIN_S)
        process.send_signal(signum)
        stdout, stderr = process.communicate(timeout=END_WITHIN_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 130
    assert stdout == ""
    assert "Interrupted: cleaning up. The same command continues." in stderr
    assert "Traceback" not in stderr
    assert not is_running(*nap)
    assert list(temporary.iterdir()) == []
    (verdict,) = (tmp_path / "run" / "verdicts.jsonl").read_text().splitlines()
    assert json.loads(verdict)["status"] == "passed"


@pytest.mark.parametrize("alone", [True, False])
def test_a_machine_without_room_for_a_thread_is_told_as_one(alone: bool) -> None:
    """What Python raises then becomes words, not a trace of calls, from a task group as well."""
    code = (
        "import resource, threading\nfrom mlbench_exec.command import Failures\n"
        "threading.stack_size(1 << 30)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "with Failures():\n  try:\n    threading.Thread(target=print).start()\n"
        f"  except RuntimeError as e:\n    raise e if {alone} else ExceptionGroup('x', [e])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == INCOMPLETE
    assert ended.stderr.startswith("mlbench-exec: no thread can be started here: raise the limit")
    assert "Traceback" not in ended.stderr
