"""Measurements of the engine, each run by hand: `python -m bench.NAME`."""
