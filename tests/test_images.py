"""Images: what is here, pulling, whether environments answer, building."""

import gzip
import hashlib
import http.server
import io
import json
import os
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner, Result

import mlbench_exec.commands.images as commands
import mlbench_exec.images.recipes as recipes
from conftest import IMAGES
from mlbench_exec.cli import main
from mlbench_exec.commands.images import Layers
from mlbench_exec.environments import Environment
from mlbench_exec.images import (
    Recipe,
    check_environment,
    find_recipe,
    load_recipes,
    rows_to_try,
)
from mlbench_exec.samples import Sample
from mlbench_exec.sandbox import Limits
from mlbench_exec.testing import FakeBackend

SHAPE = "mlbench-exec-test/mlbench-shape:latest"
ROWS = [
    {
        "github_id": 2,
        "id": 31,
        "path": "./",
        "arguments": "{'train_batch_size': 32}",
        "type": "Bash Script",
        "output": "python run_pretraining.py --train_batch_size=32",
    },
    {
        "github_id": 9,
        "id": 265,
        "path": "./",
        "arguments": "{}",
        "type": "Python Code",
        "output": "import os\nfrom model.attention import WIDTH\n"
        "assert WIDTH == 7 and os.environ['CONDA_DEFAULT_ENV'] == 'EAP_DS'\n",
    },
]


@pytest.fixture(scope="module")
def shape_image() -> str:
    """An image of ML-Bench's shape, built without a registry."""
    subprocess.run([IMAGES / "mlbench-shape" / "build.sh"], check=True, timeout=1200)
    return SHAPE


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return tmp_path


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def a_row(github_id: int, row_id: int, gold: str = "print(1)") -> Sample:
    return Sample(
        github_id=github_id,
        id=row_id,
        repository="r",
        path="./",
        arguments={"word": "print"},
        type="Python Code",
        gold=gold,
    )


# Pure.


def test_the_smoke_row_is_a_quick_one_or_the_first_that_can_be_tried() -> None:
    """Where there is none, the answer says why."""
    environment = Environment(name="e", github_ids=(9,), repo="r", workdir="/r")
    rows = [a_row(9, 1, "no such word"), a_row(9, 2), a_row(9, 3), a_row(8, 4)]
    samples = {row.key: row for row in rows}
    assert rows_to_try(environment, samples, {}) == [rows[1]]
    assert rows_to_try(environment, samples, {9: 3}) == [rows[2]]
    assert rows_to_try(environment, samples, {}, every=True) == rows[:3]
    assert "no row for it" in str(rows_to_try(environment, {}, {}))
    assert "no row has an answer" in str(rows_to_try(environment, {(9, 1): rows[0]}, {}))


@pytest.mark.asyncio
async def test_a_sandbox_that_serves_one_snippet_is_asked_one_thing() -> None:
    """Each question gets a sandbox of its own there, and all are closed."""
    backend = FakeBackend(reusable=False)
    environment = Environment(
        name="e", github_ids=(9,), repo="r", workdir="/r", conda_env="c", preload=("torch",)
    )
    answers = await check_environment(backend, environment, Limits(), [a_row(9, 2)])
    about = ["image", "folder", "activation", "interpreter", "preload", "smoke row"]
    assert [answer.about for answer in answers] == about
    assert [sandbox.runs for sandbox in backend.sandboxes] == [1] * 5
    assert backend.statistics().is_open == 0


def test_layers_are_added_up() -> None:
    """From what a daemon tells of each."""
    layers = Layers()
    for layer, current in (("a", 10), ("b", 5), ("a", 50)):
        detail = {"current": current, "total": 100}
        layers.take({"id": layer, "status": "Downloading", "progressDetail": detail})
    layers.take({"status": "Status: Downloaded newer image for x"})
    assert (layers.done, layers.total) == (55, 200)
    assert layers.last == "Downloaded newer image for x"


def test_every_dockerfile_that_comes_with_it_is_in_the_catalogue() -> None:
    """But those that only the tests use."""
    for_tests = {"conformance", "mlbench-shape"}
    found = {path.parent.name for path in IMAGES.glob("*/Dockerfile")} - for_tests
    assert set(load_recipes()) == found
    for name in found:
        assert (recipes.folder_of(find_recipe(name)) / "Dockerfile").is_file()
    assert call("images", "build", "bret").exit_code == 2


# With a daemon.


@pytest.mark.slow
@pytest.mark.docker
def test_list_says_what_is_here_and_what_was_never_built(
    shape_image: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size and digest; a Dockerfile that nobody has built is marked."""
    made = {"odd": Recipe(name="odd", about="never", base="scratch", unbuilt=True)}
    monkeypatch.setattr(commands, "load_recipes", lambda: made)
    (place / "e.toml").write_text(f'[environments.bert_DS]\nimage = "{shape_image}"\n')
    listed = json.loads(call("images", "list", f"--environments={place}/e.toml", "--json").stdout)
    by_image = {one["image"]: one for one in listed}
    here = by_image[shape_image]["here"]
    assert here["size"] > 1 << 20
    assert here["digest"].startswith("sha256:")
    assert by_image[shape_image]["serves"] == ["bert_DS"]
    assert by_image["mlbench-exec/odd:latest"]["unbuilt"] is True
    shown = call("images", "list", f"--environments={place}/e.toml").stdout
    assert "unbuilt as yet" in " ".join(shown.replace("│", " ").split())


@pytest.mark.slow
@pytest.mark.docker
def test_environments_of_one_image_answer_one_by_one(shape_image: str, place: Path) -> None:
    """The built-in environments in an image of ML-Bench's shape; what it lacks is named."""
    names = ("bert_DS", "EAP_DS", "lavis_DS")
    tables = [f'[environments.{name}]\nimage = "{shape_image}"\n' for name in names]
    tables[0] += 'preload = ["json", "no_such_module"]\n'
    (place / "e.toml").write_text("".join(tables))
    options = [f"--environments={place}/e.toml", f"--dataset={place}/rows.jsonl"]
    options += ["--backend=docker", "--memory=512m"]
    result = call("images", "check", *names, *options, "--json")
    assert result.exit_code == 1
    answers: dict[str, list[tuple[str, bool | None, str]]] = {}
    for one in json.loads(result.stdout):
        answers.setdefault(one["environment"], []).append((one["about"], one["ok"], one["text"]))
    bert = answers["bert_DS"]
    assert [(about, ok) for about, ok, _ in bert] == [
        ("image", True),
        ("folder", True),
        ("activation", True),
        ("interpreter", True),
        ("preload", True),
        ("preload", False),
        ("smoke row", True),
    ]
    assert bert[1][2] == "/workspace/ML-Bench/repos/bert"
    assert bert[2][2] == "conda's: /root/miniconda/envs/bert_DS"
    assert "no_such_module" in bert[5][2]
    assert bert[6][2].startswith("2/31: passed")
    assert answers["EAP_DS"][-1][2].startswith("9/265: passed")
    assert answers["lavis_DS"][-1][:2] == ("folder", False)
    assert "no folder /workspace/ML-Bench/repos/lavis" in answers["lavis_DS"][-1][2]
    gold = ["run", "--gold", *options, f"--out={place}/gold", "--json"]
    assert json.loads(call(*gold).stdout)["statuses"]["passed"] == 2


@pytest.mark.slow
@pytest.mark.docker
def test_a_recipe_is_built_on_a_base_and_from_what_it_prepares(
    shape_image: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base is a build argument; what the build prints isn't on stdout."""
    (place / "odd").mkdir()
    (place / "odd" / "Dockerfile").write_text("ARG BASE=scratch\nFROM ${BASE}\nCOPY made /made\n")
    (place / "odd" / "prepare.sh").write_text('echo ready >"$1/made"\n')
    odd = Recipe(name="odd", about="", base="none", environment="E", workdir="/w", python="/p")
    monkeypatch.setattr(commands, "find_recipe", lambda name: odd)
    monkeypatch.setattr(recipes, "folder_of", lambda recipe: place / "odd")
    tag = f"mlbench-exec-test/odd:{os.getpid()}"
    try:
        result = call("images", "build", "odd", "--base", shape_image, "--tag", tag)
        assert result.exit_code == 0
        assert result.stdout == (
            f'[environments.E]\nimage = "{tag}"\nworkdir = "/w"\npython = "/p"\n'
        )
        made = ["docker", "run", "--rm", "--network=none", tag, "cat", "/made"]
        assert subprocess.run(made, capture_output=True, check=True).stdout == b"ready\n"
    finally:
        subprocess.run(["docker", "rmi", tag], capture_output=True, check=False)
    failed = call("images", "build", "odd", "--base", "mlbench-exec-test/gone", "--tag", tag)
    assert failed.exit_code == 1
    assert "docker build" in failed.stderr


class Registry(http.server.BaseHTTPRequestHandler):
    """As much of a registry as a pull asks for; `blobs` by digest, manifests among them."""

    protocol_version = "HTTP/1.1"
    blobs: ClassVar[dict[str, bytes]] = {}
    latest = ""

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        digest = self.latest if name == "latest" else name
        content = b"{}" if self.path == "/v2/" else self.blobs.get(digest)
        self.send_response(200 if content is not None else 404)
        if "/manifests/" in self.path:
            self.send_header("Content-Type", MANIFEST_TYPE)
            self.send_header("Docker-Content-Digest", digest)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if self.command == "GET" and content is not None:
            self.wfile.write(content)


MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def small_image() -> tuple[dict[str, bytes], str]:
    """An image with one file, as a registry stores it; the digest of its manifest."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        info = tarfile.TarInfo("hello")
        info.size = 5
        archive.addfile(info, io.BytesIO(os.urandom(5)))
    packed = gzip.compress(layer.getvalue())
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer.getvalue())]},
        }
    ).encode()

    def entry(content: bytes, kind: str) -> dict[str, Any]:
        media = f"application/vnd.docker.{kind}"
        return {"mediaType": media, "size": len(content), "digest": sha256(content)}

    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": entry(config, "container.image.v1+json"),
            "layers": [entry(packed, "image.rootfs.diff.tar.gzip")],
        }
    ).encode()
    return {sha256(one): one for one in (packed, config, manifest)}, sha256(manifest)


@pytest.fixture
def registry() -> Iterator[str]:
    """The address of a registry on the loopback, which Docker trusts without TLS."""
    Registry.blobs, Registry.latest = small_image()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
@pytest.mark.docker
def test_an_environments_image_is_pulled_and_known_by_its_digest(
    registry: str, place: Path
) -> None:
    """From a registry; one that isn't there is an error by name."""
    image = f"{registry}/tiny"
    (place / "e.toml").write_text(
        f'[environments.tiny]\ngithub_ids = [77]\nworkdir = "/w"\nimage = "{image}"\n'
    )
    file = f"--environments={place}/e.toml"
    try:
        pulled = call("images", "pull", "tiny", file)
        assert pulled.exit_code == 0, pulled.stderr
        assert Registry.latest in pulled.stderr
        listed = json.loads(call("images", "list", file, "--json").stdout)
        (tiny,) = [one for one in listed if one["image"] == image]
        assert tiny["here"]["digest"] == f"{image}@{Registry.latest}"
    finally:
        subprocess.run(["docker", "rmi", image], capture_output=True, check=False)
    gone = call("images", "pull", f"{registry}/gone:1", file)
    assert gone.exit_code == 3
    assert f"{registry}/gone:1 can't be pulled" in gone.stderr
