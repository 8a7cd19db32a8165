"""A folder below a folder."""
