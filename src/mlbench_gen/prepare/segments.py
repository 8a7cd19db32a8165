"""Segments: the passage of a text that BM25 finds for an instruction, as ML-Bench takes it.

Windows of ten sentences, one beginning at each of the first thousand sentences; their words, split
at white space; rank-bm25's BM25Okapi over all windows of the text. rank-bm25 is what ML-Bench uses:
others (bm25s) have another floor for words that most windows hold, so other windows win.
"""

import importlib
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from mlbench_exec import InputError

__all__ = ["Segments", "rule_sentences", "sentence_splitter"]

WINDOW = 10
SENTENCES = 1000

_END = re.compile(r"""(?<![.!?])[.!?]++["'\u201d\u2019)\]]*+(?=\s)""")
_START = re.compile(r"""\s*["'\u201c\u2018(\[]*(\S)""")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:e\.g|i\.e|etc|vs|cf|al|fig|eq|no|dr|mr|mrs|ms|st|[a-z])\.$", re.I
)

Splitter = Callable[[str], Iterator[str]]


class Segments:
    """Finds the best window of one text for any number of instructions."""

    def __init__(self, text: str, split: Splitter) -> None:
        sentences = list(islice(split(text), SENTENCES))
        windows = (sentences[start : start + WINDOW] for start in range(len(sentences)))
        self.windows = [" ".join(window).split() for window in windows]
        self._index = _bm25(self.windows) if any(self.windows) else None

    def best(self, instruction: str) -> str:
        """The window with the highest score, its words joined by a space; "" for an empty text.

        Of windows with the same score the last is taken: so does ML-Bench's `argsort` in reverse
        order, as far as its sort, which isn't a stable one, keeps equals in their order.
        """
        if self._index is None:
            return ""
        scores = self._index.get_scores(instruction.split())
        best = len(scores) - 1 - int(scores[::-1].argmax())
        return " ".join(self.windows[best])


def sentence_splitter(name: str) -> Splitter:
    """`punkt`, which ML-Bench uses, by nltk; or `rule`, ours, which needs nothing.

    Raises `InputError` where punkt isn't installed.
    """
    return _punkt() if name == "punkt" else rule_sentences


def rule_sentences(text: str) -> Iterator[str]:
    """Sentences end in `.`, `!` or `?` before white space, unless what follows begins in lower
    case or what precedes is a common abbreviation. Line ends alone end nothing."""
    start = 0
    for end in _END.finditer(text):
        following = _START.match(text, end.end())
        if following is None:
            break
        if following[1].islower() or _ABBREVIATION.search(
            text[max(start, end.end() - 8) : end.end()]
        ):
            continue
        if sentence := text[start : end.end()].strip():
            yield sentence
        start = end.end()
    if sentence := text[start:].strip():
        yield sentence


def _bm25(windows: list[list[str]]) -> Any:
    try:
        return importlib.import_module("rank_bm25").BM25Okapi(windows)
    except ImportError:
        raise InputError('retrieval needs the gen extra: pip install "mlbench-exec[gen]"') from None


def _punkt() -> Splitter:
    try:
        tokenize = importlib.import_module("nltk.tokenize")
        tokenizer = tokenize.PunktTokenizer("english")
    except (ImportError, AttributeError, LookupError):
        raise InputError(
            "--sentences punkt needs nltk and its data: pip install nltk, then "
            "python -m nltk.downloader punkt_tab; or take --sentences rule"
        ) from None

    def split(text: str) -> Iterator[str]:
        for start, end in tokenizer.span_tokenize(text):
            yield text[start:end]

    return split
