"""Images: whether each environment answers, and the Dockerfiles that come with mlbench-exec."""

from mlbench_exec.images.check import Answer, check_environment, rows_to_try
from mlbench_exec.images.recipes import Recipe, build, find_recipe, load_recipes, smoke_rows

__all__ = [
    "Answer",
    "Recipe",
    "build",
    "check_environment",
    "find_recipe",
    "load_recipes",
    "rows_to_try",
    "smoke_rows",
]
