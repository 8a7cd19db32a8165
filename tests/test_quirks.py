"""What ML-Bench's own executor gets wrong or does oddly, one test for each, on real sandboxes."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from rich.console import Console

from mlbench_exec.command import exit_code
from mlbench_exec.environments import Mount
from mlbench_exec.report import render_summary
from mlbench_exec.run import Evaluation
from mlbench_exec.sandbox import Limits
from mlbench_exec.scores import Tally, summarize
from mlbench_exec.settings import Settings
from mlbench_exec.testing.fakes import FakeBackend
from mlbench_exec.verdicts import Status, Verdict

Line = dict[str, Any]
PYTHON = "/usr/bin/python3"
MARK = "31557.6"  # of a sleep that nobody else sleeps
ENVIRONMENT = """
[environments.{name}]
github_ids = [{github_id}]
workdir = "{workdir}"
python = "/usr/bin/python3"
{more}
"""


class Bench:
    """A dataset of a few rows, and runs over them. `row` and `output` add a row and its outputs."""

    def __init__(self, home: Path, portal: BlockingPortal) -> None:
        self.home = home
        self.rows: list[Line] = []
        self.lines: list[object] = []
        self.environments: list[str] = []
        self.stderr = io.StringIO()
        self.exit_code = 0
        self._portal = portal
        self.repository(1)

    def repository(self, github_id: int, more: str = "", *, exists: bool = True) -> Path:
        workdir = self.home / f"repo{github_id}"
        if exists:
            (workdir / "sub").mkdir(parents=True)
            (workdir / "data.txt").write_text("data\n")
        self.environments.append(
            ENVIRONMENT.format(
                name=f"e{github_id}", github_id=github_id, workdir=workdir, more=more
            )
        )
        return workdir

    def row(
        self,
        *outputs: object,
        github_id: int = 1,
        arguments: str = "{}",
        bash: bool = False,
        path: str = "./",
    ) -> int:
        row_id = len(self.rows) + 1
        self.rows.append(
            {
                "github_id": github_id,
                "github": f"https://example.org/repo{github_id}",
                "id": row_id,
                "path": path,
                "arguments": arguments,
                "type": "Bash Script" if bash else "Python Code",
            }
        )
        if outputs:
            self.lines.append({"github_id": github_id, "id": row_id, "output": list(outputs)})
        return row_id

    def judge(self, *, folder: str = "run", fake: bool = False, **settings: Any) -> dict[Any, Line]:
        """The verdicts by row and index."""
        for name, lines in (("rows.jsonl", self.rows), ("outputs.jsonl", self.lines)):
            text = (one if isinstance(one, str) else json.dumps(one) for one in lines)
            (self.home / name).write_text("".join(f"{one}\n" for one in text))
        (self.home / "environments.toml").write_text("".join(self.environments))
        given: dict[str, Any] = {
            "dataset": str(self.home / "rows.jsonl"),
            "environments_file": self.home / "environments.toml",
            "backend": "local",
            "concurrency": 4,
            "time_limit_s": 10.0,
            "limits": Limits(memory_bytes=256 << 20, disk_bytes=64 << 20),
        }
        evaluation = Evaluation(
            str(self.home / "outputs.jsonl"),
            self.home / folder,
            Settings(**(given | settings)),
            stderr=self.stderr,
            backend=FakeBackend() if fake else None,
        )
        outcome = self._portal.call(evaluation.run)
        self.exit_code = exit_code(outcome)
        self.folder = self.home / folder
        return {(one["id"], one["index"]): one for one in self.read("verdicts.jsonl")}

    def read(self, name: str) -> list[Line]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def summary(self) -> Line:
        content: Line = json.loads((self.folder / "summary.json").read_text())
        return content

    def reasons(self) -> str:
        return "\n".join(f"{one['place']}: {one['reason']}" for one in self.read("unjudged.jsonl"))


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture
def bench(tmp_path: Path, portal: BlockingPortal) -> Bench:
    tmp_path.chmod(0o755)
    return Bench(tmp_path, portal)


def statuses(verdicts: dict[Any, Line], row: int) -> list[str]:
    return [one["status"] for (row_id, _), one in sorted(verdicts.items()) if row_id == row]


def is_alive(mark: str) -> bool:
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in file.read_bytes():
                return True
        except OSError:
            continue
    return False


def shown(summary: Any) -> str:
    stream = io.StringIO()
    Console(file=stream, width=120).print(render_summary(summary))
    return stream.getvalue()


@pytest.mark.slow
def test_rows_run_one_after_another(bench: Bench) -> None:
    """Here several run at once, and `--until-pass` leaves out what cannot change pass@k."""
    # Each waits until it sees the other's listening socket: alone, neither would end well.
    peers = (
        "import os, time\n"
        "os.mkfifo('/out/{me}')\n"
        "while not os.path.exists('/out/{other}'): time.sleep(0.01)\n"
    )
    out = bench.home / "out"
    out.mkdir()
    out.chmod(0o777)
    mounts = (Mount(source=str(out), target="/out", mode="rw"),)
    row = bench.row(peers.format(me=1, other=2), peers.format(me=2, other=1))
    assert statuses(bench.judge(mounts=mounts, time_limit_s=60.0), row) == ["passed", "passed"]
    bench.lines.clear()
    row = bench.row("raise OSError", "1", "1/0", "1", "1/0")
    everything = bench.judge(folder="all")
    scores = bench.read("results.jsonl")
    stopped = bench.judge(folder="stopped", until_pass=True)
    assert statuses(everything, row) == ["failed", "passed", "failed", "passed", "failed"]
    assert statuses(stopped, row) == ["failed", "passed", *["skipped"] * 3]
    assert bench.read("results.jsonl") == scores


@pytest.mark.slow
def test_runs_side_by_side_share_folders_and_one_temp_py(bench: Bench) -> None:
    """Here each has a pristine view of its folder, with its own `temp.py`, at the same time."""
    code = (
        "import os, time\nme = {}\n"
        "assert sorted(os.listdir()) == ['data.txt', 'sub', 'temp.py'], os.listdir()\n"
        "open('mine', 'w').write(str(me))\n"
        "time.sleep(0.5)\n"
        "assert open('mine').read() == str(me)\n"
        "assert f'me = {{me}}' in open('temp.py').read()\n"
    )
    row = bench.row(*(code.format(number) for number in range(8)))
    verdicts = bench.judge()
    assert statuses(verdicts, row) == ["passed"] * 8, verdicts
    assert sorted(one.name for one in (bench.home / "repo1").iterdir()) == ["data.txt", "sub"]


@pytest.mark.slow
def test_a_busy_machine_turns_failures_into_passes(bench: Bench) -> None:
    """Here the limit counts time in which the snippet could run; ML-Bench's clock passes them."""
    code = "import time\nwhile time.process_time() < 0.6: pass\nraise SystemExit(1)"
    row = bench.row(*(f"{code} # {number}" for number in range(8)))
    one_core = Limits(memory_bytes=256 << 20, cpus=1.0)
    busy: Line = {"concurrency": 8, "time_limit_s": 1.2}
    fair = bench.judge(folder="fair", limits=one_core, **busy)
    assert statuses(fair, row) == ["failed"] * 8
    wall = Limits(memory_bytes=256 << 20, cpus=1.0, clock="wall")
    passed = statuses(bench.judge(folder="wall", limits=wall, **busy), row)
    assert passed.count("passed_at_limit") >= 1, passed


@pytest.mark.slow
def test_a_pipe_that_nobody_reads_blocks_and_passes(bench: Bench) -> None:
    """Here output is drained and bounded, and the exit code decides."""
    code = "import sys\nsys.{0}.write('x' * 1_000_000)\nsys.{0}.flush()\nsys.exit({1})"
    row = bench.row(*(code.format(*one) for one in (("stdout", 1), ("stderr", 1), ("stdout", 0))))
    verdicts = bench.judge()
    assert statuses(verdicts, row) == ["failed", "failed", "passed"]
    assert verdicts[row, 0]["stdout_bytes"] == verdicts[row, 1]["stderr_bytes"] == 1_000_000
    assert len(verdicts[row, 0]["stdout"]) < 70_000


@pytest.mark.slow
def test_a_timeout_signals_only_the_children(bench: Bench) -> None:
    """The verdict is the same, but what a snippet started is dead before the next one starts."""
    napping = [f"sleep {MARK} # a.sh ", f"sleep {MARK} & true # a.sh ", "sleep 9; sleep 9 # a.sh "]
    row = bench.row(*napping, bash=True)
    looks = "import subprocess as s; assert b'31557' not in s.run(['ps', 'ax'], stdout=-1).stdout"
    bench.row(looks)
    verdicts = bench.judge(concurrency=1, time_limit_s=0.7)
    assert statuses(verdicts, row) == ["passed_at_limit", "passed", "passed_at_limit"]
    assert verdicts[row + 1, 0]["status"] == "passed"
    assert not is_alive(MARK)


@pytest.mark.slow
def test_stdin_is_inherited(bench: Bench) -> None:
    """Here it is empty, and at its end at once."""
    row = bench.row("import sys; assert sys.stdin.read() == ''; assert sys.stdin.fileno() == 0")
    row_2 = bench.row("read x; [ $? = 1 ] # a.sh ", bash=True)
    verdicts = bench.judge()
    assert statuses(verdicts, row) == statuses(verdicts, row_2) == ["passed"]


@pytest.mark.slow
def test_a_failed_activation_or_cd_is_ignored(bench: Bench) -> None:
    """Here a missing environment or folder is no verdict: it is named, and costs only its own."""
    bench.environments.append(
        f'[environments.conda]\ngithub_ids = [2]\nworkdir = "{bench.home}/repo1"\n'
        'conda_env = "no_such_env"\n'
    )
    bench.repository(3, exists=False)
    bench.row("print(1)", github_id=2)
    bench.row("print(1)", github_id=3)
    bench.row("print(1)", path="./not/there")
    row = bench.row("print(1)")
    verdicts = bench.judge()
    assert list(verdicts) == [(row, 0)]
    kinds = {one["id"]: one["kind"] for one in bench.read("unjudged.jsonl")}
    assert kinds == {1: "environment", 2: "environment", 3: "environment"}
    for name in ("no_such_env", "repo3", "not/there"):
        assert name in bench.reasons()
    assert bench.exit_code == 1


@pytest.mark.slow
def test_an_empty_answer_passes(bench: Bench) -> None:
    """The same here where a row has no arguments and wants Python; it is counted and named."""
    row, row_2 = bench.row("", "1"), bench.row("", bash=True)
    row_3 = bench.row("", arguments="{'lr': 3}")
    verdicts = bench.judge()
    assert statuses(verdicts, row) == ["passed", "passed"]
    assert statuses(verdicts, row_2) == ["wrong_type"]
    assert statuses(verdicts, row_3) == ["wrong_arguments"]
    assert bench.summary()["empty_passed"] == 1


def test_the_type_check_is_fooled(bench: Bench) -> None:
    """The same verdicts here: a comment makes bash of Python, a script at the end isn't seen."""
    row = bench.row("print(1)  # as train.py does", "print(1)", "python main.py")
    row_2 = bench.row("python main.py", "python main.py --lr 1", "bash a.sh", bash=True)
    verdicts = bench.judge(fake=True)
    assert statuses(verdicts, row) == ["wrong_type", "passed", "passed"]
    assert statuses(verdicts, row_2) == ["wrong_type", "passed", "wrong_type"]


@pytest.mark.slow
def test_bash_that_replaced_itself_is_never_killed(bench: Bench) -> None:
    """Here a snippet whose last command took bash's place is dead at its limit all the same."""
    row = bench.row(f"python -c 'while True: pass' x.py {MARK}1", bash=True)
    verdicts = bench.judge(time_limit_s=0.7)
    assert statuses(verdicts, row) == ["passed_at_limit"]
    assert not is_alive(f"{MARK}1")


@pytest.mark.slow
def test_only_the_last_commands_exit_status_counts(bench: Bench) -> None:
    """The same here."""
    row = bench.row("false\ntrue # a.sh ", "true\nfalse # a.sh ", bash=True)
    assert statuses(bench.judge(), row) == ["passed", "failed"]


def test_arguments_are_evaluated(bench: Bench, tmp_path: Path) -> None:
    """Here they are only parsed: anything but a literal is an error that names the row."""
    mark = tmp_path / "evaluated"
    bench.row("1", arguments=f"{{'a': open({str(mark)!r}, 'w')}}")
    row = bench.row("1e3", arguments="{'a': 1e3}")
    row_2 = bench.row("True 0.5", "TRUE 0.5", "true", arguments="{'a': True, 'b': 0.5}")
    verdicts = bench.judge(fake=True)
    assert not mark.exists()
    assert f"{tmp_path}/rows.jsonl:1: arguments are not a literal dict" in bench.reasons()
    assert statuses(verdicts, row) == ["wrong_arguments"]  # str(1e3) is 1000.0
    assert statuses(verdicts, row_2) == ["passed", "passed", "wrong_arguments"]


@pytest.mark.slow
def test_one_bad_output_ends_the_whole_run(bench: Bench) -> None:
    """Here each is its own result or a named input error, and the run goes on."""
    long = "#" * 3_000_000
    row = bench.row("a = '\0'", "print('\ud800')", long, None, "(" * 100_000, "print(1)")
    row_2 = bench.row("echo '\0' > x # a.sh ", f"true a.sh # {'y' * 200_000}", bash=True)
    bench.row("print(1)", path="./gone")
    verdicts = bench.judge()
    found = {index: one["status"] for (row_id, index), one in verdicts.items() if row_id == row}
    assert found == {0: "failed", 1: "failed", 2: "passed", 4: "failed", 5: "passed"}
    assert len(statuses(verdicts, row_2)) == 2
    assert "the output is not a string" in bench.reasons()
    assert "gone" in bench.reasons()


def test_malformed_lines_crash_or_are_lost(bench: Bench) -> None:
    """Here they are named by line; any number of outputs from one up is run."""
    for _ in range(6):
        bench.row()
    bench.lines += [
        "",
        {"github_id": 1, "id": 1},
        {"github_id": "1", "id": 2, "output": ["1"]},
        {"github_id": 1, "id": 3, "output": "12345"},
        {"github_id": 1, "id": 4, "output": ["1", "2"]},
        {"github_id": 1, "id": 5, "output": ["1"] * 7},
        "{not json",
        {"github_id": 1, "id": 6, "output": []},
    ]
    verdicts = bench.judge(fake=True)
    reasons = bench.reasons()
    outputs = bench.home / "outputs.jsonl"
    for number, part in (
        (2, 'has no "output"'),
        (3, 'github_id is the string "1"'),
        (4, "output is a string, not a list"),
        (7, "not valid JSON"),
        (8, "output is an empty list"),
    ):
        assert re.search(rf"{re.escape(str(outputs))}:{number}: .*{re.escape(part)}", reasons)
    assert len(reasons.splitlines()) == 5
    assert statuses(verdicts, 4) == ["passed"] * 2
    assert statuses(verdicts, 5) == ["passed"] * 7
    by_id = {one["id"]: one for one in bench.read("results.jsonl")}
    assert (by_id[4]["pass1"], by_id[4]["pass2"], by_id[4]["pass5"]) == (1, 1, 1)
    assert bench.exit_code == 1


def test_rows_left_out_raise_the_score(bench: Bench) -> None:
    """Here coverage is reported, and totals over submitted rows and over all rows of the split."""
    bench.row("1")
    for _ in range(3):
        bench.row()
    bench.judge(fake=True)
    summary = bench.summary()
    assert summary["eval_pass1"] == 1.0
    assert summary["all_rows"]["pass1"]["rate"] == 0.25
    assert summary["coverage"] == {"submitted_rows": 1, "split_rows": 4, "share": 0.25}


def test_twelve_repositories_crash_the_table(bench: Bench) -> None:
    """Here each of 14 stands under its own name with its own figures, in file and terminal."""
    for github_id in range(2, 15):
        bench.repository(github_id, exists=False)
    for github_id in range(1, 15):
        bench.row("1" if github_id % 2 else "# main.py ", github_id=github_id)
    bench.judge(fake=True)
    repos = bench.summary()["repos"]
    assert {name: repo["pass1"]["passed"] for name, repo in repos.items()} == {
        f"repo{github_id}": github_id % 2 for github_id in range(1, 15)
    }


def test_of_duplicates_the_first_wins_silently(bench: Bench) -> None:
    """Here the first wins, and the second is named with the first one's place."""
    row = bench.row("1")
    bench.lines.append({"github_id": 1, "id": row, "output": ["# main.py "]})
    assert statuses(bench.judge(fake=True), row) == ["passed"]
    assert "outputs.jsonl:1 already: the first counts" in bench.reasons()
    assert bench.exit_code == 1


@pytest.mark.slow
def test_files_of_one_snippet_stay_for_the_next(bench: Bench) -> None:
    """Never here: not in the folder, the home or /tmp, nor are deleted ones missing."""
    writes = (
        "import os, pathlib, shutil\n"
        "for place in ('.', os.path.expanduser('~'), '/tmp', '/dev/shm', '/var/tmp'):\n"
        "    pathlib.Path(place, 'left').write_text('x')\n"
        "os.remove('data.txt'); shutil.rmtree('sub')\n"
    )
    looks = (
        "import os\n"
        "for place in ('.', os.path.expanduser('~'), '/tmp', '/dev/shm', '/var/tmp'):\n"
        "    assert not os.path.exists(os.path.join(place, 'left')), place\n"
        "assert open('data.txt').read() == 'data\\n' and os.path.isdir('sub')\n"
    )
    row = bench.row(*[writes, looks] * 3)
    verdicts = bench.judge(concurrency=1)
    assert statuses(verdicts, row) == ["passed"] * 6


@pytest.mark.slow
def test_result_files_are_not_valid_jsonl(bench: Bench) -> None:
    """Here every line of every file is one JSON value, whatever a program prints."""
    bench.row("print('\\x00\\x1b\"\\\\\\n}')", "import os; os.write(1, b'\\xff\\xfe')", None)
    bench.lines.append("{")
    bench.judge()
    for name in ("verdicts.jsonl", "unjudged.jsonl", "results.jsonl"):
        assert bench.read(name)
    assert bench.summary()["counts"] == 1


# Limits and the network


@pytest.mark.slow
def test_nothing_is_limited_and_the_network_is_on(bench: Bench) -> None:
    """Here memory, processes and disk are limited, and what wants a network is counted."""
    row = bench.row(
        "x = bytearray(2 << 30)\nfor i in range(0, len(x), 4096): x[i] = 1",
        "import os\nfor i in range(900):\n    if os.fork() == 0: os.kill(os.getpid(), 19)",
        "open('big', 'wb').write(bytes(128 << 20))",
        "import urllib.request; urllib.request.urlopen('http://example.invalid/w.bin')",
        "import socket; s = socket.socket(socket.AF_INET, 2); s.connect(('192.0.2.1', 9))",
    )
    limits = Limits(memory_bytes=256 << 20, disk_bytes=64 << 20, pids=100)
    verdicts = bench.judge(concurrency=1, limits=limits)
    assert statuses(verdicts, row)[0] in {"out_of_memory", "failed"}, verdicts[row, 0]
    assert statuses(verdicts, row)[1:] == ["failed"] * 4
    summary = bench.summary()
    assert summary["wanted_network"] == 2
    kinds = {one["kind"] for one in summary["failures"]["repo1"]}
    assert "network" in kinds


@pytest.mark.slow
def test_hugging_faces_libraries_ask_the_hub_first(bench: Bench) -> None:
    """With a cache mounted and no network they are told to use it; not without one."""
    cache = bench.home / "hf"
    cache.mkdir()
    bench.repository(
        2,
        f'[environments.e2.env]\nHF_HOME = "{cache}"\n'
        f'[[environments.e2.mounts]]\nsource = "{cache}"\ntarget = "{cache}"',
    )
    code = (
        "import os; names = 'HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE', 'HF_DATASETS_OFFLINE'\n"
        "print([os.environ.get(name) for name in names])"
    )
    with_cache, without = bench.row(code, github_id=2), bench.row(code)
    verdicts = bench.judge()
    assert verdicts[with_cache, 0]["stdout"] == "['1', '1', '1']\n"
    assert verdicts[without, 0]["stdout"] == "[None, None, None]\n"
    verdicts = bench.judge(folder="online", network="bridge")
    assert verdicts[with_cache, 0]["stdout"] == "[None, None, None]\n"


@pytest.mark.slow
def test_the_profile_is_ml_benchs_own_way(bench: Bench) -> None:
    """`--profile mlbench`: the host's network, a wall clock, no limits on memory and processes."""
    row = bench.row(
        "import socket, sys\n"
        "print([name for _, name in socket.if_nameindex()], flush=True)\n"
        "import resource; print(resource.getrlimit(resource.RLIMIT_NPROC)[0] > 10_000)\n"
        "x = bytearray(300 << 20)\n"
        "import time; time.sleep(0.5)",  # the watch looks every 50 ms
    )
    strict = bench.judge(folder="strict")
    settings = Settings().with_profile("mlbench")
    assert (settings.network, settings.limits.clock) == ("bridge", "wall")
    limits = settings.limits
    assert (limits.memory_bytes, limits.cpus, limits.pids) == (None, None, None)
    loose = bench.judge(folder="loose", limits=limits, network=settings.network)
    assert strict[row, 0]["status"] == "out_of_memory", strict[row, 0]
    assert strict[row, 0]["stdout"].startswith("['lo']")
    assert loose[row, 0]["status"] == "passed"
    own = [path.name for path in Path("/sys/class/net").iterdir()]
    names = loose[row, 0]["stdout"].splitlines()[0]
    assert all(name in names for name in own)


def test_pass_at_k_is_any_of_the_first_k(bench: Bench) -> None:
    """Both are reported side by side, the first under ML-Bench's name."""
    tally = Tally()
    passing: dict[bool, Status] = {True: "passed", False: "failed"}
    for index, passed in enumerate((False, True, False, False, False)):
        tally.add(
            Verdict(
                github_id=1,
                id=1,
                index=index,
                status=passing[passed],
                passed=passed,
                arguments_ok=True,
                type_ok=True,
                output_hash="h",
            )
        )
    summary = summarize(tally, split_rows={1: 2})
    assert (summary.eval_pass1, summary.eval_pass2) == (0.0, 1.0)
    assert summary.unbiased is not None
    one, two = summary.unbiased["pass1"], summary.unbiased["pass2"]
    assert one is not None
    assert two is not None
    assert (one.rate, two.rate) == pytest.approx((0.2, 0.4))
    lines = [line.split("│") for line in shown(summary).splitlines() if "pass@1" in line]
    cells = [cell.strip() for cell in lines[0]]
    assert cells[1:6] == ["pass@1", "0.00 %", "0.00 %", "20.00 % (20.0 to 20.0)", "0 of 1"]
