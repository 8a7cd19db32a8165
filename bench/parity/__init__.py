"""Parity: does a snippet's verdict depend on how many others run, and on what else is running?

The corpus is generated; the verdict that each snippet deserves follows from its source alone. It
is judged at several concurrencies with both clocks, and every verdict that differs is a flip.
"""
