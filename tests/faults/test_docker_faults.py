"""F3, F4, F5, F11: containers taken away, the daemon restarted, stopped or slow, bad images."""

import contextlib
import hashlib
import io
import json
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.command import Line, write_lines
from faults.daemon import Daemon
from faults.scene import ENVIRONMENT, Scene, driver
from mlbench_exec.backends.docker import STARTS_AT_ONCE

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(400)]
SOCKET = "/var/run/docker.sock"
SLOWLY = ("--concurrency", "2", "--time-limit", "4")
DELAY_S = 0.3  # of each call; 5 s in the design


@pytest.fixture(scope="module")
def undisturbed(conformance_image: str, tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    scene = Scene(tmp_path_factory.mktemp("undisturbed"), image=conformance_image)
    scene.finish()
    return scene.comparable()


def docker(*command: str) -> str:
    return subprocess.run(
        ["docker", *command], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_f3_containers_killed_and_removed_from_outside(
    conformance_image: str, undisturbed: list[Line], tmp_path: Path
) -> None:
    """They are replaced, their snippets run again, and no verdict is lost or wrong."""
    scene = Scene(tmp_path, "--concurrency", "3", image=conformance_image, nap_s=0.2)
    process = scene.command.start()
    for count, command in ((6, ("kill",)), (18, ("rm", "--force")), (30, ("kill",))):
        scene.command.wait_for_verdicts(process, count)
        for name in scene.command.containers()[:2]:
            with contextlib.suppress(subprocess.CalledProcessError):  # gone by itself
                docker(*command, name)
    assert process.wait(180) == 0, scene.command.said()
    scene.check(scene.command.verdicts())
    assert any(line["attempts"] > 1 for line in scene.command.verdicts())
    assert scene.command.leftovers() == set()


# F4


@pytest.fixture(scope="module")
def daemon(conformance_image: str) -> Iterator[Daemon]:
    if shutil.which("dockerd") is None:
        pytest.skip("there is no dockerd on this machine to start a second one of")
    # A short path: a socket's has at most 108 characters.
    one = Daemon(Path(tempfile.mkdtemp(prefix="dockerd-", dir="/var/tmp")))
    try:
        one.start()
        one.load(conformance_image)
        yield one
    finally:
        one.remove()


def test_f4_a_daemon_that_is_restarted(
    daemon: Daemon,
    conformance_image: str,
    undisturbed: list[Line],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In order or by kill -9: the run waits, goes on, and ends as if nothing had been."""
    monkeypatch.setenv("DOCKER_HOST", daemon.address)
    scene = Scene(tmp_path, *SLOWLY, count=20, image=conformance_image, nap_s=0.5)
    process = scene.command.start()
    for count, number in ((5, signal.SIGTERM), (10, signal.SIGKILL)):
        with scene.command.held_at(process, count):
            daemon.stop(number)
        try:
            time.sleep(2)
            assert process.poll() is None, scene.command.said()
        finally:
            daemon.start()
    assert process.wait(240) == 0, scene.command.said()
    scene.check(scene.command.verdicts())
    assert scene.command.unjudged() == []
    assert "backend_lost" in (scene.command.folder / "log.jsonl").read_text()
    assert scene.command.leftovers() == set()


def test_f4_a_daemon_that_is_stopped_for_good(
    daemon: Daemon,
    conformance_image: str,
    undisturbed: list[Line],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a bounded wait the run ends with 1 and says what is missing; it can be continued."""
    monkeypatch.setenv("DOCKER_HOST", daemon.address)
    scene = Scene(
        tmp_path,
        *SLOWLY,
        count=20,
        image=conformance_image,
        nap_s=0.5,
        program=driver("--patience", "3"),
    )
    process = scene.command.start()
    with scene.command.held_at(process, 5):
        daemon.stop()
    try:
        assert process.wait(120) == 1, scene.command.said()
    finally:
        daemon.start()
    reasons = {line["reason"] for line in scene.command.unjudged()}
    assert any(f"answers at {daemon.address} any more" in one for one in reasons), reasons
    assert any(one.endswith("it did not come back within 3 s") for one in reasons), reasons
    known, unknown = scene.command.verdicts(), scene.command.unjudged()
    scene.check_known(known)
    assert len(known) + len(unknown) == scene.count
    assert {line["kind"] for line in unknown} == {"infrastructure"}
    scene.finish()


def test_f4_no_daemon_at_the_start(
    conformance_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 3, with the place that was tried."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    scene = Scene(tmp_path, image=conformance_image)
    assert scene.command.run() == 3
    assert f"no Docker daemon answers at unix://{tmp_path}/none.sock" in scene.command.said()


# F5


def image_archive(name: str, architecture: str, files: dict[str, bytes]) -> bytes:
    """What `docker load` takes: one layer with these executable files."""

    def archive(entries: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for path, content in entries.items():
                entry = tarfile.TarInfo(path)
                entry.size, entry.mode = len(content), 0o755
                tar.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()

    layer = archive(files)
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    return archive(
        {
            "layer.tar": layer,
            "config.json": json.dumps(config).encode(),
            "manifest.json": json.dumps(manifest).encode(),
        }
    )


def shell_files() -> dict[str, bytes]:
    """/bin/sh with the libraries it needs, and no Python."""
    listed = subprocess.run(["ldd", "/bin/sh"], capture_output=True, text=True, check=True).stdout
    libraries = {word for word in listed.split() if word.startswith("/")}
    return {path.lstrip("/"): Path(path).read_bytes() for path in sorted({"/bin/sh", *libraries})}


@pytest.fixture
def bad_images() -> Iterator[dict[str, str]]:
    """By what is wrong with them."""
    own = docker("version", "--format", "{{.Server.Arch}}")
    other = "arm64" if own != "arm64" else "amd64"
    made = {
        "empty": image_archive("mlbench-exec-test/empty:faults", own, {"file": b"x"}),
        "no-python": image_archive("mlbench-exec-test/no-python:faults", own, shell_files()),
        "foreign": image_archive("mlbench-exec-test/foreign:faults", other, {"file": b"x"}),
    }
    names = {what: f"mlbench-exec-test/{what}:faults" for what in made}
    try:
        for content in made.values():
            subprocess.run(["docker", "load"], input=content, capture_output=True, check=True)
        yield names | {"missing": "mlbench-exec-test/not-here:faults"}
    finally:
        for name in names.values():
            subprocess.run(["docker", "rmi", name], capture_output=True, check=False)


def test_f5_images_that_cant_be_used(
    bad_images: dict[str, str], conformance_image: str, undisturbed: list[Line], tmp_path: Path
) -> None:
    """Each is named with what mends it and costs its own outputs; the others are judged."""
    scene = Scene(tmp_path, "--concurrency", "2", count=20, image=conformance_image)
    rows = [json.loads(line) for line in scene.rows.read_text().splitlines()]
    outputs = [json.loads(line) for line in scene.outputs.read_text().splitlines()]
    for number, (what, image) in enumerate(bad_images.items(), start=2):
        text = ENVIRONMENT.format(workdir="/repos/tiny", python="/usr/bin/python3", image=image)
        text = text.replace("environments.tiny", f"environments.{what}")
        with scene.environments.open("a") as file:
            file.write(text.replace("github_ids = [1]", f"github_ids = [{number}]"))
        rows.append({**rows[0], "github_id": number})
        outputs.append({**outputs[0], "github_id": number, "output": ["number = 1", "print(1)"]})
    write_lines(scene.rows, rows)
    write_lines(scene.outputs, outputs)
    assert scene.command.run(within_s=180) == 1, scene.command.said()
    verdicts = scene.command.verdicts()
    scene.check([line for line in verdicts if line["github_id"] == 1])
    others = [line["status"] for line in verdicts if line["github_id"] != 1]
    assert others == ["wrong_arguments"] * len(bad_images)
    reasons = {line["github_id"]: line for line in scene.command.unjudged()}
    assert {line["kind"] for line in reasons.values()} == {"environment"}, reasons
    for number, (what, part) in enumerate(
        {
            "empty": "there is no /bin/sh",
            "no-python": "no Python 3.7 or later was found",
            "foreign": "docker pull --platform linux/",
            "missing": "is not on this machine: docker pull mlbench-exec-test/not-here:faults",
        }.items(),
        start=2,
    ):
        assert part in reasons[number]["reason"], (what, reasons[number])
    assert scene.command.leftovers() == set()


# F11


class SlowDaemon:
    """A socket that leads to this machine's daemon and holds back each call for a while."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.under_way = 0
        self.peak = 0  # of container starts, at one time
        self.starts = 0
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> "SlowDaemon":
        self._listener.bind(str(self.path))
        self._listener.listen(128)
        self._threads[0].start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for one in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in [self._listener, *self._open]:
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, daemon = self._listener.accept()[0], socket.socket(socket.AF_UNIX)
                self._open += [client, daemon]
                daemon.connect(SOCKET)
                for copy in (self._requests, self._answers):
                    thread = threading.Thread(target=copy, args=(client, daemon))
                    self._threads.append(thread)
                    thread.start()

    def _requests(self, client: socket.socket, daemon: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if data.startswith((b"GET /", b"POST /", b"DELETE /")):
                    is_start = b"/start HTTP" in data[:300]
                    self._count(is_start, 1)
                    time.sleep(DELAY_S)
                    self._count(is_start, -1)
                daemon.sendall(data)
            daemon.shutdown(socket.SHUT_WR)

    def _answers(self, client: socket.socket, daemon: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := daemon.recv(65536):
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)

    def _count(self, is_start: bool, change: int) -> None:
        with self._lock:
            self.starts += is_start and change > 0
            self.under_way += is_start * change
            self.peak = max(self.peak, self.under_way)


def test_f11_a_slow_daemon_with_64_sandboxes_asked_for(
    conformance_image: str,
    undisturbed: list[Line],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So many are never started at once, the progress tells of them, and verdicts are right."""
    with SlowDaemon(tmp_path / "slow.sock") as slow:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{slow.path}")
        scene = Scene(
            tmp_path,
            *("--concurrency", "64"),
            image=conformance_image,
            program=driver("--progress", "0.5"),
        )
        assert scene.command.run(within_s=300) == 0, scene.command.said()
        said = scene.command.said()
        monkeypatch.delenv("DOCKER_HOST")
        scene.check(scene.command.verdicts())
        assert scene.comparable() == undisturbed
        assert scene.command.leftovers() == set()
    assert 4 <= slow.starts <= 70  # as many as the CPUs have time for
    assert slow.peak <= STARTS_AT_ONCE
    assert "starting " in said
