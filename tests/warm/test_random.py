"""Random states after a preloaded import are those of a fresh one."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from warm.test_same import opened

PYTHON = os.environ.get("MLBENCH_EAP_PYTHON")
LOOK = """
import os, random, numpy, torch
kind, key, position, *gauss = numpy.random.get_state()
print(kind, len(key), position, gauss, torch.get_rng_state().shape)
numpy.random.seed(7), torch.manual_seed(7), random.seed(7)
print(numpy.random.rand(3), numpy.random.randn(2), torch.rand(3), torch.randn(2), random.random())
square = numpy.ones((600, 600))
print((square @ square).sum())  # with a library's threads, which no fork has
if os.fork() == 0:
    print((square @ square).sum(), flush=True)
    os._exit(0)
os.wait()
print(numpy.random.default_rng(7).random(), torch.initial_seed(), torch.randperm(5))
"""
DRAW = """
import random, numpy, torch
print(random.random(), numpy.random.rand(), torch.rand(1).item())
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(PYTHON is None, reason="MLBENCH_EAP_PYTHON names a Python with torch")
def test_numpy_and_torch_are_seeded_as_after_a_fresh_import(tmp_path: Path) -> None:
    """What is seeded comes out the same warm and cold; what isn't, differs between snippets."""
    assert PYTHON is not None
    with contextmanager(opened)(tmp_path, PYTHON, ("numpy", "torch"), slot=40, modules={}) as place:
        cold, warm = (place.run(how, "python", LOOK) for how in ("cold", "warm"))
        assert (warm.warm, warm.notes, cold.stderr, warm.stderr) == (True, (), "", "")
        assert warm.stdout == cold.stdout
        drawn = [place.run("warm", "python", DRAW) for _ in range(2)]
        assert all(one.warm for one in drawn)
        first, second = (one.stdout.split() for one in drawn)
        assert not set(first) & set(second)
