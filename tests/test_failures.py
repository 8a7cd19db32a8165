import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbench_exec.failures import DETAIL_CHARS, Failure, classify
from mlbench_exec.rules import error_of
from mlbench_exec.scores import DISTINCT, Tally, summarize
from mlbench_exec.testing.fakes import observation
from mlbench_exec.verdicts import Verdict

HEAD = "Traceback (most recent call last):\n"
FRAME = '  File "temp.py", line 3, in <module>\n    go()\n'
DURING = "\nDuring handling of the above exception, another exception occurred:\n\n"
PLAIN: dict[str, Any] = {
    "github_id": 9,
    "id": 1,
    "index": 0,
    "passed": False,
    "arguments_ok": True,
    "type_ok": True,
    "output_hash": "h",
}


def failure(stderr: str = "", **changes: Any) -> Failure | None:
    fields: dict[str, Any] = {**PLAIN, "status": "failed", "exit_code": 1, "stderr": stderr}
    return classify(Verdict(**(fields | changes)))


def told(stderr: str, **changes: Any) -> tuple[str, str | None]:
    found = failure(stderr, **changes)
    assert found is not None
    return found.kind, found.detail


def python(code: str, folder: Path) -> str:
    (folder / "temp.py").write_text(code)
    command = [sys.executable, "temp.py"]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False).stderr


# From real programs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import nowhere.to.be_found", ("missing_module", "nowhere")),
        ("from json import nothing_like_it", ("missing_module", "json.nothing_like_it")),
        ("open('data/missing file.txt')", ("missing_file", "data/missing file.txt")),
        ("open('/proc/1/mem', 'w')", None),
        ("def f(a): pass\nf(a=1, batch=2)", ("argument", "batch")),
        ("def f(a, b): pass\nf()", ("argument", "'a' and 'b'")),
        ("def f(): pass\nf(1)", ("argument", None)),
        (
            "import argparse\np = argparse.ArgumentParser()\np.parse_args(['--speed', '9'])",
            ("argument", "--speed 9"),
        ),
        (
            "import argparse\np = argparse.ArgumentParser()\n"
            "p.add_argument('--lr', required=True)\np.parse_args([])",
            ("argument", "--lr"),
        ),
        (
            "import argparse\np = argparse.ArgumentParser()\n"
            "p.add_argument('--lr', type=float)\np.parse_args(['--lr', 'fast'])",
            ("argument", "--lr"),
        ),
        (
            "import argparse\np = argparse.ArgumentParser()\n"
            "p.add_argument('--lr', '-l', choices=['1'])\np.parse_args(['-l', '2'])",
            ("argument", "--lr/-l"),
        ),
        (
            "import click\n@click.command()\ndef f(): pass\nf(['--speed'])",
            ("argument", "--speed"),
        ),
        ("import socket\nsocket.getaddrinfo('no-such-host.invalid', 80)", ("network", None)),
        (
            "import urllib.request\nurllib.request.urlopen('http://no-such-host.invalid/')",
            ("network", None),
        ),
        ("raise ZeroDivisionError('x')", ("exception", None)),
        ("import sys; sys.exit(3)", ("exit_code", "1")),
    ],
)
def test_python_programs_say_what_is_missing(
    code: str, expected: tuple[str, str | None] | None, tmp_path: Path
) -> None:
    """The module, file, argument or host is named as the interpreter prints it."""
    stderr = python(code, tmp_path)
    if expected is not None:
        assert told(stderr) == expected, stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("nothing-like-it --x", ("command_not_found", "nothing-like-it")),
        ("./nowhere.sh 1", ("missing_file", "./nowhere.sh")),
        ("cat 'a file'", ("missing_file", "a file")),
        ("ls nowhere/at-all", ("missing_file", "nowhere/at-all")),
        ("cd nowhere", ("missing_file", "nowhere")),
        ("python3 main.py --lr 1", ("missing_file", None)),
        ("touch x; ./x", ("permission", "./x")),
        ("if true; then", ("shell_syntax", None)),
        ("echo )", ("shell_syntax", None)),
        ("python3 -c 'import nowhere'", ("missing_module", "nowhere")),
        ("sh -c nothing-like-it", ("command_not_found", "nothing-like-it")),
        ("ls --nothing-like-it", ("argument", "--nothing-like-it")),
        ("bash -c 'kill -SEGV $$'; exit $?", ("signal", "SIGSEGV")),
        ("exit 7", ("exit_code", "7")),
    ],
)
def test_shells_say_what_is_missing(
    code: str, expected: tuple[str, str | None], tmp_path: Path
) -> None:
    """The command or path is named; a signal that only the shell saw, too."""
    ran = subprocess.run(
        ["bash", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
    )
    kind, detail = told(ran.stderr, exit_code=ran.returncode)
    assert kind == expected[0], ran.stderr
    assert expected[1] is None or detail == expected[1], ran.stderr


# From messages of libraries that aren't here


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        ("ImportError: libGL.so.1: cannot open shared object file: No such", "libGL.so.1"),
        ("ImportError: cannot import name 'f' from 'a.b' (/x/a/b.py)", "a.b.f"),
        ("ModuleNotFoundError: No module named 'a.b'; 'a' is not a package", "a.b"),
    ],
)
def test_missing_modules_are_named(stderr: str, expected: str) -> None:
    """A shared library is one too."""
    assert told(HEAD + FRAME + stderr + "\n") == ("missing_module", expected)


@pytest.mark.parametrize(
    "stderr",
    [
        HEAD + FRAME + "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='huggingface"
        ".co', port=443): Max retries exceeded with url: /x (Caused by NewConnectionError(...))\n",
        HEAD + FRAME + "OSError: We couldn't connect to 'https://huggingface.co' to load this\n",
        HEAD + FRAME + "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find it\n",
        HEAD + FRAME + "huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach https://huggingf"
        "ace.co/api: offline mode is enabled.\n",
        HEAD + FRAME + "socket.gaierror: [Errno -3] Temporary failure in name resolution\n",
        HEAD
        + FRAME
        + "urllib3.exceptions.MaxRetryError: x Max retries exceeded with url: y\n"
        + DURING
        + HEAD
        + FRAME
        + "FileNotFoundError: [Errno 2] No such file or directory: 'weights.bin'\n",
        "wget: unable to resolve host address 'example.org'\n",
        "curl: (6) Could not resolve host: example.org\n",
        "fatal: unable to access 'https://example.org/x/': Could not resolve host: example.org\n",
    ],
)
def test_what_wanted_a_network_is_told(stderr: str) -> None:
    """Whatever library asked, also where its own error came of it."""
    assert told(stderr)[0] == "network"


@pytest.mark.parametrize(
    "stderr",
    [
        HEAD + FRAME + "ConnectionRefusedError: [Errno 111] Connection refused\n",
        HEAD + FRAME + "requests.exceptions.ConnectionError: HTTPConnectionPool(host='localhost', "
        "port=8097): Max retries exceeded with url: /env/main\n",
        HEAD
        + FRAME
        + "socket.gaierror: [Errno -3] Temporary failure in name resolution\n"
        + HEAD
        + FRAME
        + "RuntimeError: shapes differ\n",
        "UserWarning: <urlopen error [Errno -3] Temporary failure in name resolution>\n"
        + HEAD
        + FRAME
        + "RuntimeError: shapes differ\n",
    ],
)
def test_what_failed_by_something_else_is_not_the_networks(stderr: str) -> None:
    """A program's own server, and what it survived before it failed."""
    assert told(stderr)[0] == "exception"


def test_hosts_are_named() -> None:
    """So that one can see what is to be mounted."""
    lines = (
        "wget: unable to resolve host address 'storage.googleapis.com'",
        "curl: (6) Could not resolve host: example.org",
    )
    assert [told(line)[1] for line in lines] == ["storage.googleapis.com", "example.org"]


@pytest.mark.parametrize(
    "message",
    [
        "RuntimeError: Found no NVIDIA driver on your system. Please check",
        "AssertionError: Torch not compiled with CUDA enabled",
        "RuntimeError: Attempting to deserialize object on a CUDA device but torch.cuda.is_",
        "RuntimeError: No CUDA GPUs are available",
        "OSError: libcudart.so.11.0: cannot open shared object file: No such file or directory",
    ],
)
def test_what_wanted_a_gpu_is_told(message: str) -> None:
    """PyTorch's messages and the loader's."""
    assert told(HEAD + FRAME + message + "\n")[0] == "cuda"


# What the sandbox saw


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ({"status": "out_of_memory", "limit": "memory"}, ("limit", "memory")),
        ({"limit": "pids"}, ("limit", "pids")),
        ({"limit": "disk"}, ("limit", "disk")),
        ({"status": "killed", "signal": 11, "exit_code": None}, ("signal", "SIGSEGV")),
        ({"status": "killed", "signal": 60, "exit_code": None}, ("signal", "signal 60")),
    ],
)
def test_what_was_seen_goes_before_what_was_said(
    seen: dict[str, Any], expected: tuple[str, str]
) -> None:
    """A limit or signal is named, with the exception that the program printed beside it."""
    found = failure(HEAD + FRAME + "MemoryError\n", **seen)
    assert found == Failure(
        kind=found.kind if found else "limit", error="MemoryError", detail=expected[1]
    )
    assert found.kind == expected[0]


@pytest.mark.parametrize(
    "status", ["passed", "passed_at_limit", "wrong_arguments", "wrong_type", "skipped"]
)
def test_only_executed_failures_are_explained(status: str) -> None:
    """What passed or was not run has none, whatever it printed."""
    assert failure(HEAD + FRAME + "ValueError: x\n", status=status) is None


# Hostile text


@pytest.mark.slow
@given(st.text())
def test_any_text_is_classified(text: str) -> None:
    """No stderr stops it, every detail is bounded, and the error is the verdict's own."""
    for stderr in (text, HEAD + FRAME + "ImportError: " + text, text + ": command not found"):
        found = failure(stderr)
        assert found is not None
        assert len(found.detail or "") <= DETAIL_CHARS
        if found.error is not None:
            assert found.error == error_of(observation(exit_code=1, stderr=stderr))


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        HEAD + FRAME + "ImportError: " + "a" * 1_000_000,
        HEAD + FRAME + "OSError: No such file or directory: '" + "a'" * 500_000,
        HEAD + FRAME + "OSError: host=" + "a." * 500_000,
        "x: error: argument " * 50_000,
        ("x: error: argument " + "-" * 80 + "\n") * 10_000,
        ("a: " * 600 + "command not found\n") * 500,
        ("a: syntax error " * 100 + "\n") * 600,
        ("wget: unable to " * 100 + "\n") * 600,
        "option flag rror: " * 55_000,
        "curl: " + "Could not resolve host " * 40_000,
        (HEAD + FRAME + "A: b\n" + DURING) * 5_000,
        "\u2018" * 300_000 + ": No such file or directory",
    ],
    ids=range(12),
)
def test_a_hostile_megabyte_is_classified_in_linear_time(text: str) -> None:
    """No text makes the reading take more than a moment a megabyte."""
    started = time.process_time()
    failure(text)
    assert time.process_time() - started < 3


def test_programs_cant_fill_the_memory_with_details() -> None:
    """Beyond a thousand ways to fail, what is new is counted by its kind alone."""
    tally = Tally()
    for index in range(DISTINCT + 500):
        verdict = Verdict(**(PLAIN | {"index": index, "status": "failed"}))
        tally.add(verdict, failure=Failure(kind="missing_file", detail=f"file {index}"))
    (found,) = summarize(tally).failures.values()
    assert len(found) == DISTINCT + 1
    assert (found[0].detail, found[0].count) == ("(other)", 500)


def test_failures_are_counted_by_repository() -> None:
    """The most frequent first, under the repository's name; what wanted a network is summed."""
    tally = Tally()
    module = Failure(kind="missing_module", error="ModuleNotFoundError", detail="dgl")
    network = Failure(kind="network", error="socket.gaierror")
    for github_id, index, failed in (
        (1, 0, network),
        (1, 1, module),
        (1, 2, module),
        (2, 0, network),
    ):
        fields = PLAIN | {"github_id": github_id, "index": index, "status": "failed"}
        tally.add(Verdict(**fields), failure=failed)
    summary = summarize(tally, names={1: "dgl"})
    counted = {
        name: [(one.kind, one.error, one.detail, one.count) for one in failures]
        for name, failures in summary.failures.items()
    }
    assert counted == {
        "dgl": [
            ("missing_module", "ModuleNotFoundError", "dgl", 2),
            ("network", "socket.gaierror", None, 1),
        ],
        "github_id 2": [("network", "socket.gaierror", None, 1)],
    }
    assert summary.wanted_network == 2
