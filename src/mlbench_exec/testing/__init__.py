"""What ships for tests: a backend in memory, and the conformance cases every backend passes."""

from mlbench_exec.testing.fakes import FakeBackend, FakeSandbox, FakeStatistics, observation

__all__ = ["FakeBackend", "FakeSandbox", "FakeStatistics", "observation"]
