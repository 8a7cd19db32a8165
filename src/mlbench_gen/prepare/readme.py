"""Readme: all readable files of a repository as one text, its READMEs first."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

__all__ = ["CHARACTERS_PER_TOKEN", "cut_tokens", "readable_text"]

CHARACTERS_PER_TOKEN = 3.125  # ML-Bench's: 100,000 characters for 32,000 tokens


def readable_text(folder: Path) -> str:
    """Every file that is UTF-8, under a line that names it; those named like README first.

    Paths start with the folder's name. As ML-Bench does it, a folder's files come before its
    folders'; here both are sorted, so that every machine gives the same text. Left out are .git,
    and what leads out of the folder or isn't a plain file.
    """
    readmes: list[str] = []
    others: list[str] = []
    for path in _files(folder):
        text = _text(path)
        if text is not None:
            place = Path(folder.name) / path.relative_to(folder)
            part = f"\n=== {place} ===\n{text}\n"
            (readmes if "README" in path.name.upper() else others).append(part)
    return "".join(readmes + others)


def _files(folder: Path) -> Iterator[Path]:
    inside = folder.resolve()
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != ".git")
        for name in sorted(names):
            path = Path(root, name)
            if name != ".git" and path.is_file() and path.resolve().is_relative_to(inside):
                yield path


def _text(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8") as file:  # which also makes every line end \n
            return file.read()
    except (OSError, UnicodeDecodeError):
        return None


def cut_tokens(
    text: str,
    tokens: int,
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
) -> str:
    """The first so many tokens of a text. Encodes no more of it than that takes."""
    characters = tokens * 8
    while True:
        part = text[:characters]
        found = encode(part)
        if len(found) > tokens:
            return decode(found[:tokens])
        if len(part) == len(text):
            return text
        characters *= 2
