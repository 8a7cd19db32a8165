"""Linear models for small tables, in plain Python."""

from trainer.model import Linear
from trainer.table import Table, read_table

__all__ = ["Linear", "Table", "read_table"]
