"""Archives are unpacked without being trusted."""

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Literal

import pytest

from mlbench_exec.weights.unpack import Stopped, UnsafeArchive, unpack

Kind = Literal["zip", "tar"]
Entry = tuple[str, str, str]  # name, kind, content or link
ROOM = 1 << 20


def make(path: Path, kind: Kind, entries: list[Entry]) -> Path:
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for name, what, content in entries:
                entry = zipfile.ZipInfo(name)
                mode = {
                    "file": stat.S_IFREG | 0o6755,
                    "symlink": stat.S_IFLNK,
                    "fifo": stat.S_IFIFO,
                }
                entry.external_attr = (mode.get(what, 0) or stat.S_IFDIR) << 16
                zipped.writestr(entry, content)
        return path
    kinds = {
        "file": tarfile.REGTYPE,
        "folder": tarfile.DIRTYPE,
        "symlink": tarfile.SYMTYPE,
        "hardlink": tarfile.LNKTYPE,
        "fifo": tarfile.FIFOTYPE,
        "device": tarfile.CHRTYPE,
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, what, content in entries:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid = kinds[what], 0o6755, 1234
            if what == "file":
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content.encode()))
            else:
                info.linkname = content
                archive.addfile(info)
    return path


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_becomes_a_folder(tmp_path: Path, kind: Kind) -> None:
    """The one folder at its top is left out; set-id bits aren't taken over, links inside are."""
    entries: list[Entry] = [
        ("model/", "folder", ""),
        ("model/vocab.txt", "file", "words"),
        ("model/deep/er/x", "file", "x"),
        ("model/latest", "symlink", "deep/er/x"),
    ]
    archive = make(tmp_path / "a", kind, entries)
    unpack(archive, kind, tmp_path / "out", max_bytes=ROOM)
    assert (tmp_path / "out" / "vocab.txt").read_text() == "words"
    assert (tmp_path / "out" / "latest").read_text() == "x"
    mode = (tmp_path / "out" / "vocab.txt").stat().st_mode
    assert mode & 0o7000 == 0
    assert sorted(os.listdir(tmp_path)) == ["a", "out"]


def test_hard_links_within_it_are_kept(tmp_path: Path) -> None:
    """Both names hold the file."""
    archive = make(tmp_path / "a", "tar", [("f", "file", "1"), ("g", "hardlink", "f")])
    unpack(archive, "tar", tmp_path / "out", max_bytes=ROOM)
    assert (tmp_path / "out" / "g").read_text() == "1"


BOTH: list[list[Entry]] = [
    [("../evil", "file", "x")],
    [("a/../../evil", "file", "x")],
    [("/tmp/mlbench-evil", "file", "x")],
    [("..\\evil", "file", "x")],
    [("link", "symlink", "/etc/passwd")],
    [("link", "symlink", "../outside")],
    [("top/link", "symlink", "../../outside")],
    [("one", "symlink", "two"), ("two", "symlink", "one")],
    [("out", "symlink", ".."), ("out/evil", "file", "x")],
    [("pipe", "fifo", "")],
]
TAR_ONLY: list[list[Entry]] = [
    [("hard", "hardlink", "../outside")],
    [("hard", "hardlink", "/etc/passwd")],
    [("soft", "symlink", "/etc/passwd"), ("hard", "hardlink", "soft")],
    [("null", "device", "")],
    [("f", "symlink", "g"), ("f", "symlink", "h")],
]


@pytest.mark.parametrize(
    ("kind", "entries"),
    [("zip", entries) for entries in BOTH] + [("tar", entries) for entries in BOTH + TAR_ONLY],
)
def test_what_leads_out_of_it_refuses_it(tmp_path: Path, kind: Kind, entries: list[Entry]) -> None:
    """Nothing is written outside, and nothing of it stays."""
    (tmp_path / "outside").write_text("mine")
    archive = make(tmp_path / "a", kind, [("first", "file", "x"), *entries])
    with pytest.raises(UnsafeArchive):
        unpack(archive, kind, tmp_path / "out", max_bytes=ROOM)
    assert sorted(os.listdir(tmp_path)) == ["a", "outside"]
    assert (tmp_path / "outside").read_text() == "mine"
    assert (tmp_path / "outside").stat().st_nlink == 1
    assert not Path("/tmp/mlbench-evil").exists()


def test_a_link_that_leads_out_once_the_top_is_left_out_refuses_it(tmp_path: Path) -> None:
    """It was inside as long as the folder at the top was there."""
    entries: list[Entry] = [("top/link", "symlink", "../top/file"), ("top/file", "file", "x")]
    archive = make(tmp_path / "a", "tar", entries)
    with pytest.raises(UnsafeArchive, match="out of the folder"):
        unpack(archive, "tar", tmp_path / "out", max_bytes=ROOM)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_more_than_there_is_room_for_is_refused(tmp_path: Path, kind: Kind) -> None:
    """Counted as it is written: what an archive says of itself isn't believed."""
    archive = make(tmp_path / "a", kind, [("a", "file", "x" * 600), ("b", "file", "x" * 600)])
    with pytest.raises(UnsafeArchive, match="larger than"):
        unpack(archive, kind, tmp_path / "out", max_bytes=1000)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_what_is_no_archive_is_said_to_be_none(tmp_path: Path, kind: Kind) -> None:
    """A page of an error, say, or half a file."""
    (tmp_path / "a").write_bytes(b"<html>404</html>")
    with pytest.raises(UnsafeArchive, match="can't be read"):
        unpack(tmp_path / "a", kind, tmp_path / "out", max_bytes=ROOM)
    whole = make(tmp_path / "b", kind, [("x", "file", "x" * 5000)])
    whole.write_bytes(whole.read_bytes()[:60])
    with pytest.raises(UnsafeArchive, match="can't be read"):
        unpack(whole, kind, tmp_path / "out", max_bytes=ROOM)
    assert not (tmp_path / "out").exists()


def test_it_stops_when_told(tmp_path: Path) -> None:
    """And leaves nothing."""
    archive = make(tmp_path / "a", "tar", [("x", "file", "x")])
    with pytest.raises(Stopped):
        unpack(archive, "tar", tmp_path / "out", max_bytes=ROOM, should_stop=lambda: True)
    assert not (tmp_path / "out").exists()
