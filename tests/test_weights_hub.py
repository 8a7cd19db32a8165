"""Hub models, by the Hub's own client, from a stand-in for the Hub on the loopback."""

import hashlib
import http.server
import json
import os
import subprocess
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

COMMIT = "a" * 40
FILES = {"config.yml": b"a: 1\n", "model.bin": bytes(5000), "README.md": b"read me"}
EXECUTABLE = sysconfig.get_path("scripts") + "/mlbench-exec"
MANIFEST = """
[weights.net]
github_ids = [1]
hub = "acme/net"

[weights."stages/one"]
github_ids = [1]
hub = "acme/net"
files = ["config.yml"]
targets = ["/root/.cache/stages/one"]

[weights.secret]
github_ids = [1]
hub = "acme/secret"
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as getting a model asks for; one model, and one that is kept back."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if "secret" in path:
            self._answer(403, b'{"error": "accept the licence"}', "GatedRepo")
        elif "/tree/" in path:
            listed = [
                {"type": "file", "path": name, "size": len(content), "oid": "b" * 40}
                for name, content in FILES.items()
            ]
            self._answer(200, json.dumps(listed).encode())
        elif path.startswith("/api/models/"):
            names = [{"rfilename": name} for name in FILES]
            model = {"_id": "1", "id": "acme/net", "sha": COMMIT, "siblings": names, "tags": []}
            self._answer(200, json.dumps({**model, "downloads": 0, "private": False}).encode())
        else:
            self._answer(200, FILES[path.rsplit("/", 1)[-1]])

    def _answer(self, status: int, content: bytes, code: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def endpoint() -> Iterator[str]:
    pytest.importorskip("huggingface_hub")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
def test_hub_models_come_into_one_cache_or_a_folder_of_their_own(
    endpoint: str, tmp_path: Path
) -> None:
    """The cache can be read offline under the revision's name; what is kept back is named."""
    (tmp_path / "manifest.toml").write_text(MANIFEST)
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
    command = [EXECUTABLE, "weights", "pull", "net", "stages", "secret", "--dir", str(tmp_path)]
    pulled = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert pulled.returncode == 1
    assert "2 pulled, 0 were here, 1 failed" in pulled.stderr
    assert "Hub: acme/secret: " in pulled.stderr
    assert "accepted licence: log in with" in pulled.stderr
    model = tmp_path / "hub" / "models--acme--net"
    assert (model / "refs" / "main").read_text() == COMMIT
    assert (model / "snapshots" / COMMIT / "model.bin").read_bytes() == bytes(5000)
    assert os.listdir(tmp_path / "stages" / "one") == ["config.yml"]
    record = json.loads((tmp_path / ".records" / "stages--one.json").read_text())
    assert record["revision"] == COMMIT
    verify = [EXECUTABLE, "weights", "verify", "--dir", str(tmp_path)]
    assert subprocess.run(verify, capture_output=True, check=False).returncode == 0
    (model / "snapshots" / COMMIT / "config.yml").resolve().write_text("a: 2\n")
    assert subprocess.run(verify, capture_output=True, check=False).returncode == 1
