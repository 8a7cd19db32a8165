"""Download: one file over HTTP, resumed after every kind of cut, checked, put in place whole."""

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

import anyio
import anyio.to_thread
import httpx
import msgspec

from mlbench_exec.errors import MLBenchExecError
from mlbench_exec.weights.store import FileRecord

PATIENCE = 5  # cuts in a row that bring nothing new
PAUSE_S = 1.0
TRY_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class DownloadFailed(MLBenchExecError):
    """A file could not be had; the message says what would help."""


class Progress(Protocol):
    """Where a bar is drawn."""

    def total(self, size: int | None) -> None: ...

    def at(self, position: int) -> None: ...

    def note(self, text: str) -> None: ...


class _Cut(Exception):
    """Worth another attempt from where it stopped."""


class _Stale(_Cut):
    """What lies here belongs to another version of the file: start from its beginning."""


class _Part(msgspec.Struct, frozen=True):
    """What a growing file is a part of."""

    url: str
    validator: str  # a strong ETag, or a date; empty where the server gives none


def make_client() -> httpx.AsyncClient:
    """For any number of downloads side by side."""
    return httpx.AsyncClient(
        follow_redirects=True,
        max_redirects=10,
        timeout=httpx.Timeout(60.0, connect=30.0),
        headers={"User-Agent": "mlbench-exec", "Accept-Encoding": "identity"},
    )


async def fetch(
    client: httpx.AsyncClient,
    url: str,
    path: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    progress: Progress,
    pause_s: float = PAUSE_S,
) -> FileRecord:
    """Get `url` into `path`, by way of `path`.part, which an interruption leaves to go on with.

    Raises `DownloadFailed` where the server refuses, disagrees with `size` or `sha256`, or cuts
    the connection again and again without sending anything new.
    """
    transfer = _Transfer(client, url, path, size, progress)
    cuts, furthest = 0, await anyio.to_thread.run_sync(transfer.position)
    is_second_try = False
    while True:
        try:
            await transfer.advance()
        except _Cut as cut:
            now = await anyio.to_thread.run_sync(transfer.position)
            cuts = 0 if now > furthest else cuts + 1
            furthest = max(now, furthest)
            if cuts >= PATIENCE:
                raise DownloadFailed(
                    f"{url}: {cut}, {cuts} times in a row; {now} bytes are kept: "
                    "the same command goes on from there"
                ) from None
            progress.note(f"{cut}; once more")
            await anyio.sleep(pause_s * 2**cuts)
            continue
        got = await anyio.to_thread.run_sync(transfer.hash)
        if sha256 is None or got.sha256 == sha256:
            await anyio.to_thread.run_sync(transfer.put_in_place)
            return got
        await anyio.to_thread.run_sync(transfer.discard)
        if transfer.was_resumed and not is_second_try:  # parts of two versions, perhaps
            is_second_try = True
            progress.note("its hash is wrong; once more from its beginning")
            continue
        raise DownloadFailed(
            f"{url}: its sha256 is {got.sha256}, and {sha256} was expected: it is another file, or "
            "was changed on its way; nothing of it was kept"
        )


class _Transfer:
    """One file's way here; what lies in its .part is always a beginning of one version."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        path: Path,
        size: int | None,
        progress: Progress,
    ) -> None:
        self.was_resumed = False
        self._client = client
        self._url = url
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._meta = path.with_name(path.name + ".part.json")
        self._size = size
        self._progress = progress

    def position(self) -> int:
        try:
            return self._part.stat().st_size
        except FileNotFoundError:
            return 0

    def hash(self) -> FileRecord:
        with self._part.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileRecord(self.position(), digest)

    def put_in_place(self) -> None:
        os.replace(self._part, self._path)
        self._meta.unlink(missing_ok=True)

    def discard(self) -> None:
        self._part.unlink(missing_ok=True)
        self._meta.unlink(missing_ok=True)

    async def advance(self) -> None:
        """Ask once, for what is missing, and append it. Raises `_Cut` and `DownloadFailed`."""
        known = await anyio.to_thread.run_sync(self._known)
        start = await anyio.to_thread.run_sync(self.position) if known else 0
        headers = {"Range": f"bytes={start}-", "If-Range": known} if known and start else {}
        try:
            async with self._client.stream("GET", self._url, headers=headers) as response:
                start, total = self._understand(response, start if headers else 0)
                self._check_size(total)
                await anyio.to_thread.run_sync(self._check_room, total, start)
                self._progress.total(total)
                self.was_resumed = self.was_resumed or start > 0
                if start == 0:
                    await anyio.to_thread.run_sync(self._begin, _validator(response))
                await self._take(response, start, total)
        except _Stale:
            await anyio.to_thread.run_sync(self.discard)
            raise
        except httpx.TooManyRedirects:
            raise DownloadFailed(f"{self._url}: redirects in a circle") from None
        except (httpx.TransportError, httpx.StreamError) as error:
            raise _Cut(f"the connection broke ({type(error).__name__})") from None
        except OSError as error:
            raise DownloadFailed(f"{self._part}: can't be written: {error.strerror}") from None

    def _known(self) -> str:
        """The validator of what lies here; empty: it is of no use."""
        try:
            part = msgspec.json.decode(self._meta.read_bytes(), type=_Part)
        except (OSError, msgspec.DecodeError):
            return ""
        return part.validator if part.url == self._url else ""

    def _begin(self, validator: str) -> None:
        self._part.parent.mkdir(parents=True, exist_ok=True)
        self._part.unlink(missing_ok=True)
        self._meta.write_bytes(msgspec.json.encode(_Part(self._url, validator)))

    def _understand(self, response: httpx.Response, start: int) -> tuple[int, int | None]:
        """Where the body begins, and the whole file's size if the server tells."""
        status = response.status_code
        if any(one.url.scheme == "https" for one in response.history) and (
            response.url.scheme != "https"
        ):
            raise DownloadFailed(f"{self._url}: leads from https to {response.url}: refused")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise DownloadFailed(f"{self._url}: comes compressed, though it was asked not to")
        if status == 206:
            match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != start or start == 0:
                raise _Stale("the server sent another part than was asked for")
            return start, None if match[3] == "*" else int(match[3])
        if status == 200:
            length = response.headers.get("Content-Length", "")
            return 0, int(length) if length.isascii() and length.isdigit() else None
        if status == 416:
            raise _Stale("the server has no more than what is here")
        if status in TRY_LATER:
            raise _Cut(f"the server answers {status} {response.reason_phrase}")
        raise DownloadFailed(
            f"{self._url}: the server answers {status} {response.reason_phrase}: check the address "
            "(a table of the same name in the weights folder's manifest.toml replaces it)"
        )

    def _check_size(self, total: int | None) -> None:
        if total is not None and self._size is not None and total != self._size:
            raise DownloadFailed(
                f"{self._url}: is {total} bytes, and {self._size} were expected: another file?"
            )

    def _check_room(self, total: int | None, start: int) -> None:
        folder = self._part.parent
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if total is not None and total - start > free:
            raise DownloadFailed(
                f"{self._url}: needs {total - start} bytes more, and {folder} has {free} free: "
                "make room, or choose another folder with --dir"
            )

    async def _take(self, response: httpx.Response, start: int, total: int | None) -> None:
        bound = total if total is not None else self._size
        position = start
        file = await anyio.to_thread.run_sync(lambda: self._part.open("ab"))
        try:
            async for chunk in response.aiter_raw():
                position += len(chunk)
                if bound is not None and position > bound:
                    raise _Stale(f"the server sends more than {bound} bytes")
                await anyio.to_thread.run_sync(_write, file, chunk)
                self._progress.at(position)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(file.close)
        if bound is not None and position < bound:
            raise _Cut(f"it ended after {position} of {bound} bytes")


def _write(file: BinaryIO, chunk: bytes) -> None:
    file.write(chunk)


def _validator(response: httpx.Response) -> str:
    """What If-Range may hold: a strong ETag, else the date."""
    etag = str(response.headers.get("ETag", ""))
    if etag.startswith('"'):
        return etag
    return str(response.headers.get("Last-Modified", ""))


ProgressFactory = Callable[[str], Progress]
