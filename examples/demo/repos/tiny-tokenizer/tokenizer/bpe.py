"""Byte-pair encoding: the commonest pair of symbols becomes a symbol, again and again."""

import json
from collections import Counter


class Tokenizer:
    def __init__(self, symbols, merges):
        self.symbols = symbols
        self.merges = [tuple(pair) for pair in merges]
        self.ids = {symbol: number for number, symbol in enumerate(symbols)}

    @classmethod
    def train(cls, text, vocab_size):
        parts = list(text)
        symbols = sorted(set(parts))
        if vocab_size < len(symbols):
            raise ValueError(f"vocab_size is {vocab_size}, the text has {len(symbols)} letters")
        merges = []
        while len(symbols) < vocab_size:
            pairs = Counter(zip(parts, parts[1:]))
            if not pairs:
                break
            pair = max(pairs, key=lambda one: (pairs[one], one))
            merges.append(pair)
            symbols.append("".join(pair))
            parts = merge(parts, pair)
        return cls(symbols, merges)

    def encode(self, text):
        parts = list(text)
        for pair in self.merges:
            parts = merge(parts, pair)
        return [self.ids[part] for part in parts]

    def decode(self, numbers):
        return "".join(self.symbols[number] for number in numbers)

    def save(self, path):
        with open(path, "w") as file:
            json.dump({"symbols": self.symbols, "merges": self.merges}, file)

    @classmethod
    def load(cls, path):
        with open(path) as file:
            return cls(**json.load(file))


def merge(parts, pair):
    merged = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged
