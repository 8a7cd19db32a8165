import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbench_exec import rules
from mlbench_exec.samples import Key, Sample, parse_sample
from mlbench_exec.sandbox import Observation
from mlbench_exec.verdicts import Status


def sample(arguments: dict[str, str] | None = None, row_type: str = "Python Code") -> Sample:
    return Sample(
        github_id=9, id=1, repository="r", path="./", arguments=arguments or {}, type=row_type
    )


def seen(**changes: Any) -> Observation:
    plain: dict[str, Any] = {
        "exit_code": 1,
        "signal": None,
        "limit": None,
        "oom_kills": 0,
        "wall_s": 1.0,
        "counted_s": 0.9,
        "cpu_s": 0.8,
        "stalled_s": 0.1,
        "peak_memory_bytes": 1024,
        "stdout": "",
        "stderr": "",
        "stdout_bytes": 0,
        "stderr_bytes": 0,
    }
    return Observation(**(plain | changes))


def error(stderr: str, **changes: Any) -> str | None:
    return rules.error_of(seen(stderr=stderr, **changes))


def stderr_of(code: str, folder: Path) -> str:
    """What this interpreter really prints for a program."""
    script = folder / "temp.py"
    script.write_text(code)
    ran = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=30
    )
    assert ran.returncode != 0
    return ran.stderr


# The static checks


def test_every_argument_must_be_named_in_any_case() -> None:
    """An output passes when it names all values, whatever their case, and not otherwise."""
    row = sample({"model": "BERT-Base", "epochs": "3"})
    assert rules.arguments_ok(row, "run bert-base 3")
    assert not rules.arguments_ok(row, "run bert-base")


def test_a_row_without_arguments_takes_even_an_empty_answer() -> None:
    """ML-Bench's quirk is kept: nothing to name, and no code reads as Python."""
    checks = rules.check(sample(), "")
    assert checks.ok


@pytest.mark.parametrize(
    ("code", "language"),
    [
        ("python main.py --x", "bash"),
        ("bash run.sh now", "bash"),
        ("python main.py", "python"),
        ("bash run.sh", "python"),
        ("x = 1  # see main.py for more", "bash"),
        ("", "python"),
    ],
)
def test_only_a_script_name_with_a_space_behind_it_makes_bash(code: str, language: str) -> None:
    """The language is told the way ML-Bench tells it, with its two known mistakes."""
    assert rules.detect_language(code) == language


def test_arguments_are_named_before_the_type() -> None:
    """An output that fails both checks has wrong arguments."""
    row = sample({"a": "missing"}, "Bash Script")
    checks = rules.check(row, "print(1)")
    assert (checks.arguments_ok, checks.type_ok) == (False, False)
    assert rules.static_verdict(row, 2, "h", checks).status == "wrong_arguments"
    typed = rules.static_verdict(row, 2, "h", rules.StaticCheck(arguments_ok=True, type_ok=False))
    assert (typed.status, typed.passed, typed.index, typed.wall_s) == ("wrong_type", False, 2, None)


def test_a_static_verdict_is_refused_where_the_checks_pass() -> None:
    """No output that has to be executed gets a verdict without being executed."""
    with pytest.raises(ValueError, match="passes the static checks"):
        rules.static_verdict(sample(), 0, "h", rules.check(sample(), "print(1)"))


# The status


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"exit_code": 0}, "passed"),
        ({"exit_code": 0, "oom_kills": 1}, "passed"),
        ({"exit_code": None, "limit": "time"}, "passed_at_limit"),
        ({"exit_code": None, "limit": "time", "oom_kills": 2}, "passed_at_limit"),
        ({"exit_code": 1}, "failed"),
        ({"exit_code": 137}, "failed"),
        ({"exit_code": 137, "oom_kills": 1}, "out_of_memory"),
        ({"exit_code": 1, "oom_kills": 1}, "out_of_memory"),
        ({"exit_code": None, "signal": 9, "oom_kills": 1}, "out_of_memory"),
        ({"exit_code": None, "limit": "memory"}, "out_of_memory"),
        ({"exit_code": None, "signal": 11}, "killed"),
        ({"exit_code": 1, "limit": "pids"}, "failed"),
        ({"exit_code": 1, "limit": "disk"}, "failed"),
    ],
)
def test_the_status_follows_from_what_was_seen(changes: dict[str, Any], status: Status) -> None:
    """Each kind of ending has its one status, and a child's death is no failure by itself."""
    assert rules.status_of(seen(**changes)) == status


def test_an_executed_verdict_carries_everything_seen() -> None:
    """The verdict holds the observation, the run's facts and the failure's name."""
    verdict = rules.executed_verdict(
        sample(),
        3,
        "hash",
        rules.check(sample(), "print(1)"),
        seen(exit_code=127, stderr="bash: line 1: foo: command not found\n", stderr_bytes=37),
        environment="EAP_DS",
        attempts=2,
        contended=True,
        started_at="2026-01-01T00:00:00Z",
        slot=4,
    )
    assert verdict.status == "failed"
    assert (verdict.key, verdict.index, verdict.output_hash) == ((9, 1), 3, "hash")
    assert (verdict.error, verdict.exit_code, verdict.stderr_bytes) == ("CommandNotFound", 127, 37)
    assert (verdict.environment, verdict.attempts, verdict.slot) == ("EAP_DS", 2, 4)
    assert verdict.contended
    assert (verdict.wall_s, verdict.counted_s, verdict.stalled_s) == (1.0, 0.9, 0.1)


def test_a_skipped_output_is_no_pass() -> None:
    """An output left out is recorded as such, with its static checks."""
    verdict = rules.skipped_verdict(sample(), 4, "h", rules.check(sample(), ""))
    assert (verdict.status, verdict.passed, verdict.arguments_ok) == ("skipped", False, True)


# The error's name, from real interpreters


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("raise RuntimeError('shape')", "RuntimeError"),
        ("raise ValueError", "ValueError"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise ValueError('a: b\\nTypeError: not this one')", "ValueError"),
        ("def broken(:\n  pass", "SyntaxError"),
        ("def f():\nreturn 1", "IndentationError"),
        ("import json; json.loads('{')", "json.decoder.JSONDecodeError"),
        ("import nowhere_to_be_found", "ModuleNotFoundError"),
        ("try:\n  1/0\nexcept Exception as e:\n  raise KeyError('k') from e", "KeyError"),
        ("try:\n  1/0\nexcept Exception:\n  {}['k']", "KeyError"),
        ("def f():\n  class Mine(Exception): pass\n  raise Mine('m')\nf()", "f.<locals>.Mine"),
        ("def f(): f()\nf()", "RecursionError"),
        ("raise ExceptionGroup('g', [ValueError(1), KeyError(2)])", "ExceptionGroup"),
        (
            "class D:\n  def __del__(self): raise TypeError('late')\nd = D()\nraise OSError('x')",
            "OSError",
        ),
        ("import sys; sys.stderr.write('50%|##  |'); raise OSError('x')", "OSError"),
        ("raise SystemExit(3)", None),
        ("import sys; sys.exit('TypeError is not what this is about')", None),
    ],
)
def test_the_last_exception_is_named(code: str, name: str | None, tmp_path: Path) -> None:
    """What Python prints at its end gives the type's name as Python prints it."""
    assert error(stderr_of(code, tmp_path)) == name


@pytest.mark.slow
def test_an_exception_after_a_group_is_the_one_named(tmp_path: Path) -> None:
    """A plain exception that a group has caused is last; a group caused by one is, too."""
    group = "ExceptionGroup('g', [ValueError(1)])"
    code = f"try:\n  raise {group}\nexcept Exception as e:\n  raise KeyError('k') from e"
    assert error(stderr_of(code, tmp_path)) == "KeyError"
    code = f"try:\n  1/0\nexcept Exception as e:\n  raise {group} from e"
    assert error(stderr_of(code, tmp_path)) == "ExceptionGroup"


HEAD = "Traceback (most recent call last):\n"
FRAME = '  File "temp.py", line 3, in <module>\n    go()\n'


@pytest.mark.parametrize(
    ("stderr", "name"),
    [
        (
            HEAD + FRAME + "torch.cuda.OutOfMemoryError: CUDA out of memory.\n",
            "torch.cuda.OutOfMemoryError",
        ),
        (HEAD + FRAME + "ValueError: x\r\n", "ValueError"),
        (
            "\x1b[1;35m" + HEAD + FRAME + "\x1b[1;35mValueError\x1b[0m: \x1b[35mx\x1b[0m",
            "ValueError",
        ),
        ("a head\n... 900 bytes left out ...\n" + FRAME + "ValueError: x\n", "ValueError"),
        (HEAD + '  File "temp.p\n... 900 bytes left out ...\nrest of a message\n', None),
        (HEAD + FRAME + "KeyError: 1\n\nrest\n" + HEAD + FRAME + "[cut]\n", "KeyError"),
        ("x.py:3: UserWarning: old\n  warnings.warn('old')\n", None),
        ("ValueError: only a message that a program printed\n", None),
        ('Fatal Python error: Aborted\n\n  File "a.py", line 1 in f\n\nmodules: 3\n', None),
        (HEAD + FRAME + "OSError: libx.so: No such file or directory\n", "OSError"),
        ("bash: line 1: foo: command not found\n", "CommandNotFound"),
        ("run.sh: 1: foo: not found\n", "CommandNotFound"),
        ("bash: ./run.sh: No such file or directory\n", "NoSuchFile"),
        ("bash: line 1: cd: nowhere: No such file or directory\n", "NoSuchFile"),
        (
            "python: can't open file '/w/main.py': [Errno 2] No such file or directory\n",
            "NoSuchFile",
        ),
        (
            "python: can't open file '/w/main.py': [Errno 13] Permission denied\n",
            "PermissionDenied",
        ),
        ("bash: ./run.sh: Permission denied\n", "PermissionDenied"),
        (HEAD + FRAME + "KeyError: 1\nbash: line 2: foo: command not found\n", "CommandNotFound"),
        ("bash: line 1: foo: command not found\n" + HEAD + FRAME + "KeyError: 1\n", "KeyError"),
        ("", None),
    ],
)
def test_the_last_failure_in_stderr_is_named(stderr: str, name: str | None) -> None:
    """Cut, coloured and mixed text gives the last failure that can still be read, or none."""
    assert error(stderr) == name


def test_what_passed_has_no_error() -> None:
    """A traceback that a program printed and survived is not its failure."""
    printed = HEAD + FRAME + "ValueError: x\n"
    assert error(printed, exit_code=0) is None
    assert error(printed, exit_code=None, limit="time") is None
    assert error(printed, exit_code=None, signal=9) == "ValueError"


@pytest.mark.slow
@given(st.text())
def test_any_text_is_read_without_failing(text: str) -> None:
    """No stderr, however strange, stops the judging."""
    name = error(HEAD + FRAME + text)
    assert name is None or (0 < len(name) <= 200 and "\n" not in name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "\x1b[" * 500_000,
        "\x1b[" + "0;" * 500_000,
        HEAD + FRAME + "a." * 500_000,
        HEAD + FRAME + "a" * 1_000_000,
        HEAD * 30_000,
        "\n" * 1_000_000,
        "sh: " * 250_000,
        '  File "\n' * 100_000,
    ],
    ids=range(8),
)
def test_a_hostile_megabyte_takes_linear_time(text: str) -> None:
    """No text makes the reading take more than a moment a megabyte."""
    started = time.process_time()
    error(text)
    assert time.process_time() - started < 3


# ML-Bench's own data


def _rows(name: str) -> list[dict[str, Any]]:
    folder = os.environ.get("MLBENCH_DATA")
    if not folder:
        pytest.skip("MLBENCH_DATA is not set: this test reads ML-Bench's data from there")
    return [json.loads(line) for line in (Path(folder) / name).read_text().splitlines()]


def _dataset() -> dict[Key, Sample]:
    rows = [
        parse_sample(row, place=f"line {number}")
        for number, row in enumerate(_rows("mlbench_full.jsonl"), start=1)
    ]
    return {row.key: row for row in rows}


def test_real_outputs_pass_as_ml_bench_says() -> None:
    """Of a real model's 265 outputs, 178 name their arguments, 189 have the type, 134 both."""
    dataset = _dataset()
    checks = [
        rules.check(dataset[row["github_id"], row["id"]], code)
        for row in _rows("model_outputs_pass5.jsonl")
        if (row["github_id"], row["id"]) in dataset
        for code in row["output"]
    ]
    assert len(checks) == 265
    assert sum(one.arguments_ok for one in checks) == 178
    assert sum(one.type_ok for one in checks) == 189
    assert sum(one.ok for one in checks) == 134


def test_gold_outputs_pass_as_ml_bench_says() -> None:
    """Of 260 gold outputs, 22 miss arguments and one misses its type."""
    checks = {key: rules.check(row, row.gold) for key, row in _dataset().items()}
    assert len(checks) == 260
    assert sum(one.ok for one in checks.values()) == 237
    assert sum(not one.arguments_ok for one in checks.values()) == 22
    assert [key for key, one in checks.items() if one.arguments_ok and not one.type_ok] == [
        (14, 256)
    ]
