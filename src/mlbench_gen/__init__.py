"""What stands before mlbench-exec: from a model's answers to the outputs that are executed."""

from mlbench_gen.extraction import extract

__all__ = ["extract"]
