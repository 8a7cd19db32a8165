"""The `python` on a bash snippet's PATH, against a helper that is made up."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from mlbench_exec.agent import front, helper


def test_a_program_that_ends_before_its_front_hears_of_its_start_keeps_its_status(
    tmp_path: Path,
) -> None:
    """Both answers arrive at once, as they do on a busy machine."""
    path = str(tmp_path / "socket")
    folder = tmp_path / "fronts"
    folder.mkdir()
    script = folder / "python"
    script.write_text(front.source(sys.executable, "python", "/bin/false", str(folder), path))
    program = tmp_path / "temp.py"
    program.write_text("")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        listening.settimeout(20)
        command = [sys.executable, "-IS", str(script), str(program)]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
            client, _ = listening.accept()
            with client:
                for fd in helper._receive(client).fds:  # all of it, or it isn't there to be told
                    os.close(fd)
                client.sendall(helper.started(os.getpid()) + helper.ended(7 << 8))
    assert process.returncode == 7
