import argparse

from tokenizer import Tokenizer

parser = argparse.ArgumentParser(description="Train and use a byte-pair tokenizer.")
commands = parser.add_subparsers(dest="command", required=True)
train = commands.add_parser("train")
train.add_argument("--corpus", required=True)
train.add_argument("--vocab-size", type=int, default=60)
train.add_argument("--out", default="vocab.json")
encode = commands.add_parser("encode")
encode.add_argument("--vocab", required=True)
encode.add_argument("--text", required=True)
options = parser.parse_args()

if options.command == "train":
    with open(options.corpus) as file:
        tokenizer = Tokenizer.train(file.read(), options.vocab_size)
    tokenizer.save(options.out)
    print(f"{len(tokenizer.symbols)} symbols written to {options.out}")
else:
    print(*Tokenizer.load(options.vocab).encode(options.text))
