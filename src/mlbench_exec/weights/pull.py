"""Pull: what is missing comes into the weights folder, several at once, each as a whole or not."""

import os
import shutil
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import anyio
import anyio.to_thread
import httpx

from mlbench_exec.weights import hub
from mlbench_exec.weights.download import DownloadFailed, Progress, ProgressFactory, fetch
from mlbench_exec.weights.manifest import HUB_CACHE, Item
from mlbench_exec.weights.store import FileRecord, Record, Store, hash_file
from mlbench_exec.weights.unpack import Stopped, UnsafeArchive, unpack

AT_ONCE = 4


async def pull(
    store: Store,
    items: Iterable[Item],
    client: httpx.AsyncClient,
    progress: ProgressFactory,
    *,
    at_once: int = AT_ONCE,
    pause_s: float = 1.0,
) -> dict[str, str]:
    """Get every item that isn't there; by name, why it could not be had.

    Cancelled, it leaves the parts that came, for the next pull to go on with. Raises `InputError`
    where the folder can't be written or another pull is at work in it.
    """
    failures: dict[str, str] = {}
    limiter = anyio.CapacityLimiter(at_once)

    async def one(item: Item) -> None:
        async with limiter:
            shown = progress(item.name)
            try:
                await _pull_item(store, item, client, shown, pause_s)
                shown.note("done")
            except (DownloadFailed, OSError) as error:
                failures[item.name] = str(error)
                shown.note("failed")

    lock = store.locked()
    await anyio.to_thread.run_sync(lock.__enter__)
    try:
        absent = await anyio.to_thread.run_sync(
            lambda: [item for item in items if not store.is_present(item)]
        )
        async with anyio.create_task_group() as tasks:
            for item in absent:
                tasks.start_soon(one, item)
    finally:
        lock.__exit__(None, None, None)
    return failures


async def _pull_item(
    store: Store, item: Item, client: httpx.AsyncClient, progress: Progress, pause_s: float
) -> None:
    if item.url is not None:
        await _pull_url(store, item, item.url, client, progress, pause_s)
    elif item.hub is not None:
        progress.note("by the Hub's client")
        await anyio.to_thread.run_sync(_pull_hub, store, item, item.hub, abandon_on_cancel=True)
    else:
        raise DownloadFailed(
            f"no address is known: put the file at {store.place(item)}, or give its "
            f"`url` in {store.folder / 'manifest.toml'}"
        )


async def _pull_url(
    store: Store,
    item: Item,
    url: str,
    client: httpx.AsyncClient,
    progress: Progress,
    pause_s: float,
) -> None:
    part = store.part(item)
    if await anyio.to_thread.run_sync(part.exists):  # downloaded, and interrupted after that
        await anyio.to_thread.run_sync(part.unlink)
    got = await fetch(
        client, url, part, size=item.size, sha256=item.sha256, progress=progress, pause_s=pause_s
    )
    stop = threading.Event()
    progress.note("checking and unpacking" if item.unpack else "putting in place")
    try:
        await anyio.to_thread.run_sync(_place, store, item, part, got, stop, abandon_on_cancel=True)
    except BaseException:
        stop.set()
        raise


def _place(store: Store, item: Item, part: Path, got: FileRecord, stop: threading.Event) -> None:
    """Put what was downloaded where it belongs: one rename, after everything else."""
    place = store.place(item)
    place.parent.mkdir(parents=True, exist_ok=True)
    if item.unpack is None:
        os.replace(part, place)
        store.write_record(item, _record(item, {"": got}, None))
        return
    folder = part.with_name(part.name + ".unpacked")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        room = shutil.disk_usage(part.parent).free
        unpack(part, item.unpack, folder, max_bytes=room, should_stop=stop.is_set)
    except UnsafeArchive as error:
        part.unlink()
        raise DownloadFailed(f"{item.url}: the archive is refused: {error}") from None
    except Stopped:
        return
    except OSError as error:
        raise DownloadFailed(f"{folder}: can't be written: {error.strerror}") from None
    os.replace(folder, place)
    store.write_record(item, _record(item, store.hashes(item), got))
    part.unlink()


def _pull_hub(store: Store, item: Item, repository: str) -> None:
    """The Hub's client keeps its own parts, and checks what it gets."""
    cache = store.folder / HUB_CACHE
    aside = None if item.is_in_hub_cache else store.part(item)
    place, revision = hub.snapshot(
        repository, revision=item.revision, files=item.files, cache=cache, folder=aside
    )
    if aside is None:
        files = {
            str(path.relative_to(cache)): hash_file(path)
            for path in sorted(place.rglob("*"))
            if path.is_file()
        }
        store.write_record(item, _record(item, files, None, revision))
        return
    shutil.rmtree(aside / ".cache", ignore_errors=True)
    store.place(item).parent.mkdir(parents=True, exist_ok=True)
    os.replace(aside, store.place(item))
    store.write_record(item, _record(item, store.hashes(item), None, revision))


def _record(
    item: Item,
    files: dict[str, FileRecord],
    download: FileRecord | None,
    revision: str | None = None,
) -> Record:
    return Record(
        source=item.source,
        pulled_at=datetime.now(UTC).isoformat(timespec="seconds"),
        files=files,
        download=download,
        revision=revision,
    )
