"""Unpack: an archive becomes a folder, and nothing outside of it.

Names, links and kinds of members are not believed: whatever would lead out of the folder refuses
the whole archive. Owners, set-id bits and times are not taken over.
"""

import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Literal

import msgspec

CHUNK = 1 << 20


class UnsafeArchive(Exception):
    """A member that is no file, folder or link of this very archive; the message names it."""


class Stopped(Exception):
    """The caller wanted no more."""


class _Member(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    kind: Literal["file", "folder", "symlink", "hardlink", "other"]
    executable: bool = False
    link: str = ""
    open: Callable[[], IO[bytes] | None] | None = None


def unpack(
    archive: Path,
    kind: Literal["zip", "tar"],
    folder: Path,
    *,
    max_bytes: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Fill `folder`, which must not be there; it is removed again where this fails.

    A single folder at the archive's top is left out. Raises `UnsafeArchive`, for what would lead
    out of the folder and for more than `max_bytes`; `OSError`; `Stopped`.
    """
    folder.mkdir()
    try:
        left = max_bytes
        links: list[_Member] = []
        members = _zip_members if kind == "zip" else _tar_members
        try:
            for member in members(archive):
                if should_stop():
                    raise Stopped
                path = folder / _safe_name(member.name)
                if member.kind == "folder":
                    path.mkdir(parents=True, exist_ok=True)
                elif member.kind == "file":
                    left -= _write(member, path, left)
                elif member.kind in {"symlink", "hardlink"}:
                    links.append(member)
                else:
                    raise UnsafeArchive(f"{member.name!r} is a device, pipe or the like")
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError) as error:
            raise UnsafeArchive(f"it can't be read: {error}") from None
        _make_links(folder, links)
        _leave_out_top(folder)
        _check_links(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _safe_name(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise UnsafeArchive(f"{name!r} leads out of the folder")
    return str(path)


def _write(member: _Member, path: Path, left: int) -> int:
    """Links come last, so no folder on the way here is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = member.open() if member.open else None
    if source is None:
        raise UnsafeArchive(f"{member.name!r} has no content")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    mode = 0o755 if member.executable else 0o644
    written = 0
    with source, os.fdopen(os.open(path, flags, mode), "wb") as target:
        while chunk := source.read(CHUNK):
            written += len(chunk)
            if written > left:
                raise UnsafeArchive(f"it is larger than the {left} bytes there is room for")
            target.write(chunk)
    return written


def _make_links(folder: Path, links: list[_Member]) -> None:
    """Hard links first: they point to files. Folders before links, so none leads through one."""
    for member in links:
        (folder / _safe_name(member.name)).parent.mkdir(parents=True, exist_ok=True)
    for member in sorted(links, key=lambda one: one.kind != "hardlink"):
        path = folder / _safe_name(member.name)
        if path.is_symlink() or path.exists():
            raise UnsafeArchive(f"the link {member.name!r} stands in another member's place")
        if member.kind == "hardlink":
            target = folder / _safe_name(member.link)
            if target.is_symlink() or not target.is_file():
                raise UnsafeArchive(f"{member.name!r} is a hard link to {member.link!r}")
            os.link(target, path, follow_symlinks=False)
        else:
            path.symlink_to(member.link)


def _check_links(folder: Path) -> None:
    root = folder.resolve()
    for path in folder.rglob("*"):
        if not path.is_symlink():
            continue
        link = os.readlink(path)
        try:
            is_inside = not os.path.isabs(link) and path.resolve().is_relative_to(root)
        except (OSError, RuntimeError):  # links in a circle
            is_inside = False
        if not is_inside:
            name = path.relative_to(folder)
            raise UnsafeArchive(f"'{name}' is a link to {link!r}, out of the folder")


def _leave_out_top(folder: Path) -> None:
    entries = list(folder.iterdir())
    if len(entries) != 1 or entries[0].is_symlink() or not entries[0].is_dir():
        return
    aside = folder.with_name(folder.name + ".top")
    entries[0].rename(aside)
    folder.rmdir()
    aside.rename(folder)


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            mode = info.external_attr >> 16
            kind: Literal["file", "folder", "symlink", "other"] = "file"
            if info.is_dir():
                kind = "folder"
            elif stat.S_ISLNK(mode):
                kind = "symlink"
            elif stat.S_IFMT(mode) not in {0, stat.S_IFREG}:
                kind = "other"
            yield _Member(
                name=info.filename,
                kind=kind,
                executable=bool(mode & 0o100),
                link=opened.read(info)[:4096].decode() if kind == "symlink" else "",
                open=lambda info=info: opened.open(info),  # type: ignore[misc]
            )


def _tar_members(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive, "r:*") as opened:
        for info in opened:
            kind: Literal["file", "folder", "symlink", "hardlink", "other"] = "other"
            if info.isreg():
                kind = "file"
            elif info.isdir():
                kind = "folder"
            elif info.issym():
                kind = "symlink"
            elif info.islnk():
                kind = "hardlink"
            yield _Member(
                name=info.name,
                kind=kind,
                executable=bool(info.mode & 0o100),
                link=info.linkname,
                open=lambda info=info: opened.extractfile(info),  # type: ignore[misc]
            )
