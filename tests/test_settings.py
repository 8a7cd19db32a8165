import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbench_exec.environments import Mount
from mlbench_exec.errors import InputError
from mlbench_exec.sandbox import GIB, Limits
from mlbench_exec.settings import (
    Settings,
    host_memory_bytes,
    parse_gpus,
    parse_mount,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("512m", 512 << 20),
        ("8g", 8 * GIB),
        ("8G", 8 * GIB),
        ("8 GB", 8 * GIB),
        ("8GiB", 8 * GIB),
        ("1.5g", GIB + GIB // 2),
        (" 64k ", 64 << 10),
        ("2t", 2 << 40),
        ("100b", 100),
    ],
)
def test_sizes_are_read_as_docker_reads_them(text: str, size: int) -> None:
    """Binary multiples, in upper or lower case, with or without a B."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "g", "8x", "-1g", "0", "0g", "0.4", "1e9", "8g8", "nan", "8 g b", "9" * 40]
)
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    """The message repeats what was written and shows what can be."""
    with pytest.raises(InputError, match="is not a size: write for instance 512m or 8g") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


@settings(max_examples=50)
@given(st.text(max_size=12))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    """Nothing that is typed makes it raise anything else."""
    with contextlib.suppress(InputError):
        assert parse_size(text) > 0


def test_mounts_are_read_only_unless_told() -> None:
    """SRC:DST, with :rw or :ro behind it."""
    assert parse_mount("/data:/deep_data") == Mount(source="/data", target="/deep_data")
    assert parse_mount("/data:/deep_data:ro").mode == "ro"
    assert parse_mount("/data:/deep_data:rw").mode == "rw"


def test_a_mounts_source_is_of_this_folder_and_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative to where the command runs; ~ is the home; the target is made plain."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    assert parse_mount("weights:/w").source == str(tmp_path / "weights")
    assert parse_mount("~/weights:/w").source == "/home/ada/weights"
    assert parse_mount("/data://deep//data/.").target == "/deep/data"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/data",
        "/data:",
        ":/data",
        "/data:relative",
        "/a:/b:rx",
        "/a:/b:rw:rw",
        "/a:/",
        "/a:/b/..",
    ],
)
def test_what_is_no_mount_is_refused_by_name(text: str) -> None:
    """The message repeats what was written and shows what can be."""
    with pytest.raises(InputError, match="write SRC:DST or SRC:DST:rw") as caught:
        parse_mount(text)
    assert repr(text) in str(caught.value)


def test_gpus_are_none_all_or_numbers() -> None:
    """A misspelt word is refused, rather than taken for a device."""
    assert [parse_gpus(text) for text in ("none", "all", "0", "0,1")] == ["none", "all", "0", "0,1"]
    for text in ("", "some", "0,", "0, 1", "-1"):
        with pytest.raises(InputError, match=r"--gpus .*: write none, all, or device numbers"):
            parse_gpus(text)


def test_the_mlbench_profile_lifts_what_ml_bench_does_not_limit() -> None:
    """Network and wall clock; no limit on memory, CPU and processes; the disk stays limited."""
    profile = Settings(until_pass=True).with_profile("mlbench")
    assert profile.network == "bridge"
    assert profile.limits == Limits(memory_bytes=None, cpus=None, pids=None, clock="wall")
    assert profile.limits.disk_bytes == 2 * GIB
    assert profile.until_pass
    assert Settings().with_profile("strict") == Settings()


def test_the_default_concurrency_is_what_cores_and_memory_admit() -> None:
    """Never less than one, and never more than the cores that this process has."""
    cores, memory = len(os.sched_getaffinity(0)), host_memory_bytes()
    small = Limits(memory_bytes=memory // (cores + 1))
    assert Settings(limits=small).resolved_concurrency() == cores
    assert Settings(limits=Limits(memory_bytes=None)).resolved_concurrency() == cores
    assert Settings(limits=Limits(memory_bytes=memory // 2 + 1)).resolved_concurrency() == 1
    assert Settings(limits=Limits(memory_bytes=memory * 2)).resolved_concurrency() == 1
    assert Settings(concurrency=64).resolved_concurrency() == 64


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_numbers_that_nothing_could_run_with_are_refused(value: float) -> None:
    """A pool of no sandboxes would wait for ever, and a limit of no time judges nothing."""
    with pytest.raises(InputError, match=r"time limit .*: give a number above 0"):
        Settings(time_limit_s=value)
    with pytest.raises(InputError, match=r"cpus .*: give a number above 0"):
        Settings(limits=Limits(cpus=value))
    with pytest.raises(InputError, match=r"concurrency .*: give a number above 0"):
        Settings(concurrency=value)  # type: ignore[arg-type]
