"""Stands for a script of the repository: it wants its argument, and leaves a file."""

import sys

assert sys.argv[1:] == ["--train_batch_size=32"], sys.argv
with open("trained", "x") as file:
    file.write("yes")
