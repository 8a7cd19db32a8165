"""Prepare: from the dataset and its repositories to the contexts that prompts are made from."""

from mlbench_gen.prepare.preparation import Preparation, Report
from mlbench_gen.prepare.repositories import Pin, load_pins

__all__ = ["Pin", "Preparation", "Report", "load_pins"]
