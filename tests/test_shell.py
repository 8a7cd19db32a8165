"""The shell: a prompt in the sandbox that snippets get, on each backend."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import sysconfig
import termios
import time
from pathlib import Path

import pytest

EXECUTABLE = sysconfig.get_path("scripts") + "/mlbench-exec"
TINY = """\
[environments.tiny]
github_ids = [1]
workdir = "{workdir}"
python = "/usr/bin/python3"
"""
FRESH = """\
import sys, anyio
from pathlib import Path
from mlbench_exec.sandbox import Limits
from mlbench_exec.settings import Settings
from mlbench_exec.shell import run_shell
limits = Limits(memory_bytes=512 << 20)
file = Path(sys.argv[1])
settings = Settings(environments_file=file, backend="docker", fresh=True, limits=limits)
sys.exit(anyio.run(run_shell, settings, "tiny"))
"""
TYPED = """\
echo "at $(pwd)"
touch mine && echo "wrote $(ls mine)"
touch /usr/x 2>/dev/null || echo "read-""only"
grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | tr '\\n\\t' '  '; echo
exit 7
"""


def check_said(said: str, workdir: str) -> None:
    """What the typed lines show in a snippet's sandbox, wherever it is."""
    assert f"at {workdir}" in said
    assert "wrote mine" in said
    assert "read-only" in said
    assert "CapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2" in " ".join(said.split())


@pytest.mark.slow
@pytest.mark.docker
@pytest.mark.parametrize("level", ["nested", "fresh"])
def test_a_shell_in_a_container_is_a_snippets(
    conformance_image: str, tmp_path: Path, level: str
) -> None:
    """Its folder, its rights and its view; the exit code is the shell's."""
    file = tmp_path / "e.toml"
    file.write_text(TINY.format(workdir="/repos/tiny") + f'image = "{conformance_image}"\n')
    command = [EXECUTABLE, "shell", "tiny", f"--environments={file}", "--memory=512m"]
    command += ["--backend=docker"]
    if level == "fresh":
        command = [sys.executable, "-c", FRESH, str(file)]
    shown = subprocess.run(
        command, input=TYPED, capture_output=True, text=True, timeout=90, check=False
    )
    assert shown.returncode == 7, shown.stderr
    said = shown.stdout
    if level == "nested":
        check_said(said, "/repos/tiny")
    else:  # the container's own layer is the view there
        assert "at /repos/tiny" in said
        assert "wrote mine" in said


def read_until(fd: int, text: str, within_s: float = 60.0) -> str:
    said, until = "", time.monotonic() + within_s
    while text not in said:
        assert time.monotonic() < until, said
        if select.select([fd], [], [], 1.0)[0]:
            said += os.read(fd, 4096).decode("utf-8", "replace")
    return said


@pytest.mark.slow
def test_a_shell_on_a_terminal_is_interactive(tmp_path: Path) -> None:
    """The terminal's size, Ctrl-C and the prompt get through; the terminal is given back."""
    tmp_path.chmod(0o755)
    (tmp_path / "repo").mkdir()
    file = tmp_path / "e.toml"
    file.write_text(TINY.format(workdir=tmp_path / "repo"))
    host, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    command = [EXECUTABLE, "shell", "tiny", f"--environments={file}", "--backend=local"]
    process = subprocess.Popen(
        [*command, "--memory=512m"], stdin=terminal, stdout=terminal, stderr=terminal
    )
    try:
        read_until(host, "(tiny) ")
        os.write(host, b"stty size\n")
        read_until(host, "33 101")
        os.write(host, b"sleep 1000; echo after-$?\n")
        read_until(host, "sleep 1000")
        time.sleep(0.3)
        os.write(host, b"\x03")
        read_until(host, "(tiny) ")
        os.write(host, TYPED.encode())
        check_said(read_until(host, "Seccomp: 2"), f"{tmp_path}/repo")
        assert process.wait(timeout=60) == 7
        assert termios.tcgetattr(terminal) == before
        assert os.listdir(tmp_path / "repo") == []
    finally:
        process.kill()
        process.wait()
        os.close(host)
        os.close(terminal)


def test_an_unknown_environment_is_named(tmp_path: Path) -> None:
    """With those there are."""
    file = tmp_path / "e.toml"
    file.write_text(TINY.format(workdir=tmp_path))
    command = [EXECUTABLE, "shell", "tinny", f"--environments={file}", "--backend=local"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 2
    assert "no environment is named tinny: there are" in shown.stderr
