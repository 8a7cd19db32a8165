"""Backends: where sandboxes come from. `docker` and `local` both start the same agent."""
