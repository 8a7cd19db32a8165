import asyncio
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
from blockbuster import blockbuster_ctx
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbench_exec.errors import RunFolderError
from mlbench_exec.journal import (
    DatasetFacts,
    InputFile,
    Journal,
    Known,
    Manifest,
    Recorded,
    RepoFacts,
    host,
    load_run,
    now,
    versions,
)
from mlbench_exec.submissions import output_hash
from mlbench_exec.verdicts import Status, Unjudged, Verdict

VERSIONS, HOST = versions(), host()
RUN = {"lock", "manifest.json", "unjudged.jsonl", "verdicts.jsonl"}


def manifest(**changes: Any) -> Manifest:
    plain: dict[str, Any] = {
        "created_at": "2026-01-01T00:00:00.000+00:00",
        "inputs": (InputFile(path="outputs.jsonl", sha256="aa"),),
        "dataset": DatasetFacts(
            source="d.jsonl",
            split="full",
            digest="dd",
            repos={9: RepoFacts(name="External-Attention-pytorch", rows=24)},
        ),
        "settings": {"concurrency": 2},
        "verdict_settings": {"clock": "fair", "limits": {"pids": 512, "cpus": 2.0}},
        "versions": VERSIONS,
        "host": HOST,
    }
    return Manifest(**(plain | changes))


def verdict(row_id: int, index: int = 0, status: Status = "failed", **changes: Any) -> Verdict:
    fields: dict[str, Any] = {
        "github_id": 9,
        "id": row_id,
        "index": index,
        "status": status,
        "passed": status == "passed",
        "arguments_ok": True,
        "type_ok": True,
        "output_hash": "h",
    }
    return Verdict(**(fields | changes))


async def write(folder: Path, *verdicts: Verdict) -> None:
    async with Journal(folder, manifest()) as journal:
        for one in verdicts:
            await journal.append(one)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def recorded(folder: Path, **options: Any) -> list[Recorded]:
    found: list[Recorded] = []
    async with Journal(folder, manifest(), known=found.append, **options):
        return found


@pytest.mark.asyncio
async def test_a_run_continues_where_it_was_left(tmp_path: Path) -> None:
    """What one run has judged the next one is told, without what it has no use for."""
    folder = tmp_path / "runs" / "one"
    await write(folder, verdict(1, stdout="x" * 1000, error="KeyError"), verdict(1, 1, "passed"))
    found: list[Recorded] = []
    async with Journal(folder, manifest(), known=found.append) as journal:
        first, second = found
        assert (first.key, first.index, first.status, first.output_hash) == (
            (9, 1),
            0,
            "failed",
            "h",
        )
        assert (second.index, second.status) == (1, "passed")
        assert not hasattr(first, "stdout")
        assert repr(journal) == f"<Journal {str(folder)!r} verdicts=2>"
        await journal.append(verdict(2))
    lines = (folder / "verdicts.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [1, 1, 2]


@pytest.mark.asyncio
async def test_the_manifest_remembers_both_runs(tmp_path: Path) -> None:
    """A continued run keeps its first date and images, and adds its own."""
    async with Journal(tmp_path, manifest(images={"a": "1"})) as journal:
        await journal.set_images({"b": "2"})
    async with Journal(tmp_path, manifest(created_at="later")):
        pass
    stored = msgspec.json.decode((tmp_path / "manifest.json").read_bytes(), type=Manifest)
    assert stored.created_at == "2026-01-01T00:00:00.000+00:00"
    assert stored.resumed_at == ("later",)
    assert stored.images == {"a": "1", "b": "2"}
    assert stored.dataset.split_rows == {9: 24}
    assert stored.dataset.names == {9: "External-Attention-pytorch"}
    assert stored.versions["python"] == sys.version.split()[0]
    assert names_in(tmp_path) == RUN


@pytest.mark.asyncio
async def test_a_folder_serves_one_run_at_a_time(tmp_path: Path) -> None:
    """A second run is refused by the folder's name, and may start when the first has ended."""
    async with Journal(tmp_path, manifest()):
        with pytest.raises(RunFolderError, match=f"{tmp_path} is in use by another run"):
            await recorded(tmp_path)
    assert await recorded(tmp_path) == []


@pytest.mark.asyncio
async def test_two_verdicts_on_one_output_are_never_written(tmp_path: Path) -> None:
    """The second is refused, in one run and in the next."""
    async with Journal(tmp_path, manifest()) as journal:
        await journal.append(verdict(1))
        with pytest.raises(ValueError, match="already has a verdict"):
            await journal.append(verdict(1, status="passed"))
    async with Journal(tmp_path, manifest()) as journal:
        with pytest.raises(ValueError, match="already has a verdict"):
            await journal.append(verdict(1))
        with pytest.raises(ValueError, match="already has a verdict"):
            await journal.append(verdict(2), verdict(1))
        await journal.append(verdict(2))  # the other of those wasn't written
    assert [one.id for one in await recorded(tmp_path)] == [1, 2]


@pytest.mark.asyncio
@pytest.mark.slow
async def test_a_last_line_torn_anywhere_is_dropped(tmp_path: Path) -> None:
    """Wherever a write was cut, the whole lines before it stay, and the next line is whole."""
    await write(tmp_path, verdict(1), verdict(2, stderr="ü\n"))
    path = tmp_path / "verdicts.jsonl"
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for size in range(first, len(content)):
        path.write_bytes(content[:size])
        found: list[Recorded] = []
        async with Journal(tmp_path, manifest(), known=found.append) as journal:
            assert [one.id for one in found] == [1]
            assert path.read_bytes() == content[:first]
            if size % 50 == 0:
                await journal.append(verdict(3))
                assert len((await anyio.to_thread.run_sync(load_run, tmp_path)).tally) == 2


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(rubbish=st.binary(max_size=40), newline=st.booleans())
def test_any_rubbish_at_the_end_is_dropped(
    tmp_path_factory: pytest.TempPathFactory, rubbish: bytes, newline: bool
) -> None:
    """A last line that nothing can be read from is no verdict, with or without its newline."""
    folder = tmp_path_factory.mktemp("run")
    line = msgspec.json.encode(verdict(1)) + b"\n"
    tail = rubbish.replace(b"\n", b"") + (b"\n" if newline else b"")
    asyncio.run(write(folder))
    (folder / "verdicts.jsonl").write_bytes(line + tail)
    assert [one.id for one in asyncio.run(recorded(folder))] == [1]
    assert (folder / "verdicts.jsonl").read_bytes() == line


@pytest.mark.asyncio
async def test_a_bad_line_in_the_middle_is_named(tmp_path: Path) -> None:
    """Damage that no torn write explains stops the run, by file and line, and says what to do."""
    await write(tmp_path, verdict(1), verdict(2))
    path = tmp_path / "verdicts.jsonl"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"id":1', b'"id":?'))
    with pytest.raises(RunFolderError, match=r"verdicts\.jsonl:1: .*remove that line"):
        await recorded(tmp_path)
    path.write_bytes(content + content)
    with pytest.raises(RunFolderError, match=r"verdicts\.jsonl:3: .*already has a verdict"):
        await recorded(tmp_path)
    with pytest.raises(RunFolderError, match=r"verdicts\.jsonl:3: "):
        await anyio.to_thread.run_sync(load_run, tmp_path)
    assert path.read_bytes() == content + content
    assert await recorded(tmp_path, restart=True) == []


@pytest.mark.asyncio
async def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    """Each setting that changes verdicts is named with both values; others are free."""
    await write(tmp_path, verdict(1))
    changed = manifest(
        verdict_settings={"clock": "wall", "limits": {"pids": 99, "cpus": 2}, "gpus": "all"},
        dataset=DatasetFacts(source="d.jsonl", split="full", digest="ee"),
    )
    with pytest.raises(RunFolderError) as refused:
        async with Journal(tmp_path, changed):
            pass
    message = str(refused.value)
    assert 'clock: was "fair", now "wall"' in message
    assert "limits.pids: was 512, now 99" in message
    assert 'gpus: was not set, now "all"' in message
    assert "dataset: was d.jsonl full dd, now d.jsonl full ee" in message
    assert "cpus" not in message
    assert "--restart" in message
    found: list[Recorded] = []
    async with Journal(tmp_path, manifest(settings={"concurrency": 64}), known=found.append):
        assert len(found) == 1


@pytest.mark.asyncio
async def test_an_environment_may_be_corrected_until_it_was_used(tmp_path: Path) -> None:
    """What was wrong and reached no verdict is mended and run; what verdicts came from stays."""

    def having(workdir: str) -> Manifest:
        environment = {"github_ids": [9], "workdir": workdir}
        return manifest(verdict_settings={"environments": {"EAP_DS": environment}})

    async with Journal(tmp_path, having("/wrong")) as journal:
        await journal.append(verdict(1, status="wrong_type"))
    async with Journal(tmp_path, having("/right")) as journal:
        await journal.append(verdict(2, wall_s=1.0))
    with pytest.raises(RunFolderError, match=r'workdir: was "/right", now "/other"'):
        async with Journal(tmp_path, having("/other")):
            pass


@pytest.mark.asyncio
async def test_an_image_that_changed_under_its_name_is_refused(tmp_path: Path) -> None:
    """Verdicts of one run never come from two images."""
    async with Journal(tmp_path, manifest()) as journal:
        await journal.set_images({"an/image": "sha256:one"})
        await journal.set_images({"an/image": "sha256:two"})  # nothing was run in it yet
        await journal.append(verdict(1, wall_s=1.0))
    async with Journal(tmp_path, manifest()) as journal:
        await journal.set_images({"an/image": "sha256:two", "another": "sha256:three"})
        with pytest.raises(RunFolderError, match="sha256:two, and an/image is sha256:four"):
            await journal.set_images({"an/image": "sha256:four"})


@pytest.mark.asyncio
async def test_restart_removes_the_old_run_and_nothing_else(tmp_path: Path) -> None:
    """Only files that a run makes are removed, and then other settings are welcome."""
    await write(tmp_path, verdict(1))
    for name in ("summary.json", "report.html", "notes.txt"):
        (tmp_path / name).write_text("x")
    changed = manifest(verdict_settings={"clock": "wall"})
    found: list[Recorded] = []
    async with Journal(tmp_path, changed, restart=True, known=found.append):
        assert found == []
    assert names_in(tmp_path) == RUN | {"notes.txt"}


@pytest.mark.asyncio
async def test_folders_that_cannot_be_continued_are_refused(tmp_path: Path) -> None:
    """Verdicts without a manifest, strange manifests and files for folders are explained."""
    await write(tmp_path, verdict(1))
    stored = tmp_path / "manifest.json"
    content = stored.read_text()
    stored.unlink()
    with pytest.raises(RunFolderError, match=r"no manifest\.json"):
        await recorded(tmp_path)
    with pytest.raises(RunFolderError, match="holds no run"):
        await anyio.to_thread.run_sync(load_run, tmp_path)
    stored.write_text("{")
    with pytest.raises(RunFolderError, match="can't be read"):
        await recorded(tmp_path)
    stored.write_text(content.replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(RunFolderError, match="schema version 2 is not 1"):
        await recorded(tmp_path)
    (tmp_path / "notes").write_text("x")
    with pytest.raises(RunFolderError, match=r"can't open .*notes"):
        await recorded(tmp_path / "notes")


@pytest.mark.asyncio
async def test_unjudged_outputs_are_those_of_the_last_run(tmp_path: Path) -> None:
    """The next run tries them again, so their file starts empty."""
    reason = Unjudged(reason="no image", kind="environment", github_id=9, id=1, index=0)
    async with Journal(tmp_path, manifest()) as journal:
        await journal.append_unjudged(reason)
    assert (await anyio.to_thread.run_sync(load_run, tmp_path)).tally.reasons()[
        0
    ].reason == "no image"
    async with Journal(tmp_path, manifest()):
        pass
    assert (tmp_path / "unjudged.jsonl").read_bytes() == b""


@pytest.mark.asyncio
async def test_a_full_disk_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused write is taken back, explained, and may be tried again when there is room."""
    async with Journal(tmp_path, manifest()) as journal:
        await journal.append(verdict(1))
        really_write = os.write

        def fill(fd: int, data: bytes) -> int:
            if len(data) < 50:  # the first of two lines has gone by then
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return really_write(fd, data[:30])

        with monkeypatch.context() as patched:
            patched.setattr(os, "write", fill)
            with pytest.raises(RunFolderError, match=r"verdicts\.jsonl: No space left .*make room"):
                await journal.append(verdict(2), verdict(3))
        assert (tmp_path / "verdicts.jsonl").read_bytes().count(b"\n") == 1
        assert (tmp_path / "verdicts.jsonl").read_bytes().endswith(b"\n")
        await journal.append(verdict(2), verdict(3))
    assert [one.id for one in await recorded(tmp_path)] == [1, 2, 3]


@pytest.mark.asyncio
async def test_a_verdict_reaches_the_disk_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many verdicts share one fsync, which comes without waiting for the end."""
    synced: list[int] = []
    async with Journal(tmp_path, manifest(), sync_every_s=0.02) as journal:
        monkeypatch.setattr(os, "fsync", synced.append)
        for row_id in range(20):
            await journal.append(verdict(row_id))
        with anyio.fail_after(5):
            while not synced:  # noqa: ASYNC110 - the file system sends no event
                await anyio.sleep(0.005)
        assert len(synced) < 20


@pytest.mark.asyncio
async def test_a_disk_that_fails_to_sync_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An fsync that fails in the background is not lost: the block ends with it."""

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def run() -> None:
        async with Journal(tmp_path, manifest()) as journal:
            monkeypatch.setattr(os, "fsync", fail)
            await journal.append(verdict(1))

    with pytest.raises(RunFolderError, match="Input/output error"):
        await run()


@pytest.mark.asyncio
async def test_an_exception_leaves_the_block_as_it_is(tmp_path: Path) -> None:
    """No exception group is made of what the body raises, and the folder is free again."""

    async def run() -> None:
        async with Journal(tmp_path, manifest()) as journal:
            await journal.append(verdict(1))
            raise KeyError

    with pytest.raises(KeyError):
        await run()
    assert len(await recorded(tmp_path)) == 1


@pytest.mark.asyncio
@pytest.mark.slow
async def test_cancelling_frees_the_folder_and_leaves_whole_lines(tmp_path: Path) -> None:
    """Wherever a run is cancelled, natively or by a scope, its folder can be continued."""

    async def run() -> None:
        found: list[Recorded] = []
        async with Journal(tmp_path, manifest(), known=found.append) as journal:
            number = len(found)
            while True:
                await journal.append(verdict(number))
                number += 1

    content, after_s = b"", 0.02
    while not content or after_s < 0.1:  # a slow disk writes nothing in the first rounds
        task = asyncio.get_running_loop().create_task(run())
        await asyncio.sleep(after_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with anyio.move_on_after(after_s) as scope:
            await run()
        assert scope.cancelled_caught
        after_s *= 2
        path = anyio.Path(tmp_path / "verdicts.jsonl")
        content = await path.read_bytes() if await path.exists() else b""
    assert content.endswith(b"\n")
    assert len(await recorded(tmp_path)) == content.count(b"\n") > 0


@pytest.mark.asyncio
async def test_the_event_loop_is_never_blocked(tmp_path: Path) -> None:
    """Opening, writing, syncing and closing happen in threads."""
    await write(tmp_path / "before", verdict(1))  # what is imported lazily, is by now
    facts = manifest()
    with blockbuster_ctx():
        async with Journal(tmp_path, facts, sync_every_s=0.01) as journal:
            for row_id in range(5):
                await journal.append(verdict(row_id))
            await journal.append_unjudged(Unjudged(reason="r", kind="input"))
            await journal.set_images({"a": "b"})
            await anyio.sleep(0.03)


@pytest.mark.asyncio
async def test_text_that_is_no_unicode_is_written(tmp_path: Path) -> None:
    """A lone surrogate in what a program said costs that character, not the verdict."""
    await write(tmp_path, verdict(1, stdout="a\ud800b", error="E\udfff"))
    assert [one.error for one in await recorded(tmp_path)] == ["E?"]


@pytest.mark.asyncio
async def test_a_report_can_be_made_from_the_folder_alone(tmp_path: Path) -> None:
    """Verdicts and manifest give the whole tally, also while the run goes on."""
    empty = output_hash("")
    async with Journal(tmp_path, manifest(until_pass=True)) as journal:
        await journal.append(verdict(1, status="passed", output_hash=empty))
        await journal.append(verdict(1, 1, "skipped"))
        await journal.append(verdict(2, wall_s=1.5, started_at=now()))
        loaded = await anyio.to_thread.run_sync(load_run, tmp_path)
    assert loaded.manifest.dataset.names[9] == "External-Attention-pytorch"
    assert (len(loaded.tally), loaded.tally.judged, loaded.tally.empty_passed) == (2, 3, 1)
    assert loaded.tally.until_pass
    assert loaded.tally.passed((9, 1), 5) == 1


@pytest.mark.slow
def test_a_killed_run_can_be_continued(tmp_path: Path) -> None:
    """SIGKILL in the middle of writing loses no verdict that was handed over, nor the lock."""
    program = (
        "import asyncio, sys; sys.path.insert(0, sys.argv[2])\n"
        "import pathlib, test_journal as t\n"
        "async def main():\n"
        "    async with t.Journal(pathlib.Path(sys.argv[1]), t.manifest()) as journal:\n"
        "        for number in range(10**6):\n"
        "            await journal.append(t.verdict(number, stdout='x' * 20000))\n"
        "            print(number, flush=True)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if int(line) >= 50:
                break
        running.kill()
        told = int((running.stdout.read().split() or [line])[-1])
    assert len(asyncio.run(recorded(tmp_path))) > told


def test_known_outputs_are_found_again_in_little_memory() -> None:
    """By row and index, with what is needed to tell a changed output."""
    known = Known()
    known.add((9, 1), 4, passed=True, output_hash="a" * 32)
    known.add((9, 1), 0, passed=False, output_hash="h")
    assert known.get((9, 1)) == {4: True, 0: False}
    assert known.get((9, 2), {}) == {}
    assert known.hashes((9, 1)) == [(0, "h"), (4, "a" * 32)]
    assert known.hashes((9, 2)) == []
    assert ((9, 1) in known, len(known), known.outputs) == (True, 1, 2)
    assert repr(known) == "<Known 2 outputs of 1 rows>"
