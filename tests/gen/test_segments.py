"""Segments: windows, words and scores as ML-Bench has them."""

import math
import random
from collections import Counter

import pytest

from mlbench_gen.prepare.readme import cut_tokens
from mlbench_gen.prepare.segments import Segments, rule_sentences

WORDS = ["train", "model", "data", "the", "a", "of", "with", "rate", "batch", "size", "run", "eval"]


def okapi(query: list[str], documents: list[list[str]]) -> list[float]:
    """BM25 with k1 = 1.5, b = 0.75; no idf is below a quarter of the mean."""
    size, average = len(documents), sum(map(len, documents)) / len(documents)
    holding = Counter(word for document in documents for word in set(document))
    idf = {w: math.log(size - n + 0.5) - math.log(n + 0.5) for w, n in holding.items()}
    floor = 0.25 * sum(idf.values()) / len(idf)
    idf = {word: value if value >= 0 else floor for word, value in idf.items()}
    scores = []
    for document in documents:
        counts = Counter(document)
        norm = 1.5 * (1 - 0.75 + 0.75 * len(document) / average)
        terms = (idf.get(w, 0) * counts[w] * 2.5 / (counts[w] + norm) for w in query)
        scores.append(sum(terms))
    return scores


@pytest.mark.parametrize("seed", range(20))
def test_scores_are_those_of_the_formula(seed: int) -> None:
    """The window that is found has the highest score of all, by the formula written out."""
    chance = random.Random(seed)
    sentences = [
        " ".join(chance.choices(WORDS, k=chance.randint(3, 12))).capitalize() + " now."
        for _ in range(60)
    ]
    segments = Segments(" ".join(sentences), rule_sentences)
    windows = [" ".join(sentences[start : start + 10]).split() for start in range(60)]
    assert segments.windows == windows
    query = chance.choices(WORDS, k=6)
    scores = okapi(query, windows)
    found = windows.index(segments.best(" ".join(query)).split())
    assert scores[found] == pytest.approx(max(scores), abs=1e-9)


def test_of_equals_the_last_is_taken() -> None:
    """Where no window is better than another, the last one is the segment."""
    text = " ".join(f"Sentence number {n}." for n in range(30))
    assert Segments(text, rule_sentences).best("nothing of it") == "Sentence number 29."


def test_a_thousand_sentences_are_enough() -> None:
    """What stands behind the first thousand sentences is not looked at."""
    text = " ".join(f"Sentence {n} here." for n in range(1500)) + " The needle is here."
    segments = Segments(text, rule_sentences)
    assert len(segments.windows) == 1000
    assert "needle" not in segments.best("needle")
    assert segments.windows[999] == ["Sentence", "999", "here."]


def test_an_empty_text_has_an_empty_segment() -> None:
    """Nothing to search gives nothing, without an error."""
    assert Segments("", rule_sentences).best("a") == ""
    assert Segments(" \n\n", rule_sentences).best("") == ""


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Use e.g. this one. See Fig. 3 for it.", ["Use e.g. this one.", "See Fig. 3 for it."]),
        (
            "Run train.py with lr 0.1 now. Then\nstop.",
            ["Run train.py with lr 0.1 now.", "Then\nstop."],
        ),
        ('He said "go." Then (it went.) Fine', ['He said "go."', "Then (it went.)", "Fine"]),
        ("Title\n\nText without an end", ["Title\n\nText without an end"]),
        ("Wait... what? yes.", ["Wait... what? yes."]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    """Sentences end where readers see it, and never at a line's end alone."""
    assert list(rule_sentences(text)) == sentences


@pytest.mark.parametrize("text", ["." * 100_000, "a. " * 50_000, " " * 100_000, "A.\n" * 50_000])
def test_time_is_in_proportion(text: str) -> None:
    """No text makes the splitting slow."""
    assert "".join(rule_sentences(text)).replace(" ", "").replace("\n", "") == text.replace(
        " ", ""
    ).replace("\n", "")


def test_cutting_by_tokens_encodes_no_more_than_it_needs() -> None:
    """The first tokens of a text are kept, however long it is and whatever a token's length."""
    encoded: list[int] = []

    def encode(text: str) -> list[int]:
        encoded.append(len(text))
        return [ord(text[start]) for start in range(0, len(text), 20)]

    cut = cut_tokens("x" * 10_000, 10, encode, lambda tokens: "x" * 20 * len(tokens))
    assert cut == "x" * 200
    assert max(encoded) < 500
    assert cut_tokens("short", 10, encode, lambda tokens: "") == "short"
