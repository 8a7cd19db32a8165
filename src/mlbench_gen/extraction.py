"""Extraction: the code in a model's answer."""

import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["extract"]

_FENCE = re.compile(r"([ \t]*)(`{3,})([^`]*)")
_PREFERRED = ({"python"}, {"bash"}, {"shell", "script"}, {""})


class _Block(NamedTuple):
    tag: str  # the word behind the fence, in lower case; empty for a bare one
    code: str


def extract(answer: str) -> str:
    """The code of an answer, by ML-Bench's order of preference.

    The first block tagged `python`; else `bash`; else `shell` or `script`; else the first block
    without a tag; else the whole answer, unchanged. Other tags (`py`, `sh`, `json`, …) never match.

    What Markdown leaves open is settled so:

    - A fence is a line of three or more backticks, indented or not. Its tag is the first word
      behind it, in any case (```` ```Python title="x" ````). Tildes are no fence.
    - A block ends at the next line of at least as many backticks, or where a line of code ends in
      them (``print(1)``` ``). If that line carries a tag it opens the next block.
    - A block that is never closed, as in an answer cut short, runs to the end.
    - Its code comes without the fence's indentation, with `\\n` for line ends, and without the
      last of them. It may be empty.
    """
    blocks = list(_blocks(answer))
    for tags in _PREFERRED:
        for block in blocks:
            if block.tag in tags:
                return block.code
    return answer


def _blocks(answer: str) -> Iterator[_Block]:
    opened: re.Match[str] | None = None
    code: list[str] = []
    for line in answer.replace("\r\n", "\n").split("\n"):
        fence = _FENCE.fullmatch(line)
        if opened is None:
            opened, code = fence, []
        elif fence is not None and len(fence[2]) >= len(opened[2]):
            yield _block(opened, code)
            opened, code = (fence, []) if _tag(fence) else (None, [])
        elif fence is None and (last := _before_fence(line, opened[2])) is not None:
            yield _block(opened, [*code, last])
            opened = None
        else:
            code.append(line)
    if opened is not None:
        yield _block(opened, code)


def _block(opened: re.Match[str], code: list[str]) -> _Block:
    return _Block(_tag(opened), "\n".join(_dedented(line, len(opened[1])) for line in code))


def _tag(fence: re.Match[str]) -> str:
    words = fence[3].split(maxsplit=1)
    return words[0].lower() if words else ""


def _before_fence(line: str, fence: str) -> str | None:
    """The code of a line that ends in the closing fence, or `None`."""
    text = line.rstrip()
    code = text.rstrip("`")
    closes = len(text) - len(code) >= len(fence) and fence not in code
    return code if closes else None


def _dedented(line: str, width: int) -> str:
    """The line without the indentation that its fence has too."""
    blank = len(line) - len(line.lstrip(" \t"))
    return line[min(width, blank) :]
