"""A daemon behind TCP, as DOCKER_HOST names one: the same containers, verdicts and clean-up."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.command import Command, write_lines
from conftest import CONFORMANCE_IMAGE

SOCKET = "/var/run/docker.sock"
ENVIRONMENT = f"""\
[environments.tiny]
github_ids = [1]
workdir = "/repos/tiny"
python = "/usr/bin/python3"
image = "{CONFORMANCE_IMAGE}"
"""


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def _connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    from_daemon, to_daemon = await asyncio.open_unix_connection(SOCKET)
    await asyncio.gather(_pipe(reader, to_daemon), _pipe(from_daemon, writer))
    to_daemon.close()
    writer.close()


@pytest.fixture
def tcp_port() -> Iterator[int]:
    """A port of the loopback interface that leads to this machine's daemon."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(_connect, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.05))
        loop.close()


@pytest.mark.slow
@pytest.mark.docker
def test_a_run_on_a_daemon_behind_tcp(
    tcp_port: int, conformance_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DOCKER_HOST is enough: outputs are judged there, and nothing is left there."""
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{tcp_port}")
    (tmp_path / "environments.toml").write_text(ENVIRONMENT)
    row = {"github_id": 1, "github": "https://example.org/tiny", "path": "./", "type": "Python"}
    rows = [{**row, "id": number, "arguments": "{}"} for number in range(4)]
    outputs = [
        {"github_id": 1, "id": number, "output": ["print('x' * 300000)", "import sys; sys.exit(7)"]}
        for number in range(4)
    ]
    command = Command(
        tmp_path / "command",
        write_lines(tmp_path / "outputs.jsonl", outputs),
        *("--dataset", write_lines(tmp_path / "rows.jsonl", rows)),
        *("--environments", tmp_path / "environments.toml"),
        *("--backend", "docker", "--concurrency", "4", "--memory", "512m"),
    )
    assert command.run() == 0, command.said()
    seen = [
        (line["status"], line["exit_code"], line["stdout_bytes"]) for line in command.verdicts()
    ]
    assert sorted(seen) == [("failed", 7, 0)] * 4 + [("passed", 0, 300001)] * 4
    assert command.leftovers() == set()
