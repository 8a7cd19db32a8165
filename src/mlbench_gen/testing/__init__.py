"""What tests and benchmarks of asking need: a model server of our own, on loopback."""

from mlbench_gen.testing.server import (
    Asked,
    Cut,
    Fault,
    Good,
    Hang,
    ModelServer,
    Raw,
    Response,
    Script,
    gold_script,
)

__all__ = [
    "Asked",
    "Cut",
    "Fault",
    "Good",
    "Hang",
    "ModelServer",
    "Raw",
    "Response",
    "Script",
    "gold_script",
]
