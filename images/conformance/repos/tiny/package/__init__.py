"""A package to import from the repository's folder."""

NAME = "tiny"
