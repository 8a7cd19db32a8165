"""Filters for grey pictures: a picture is a list of rows of numbers from 0 to 255."""

from filters.pgm import read_pgm, write_pgm

__all__ = ["read_pgm", "write_pgm"]
