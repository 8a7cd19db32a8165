"""A byte-pair tokenizer that fits on one page."""

from tokenizer.bpe import Tokenizer
from tokenizer.words import count_words

__all__ = ["Tokenizer", "count_words"]
