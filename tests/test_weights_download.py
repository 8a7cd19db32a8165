"""Downloads: resumed, checked, and in place as a whole or not at all."""

import hashlib
import random
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from loopback import Page, Server, serving
from mlbench_exec.weights.download import DownloadFailed, fetch, make_client
from mlbench_exec.weights.store import FileRecord

CONTENT = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Told:
    """Remembers what a bar would show."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.totals: set[int | None] = set()
        self.positions: list[int] = []

    def total(self, size: int | None) -> None:
        self.totals.add(size)

    def at(self, position: int) -> None:
        self.positions.append(position)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Server:
    shared_server.pages.clear()
    shared_server.seen.clear()
    shared_server.sent = 0
    return shared_server


def get(
    url: str, path: Path, *, size: int | None = None, sha256: str | None = None
) -> tuple[FileRecord, Told]:
    told = Told()

    async def work() -> FileRecord:
        async with make_client() as client:
            return await fetch(
                client, url, path, size=size, sha256=sha256, progress=told, pause_s=0.001
            )

    return anyio.run(work), told


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole(server: Server, tmp_path: Path) -> None:
    """Its size and hash are told, and nothing else is left beside it."""
    url = server.page("/a", CONTENT)
    got, told = get(url, tmp_path / "a", size=len(CONTENT), sha256=SHA256)
    assert got == FileRecord(len(CONTENT), SHA256)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert only(tmp_path) == ["a"]
    assert told.totals == {len(CONTENT)}
    assert told.positions[-1] == len(CONTENT)


def test_after_a_cut_it_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    """Only what is missing is asked for, and of the same version."""
    url = server.page("/a", CONTENT, cuts=[100_000, 50_000])
    get(url, tmp_path / "a", sha256=SHA256)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.ranges("/a") == [None, "bytes=100000-", "bytes=150000-"]
    assert server.seen[1][2] == '"one"'
    assert server.sent == len(CONTENT)


def test_an_interrupted_command_goes_on_too(server: Server, tmp_path: Path) -> None:
    """What came stays as a part, never under the file's own name."""
    server.page("/a", CONTENT, cuts=[100_000, 0, 0, 0, 0, 0])
    with pytest.raises(DownloadFailed, match="5 times in a row; 100000 bytes are kept"):
        get(f"{server.url}/a", tmp_path / "a")
    assert only(tmp_path) == ["a.part", "a.part.json"]
    server.page("/a", CONTENT)
    get(f"{server.url}/a", tmp_path / "a", sha256=SHA256)
    assert server.ranges("/a")[-1] == "bytes=100000-"
    assert only(tmp_path) == ["a"]


@pytest.mark.parametrize("how", [{"ranges": False}, {"etag": None}, {"etag": 'W/"weak"'}])
def test_a_server_without_ranges_or_marks_starts_over(
    server: Server, tmp_path: Path, how: dict[str, object]
) -> None:
    """A part is never completed from what may be another version."""
    url = server.page("/a", CONTENT, cuts=[100_000], **how)
    get(url, tmp_path / "a", sha256=SHA256)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.sent == 100_000 + len(CONTENT)


def test_a_file_that_changed_meanwhile_starts_over(server: Server, tmp_path: Path) -> None:
    """If-Range makes the server send the new one from its beginning."""
    server.page("/a", OTHER, cuts=[100_000, 0, 0, 0, 0, 0])
    with pytest.raises(DownloadFailed):
        get(f"{server.url}/a", tmp_path / "a")
    server.page("/a", CONTENT, etag='"two"')
    get(f"{server.url}/a", tmp_path / "a", sha256=SHA256)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_two_versions_stuck_together_are_found_out(server: Server, tmp_path: Path) -> None:
    """A server that ignores If-Range: the hash is wrong, so it is fetched again as a whole."""
    server.page("/a", OTHER, cuts=[100_000, 0, 0, 0, 0, 0])
    with pytest.raises(DownloadFailed):
        get(f"{server.url}/a", tmp_path / "a")
    server.page("/a", CONTENT, believes_if_range=False)
    _, told = get(f"{server.url}/a", tmp_path / "a", sha256=SHA256)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert any("its hash is wrong" in note for note in told.notes)


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    """416: the server has nothing after it."""
    url = server.page("/a", CONTENT)
    (tmp_path / "a.part").write_bytes(CONTENT + b"more")
    (tmp_path / "a.part.json").write_text(f'{{"url": "{url}", "validator": "\\"one\\""}}')
    get(url, tmp_path / "a", sha256=SHA256)
    assert server.ranges("/a") == [f"bytes={len(CONTENT) + 4}-", None]
    assert only(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"content": CONTENT, "claims": 400_000}, "5 times in a row"),
        ({"content": CONTENT + b"!"}, "is 300001 bytes, and 300000 were expected"),
        ({"content": CONTENT[:-1]}, "is 299999 bytes, and 300000 were expected"),
        ({"content": CONTENT + b"!", "chunked": True}, "sends more than 300000 bytes"),
        ({"content": CONTENT[:-1], "chunked": True}, "5 times in a row"),
        ({"content": OTHER}, "sha256 is [0-9a-f]{64}, and .* was expected"),
        ({"content": CONTENT, "statuses": [404]}, "answers 404 Not Found: check the address"),
        ({"content": CONTENT, "statuses": [403]}, "answers 403 Forbidden"),
        ({"content": CONTENT, "statuses": [500] * 9}, "answers 500 .*, 5 times in a row"),
        ({"location": "/a"}, "redirects in a circle"),
        ({"location": "/nowhere"}, "answers 404"),
    ],
)
def test_what_a_server_gets_wrong_is_named_and_leaves_no_file(
    server: Server, tmp_path: Path, how: dict[str, object], message: str
) -> None:
    """Sizes that are lies, other content, refusals: never a file in its place."""
    server.pages["/a"] = Page(**how)  # type: ignore[arg-type]
    size = None if how.get("claims") else len(CONTENT)
    with pytest.raises(DownloadFailed, match=message):
        get(f"{server.url}/a", tmp_path / "a", size=size, sha256=SHA256)
    assert not (tmp_path / "a").exists()


def test_a_length_that_is_too_short_is_found_by_the_hash(server: Server, tmp_path: Path) -> None:
    """Nothing of it is kept."""
    url = server.page("/a", CONTENT, claims=200_000)
    with pytest.raises(DownloadFailed, match="nothing of it was kept"):
        get(url, tmp_path / "a", sha256=SHA256)
    assert only(tmp_path) == []


def test_errors_that_pass_are_waited_for_and_redirects_followed(
    server: Server, tmp_path: Path
) -> None:
    """500, 503 and 429 are tried again."""
    server.page("/b", CONTENT, statuses=[500, 503, 429])
    url = server.page("/a", location="/b")
    _, told = get(url, tmp_path / "a", sha256=SHA256)
    assert [note.split(";")[0] for note in told.notes] == [
        "the server answers 500 Internal Server Error",
        "the server answers 503 Service Unavailable",
        "the server answers 429 Too Many Requests",
    ]


def test_downloads_run_side_by_side(server: Server, tmp_path: Path) -> None:
    """Three bodies are under way at once: each waits for the other two."""
    gate = threading.Barrier(3)
    urls = [server.page(f"/{n}", CONTENT, gate=gate) for n in range(3)]

    async def work() -> None:
        async with make_client() as client, anyio.create_task_group() as tasks:
            for number, url in enumerate(urls):
                path = tmp_path / str(number)
                tasks.start_soon(partial(fetch, client, url, path, progress=Told()))

    anyio.run(work)
    assert only(tmp_path) == ["0", "1", "2"]
