"""Daemon: a second Docker daemon of the test's own, which it may stop, kill and start again."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

STARTS_WITHIN_S = 90.0


class Daemon:
    """dockerd with its own socket and folders, which touches no network of this machine."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.socket = home / "docker.sock"
        self.address = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        for name in ("docker.sock", "docker.pid"):
            (self.home / name).unlink(missing_ok=True)
        with (self.home / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("dockerd", "--host", self.address, "--data-root", self.home / "data"),
                    *("--exec-root", self.home / "exec", "--pidfile", self.home / "docker.pid"),
                    *("--iptables=false", "--ip6tables=false", "--bridge=none"),
                    *("--ip-forward=false", "--ip-masq=false"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + STARTS_WITHIN_S
        while self.docker("version", check=False).returncode != 0:
            said = (self.home / "log.txt").read_text()[-2000:]
            if self._process.poll() is not None:
                pytest.skip(f"a second dockerd doesn't start here: {said}")
            assert time.monotonic() < until, said
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it, by its own process number alone."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(60)

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def docker(
        self, *command: str, stdin: bytes | None = None, check: bool = True
    ) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            ["docker", *command],
            input=stdin,
            capture_output=True,
            check=check,
            timeout=120,
            env={**os.environ, "DOCKER_HOST": self.address},
        )

    def load(self, image: str) -> None:
        """Copy an image from this machine's own daemon."""
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saved:
            subprocess.run(
                ["docker", "--host", self.address, "load"],
                stdin=saved.stdout,
                capture_output=True,
                check=True,
                timeout=300,
            )

    def remove(self) -> None:
        """Stop it with all that it started, and remove its folders."""
        if self.is_running():
            names = self.docker("ps", "--all", "--quiet").stdout.decode().split()
            if names:
                self.docker("rm", "--force", *names)
            self.stop()
        self._end_containerd()
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            point = line.split(" ")[4]
            if point.startswith(str(self.home)):
                subprocess.run(["umount", "--lazy", point], check=False)
        shutil.rmtree(self.home, ignore_errors=True)

    def _end_containerd(self) -> None:
        """After kill -9 its containerd, which names our folder, has stayed."""
        mark = str(self.home).encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "cmdline").read_bytes() and int(folder.name) != os.getpid():
                    os.kill(int(folder.name), signal.SIGKILL)
            except OSError:
                continue
