"""mlbench-exec: a sandboxed execution engine for ML-Bench.

async with Engine(Settings(dataset="rows.jsonl")) as engine:
    async for outcome in engine.stream(read_submissions("outputs.jsonl")):
        ...
"""

from mlbench_exec import command, options
from mlbench_exec.dataset import read_rows
from mlbench_exec.engine import Engine, Snippet, UnjudgedError
from mlbench_exec.environments import Environment, Environments, Mount, load_environments
from mlbench_exec.errors import (
    BackendUnavailable,
    EnvironmentUnusable,
    InputError,
    MLBenchExecError,
    RunFolderBroken,
    RunFolderError,
    SandboxFailed,
)
from mlbench_exec.handover import Handover
from mlbench_exec.report import Run, load_run
from mlbench_exec.run import Evaluation
from mlbench_exec.samples import Sample
from mlbench_exec.sandbox import Limits, Observation
from mlbench_exec.settings import Settings
from mlbench_exec.submissions import Rejected, Submission, read_submissions
from mlbench_exec.verdict_stream import VerdictStream
from mlbench_exec.verdicts import Unjudged, Verdict

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "Engine",
    "Environment",
    "EnvironmentUnusable",
    "Environments",
    "Evaluation",
    "Handover",
    "InputError",
    "Limits",
    "MLBenchExecError",
    "Mount",
    "Observation",
    "Rejected",
    "Run",
    "RunFolderBroken",
    "RunFolderError",
    "Sample",
    "SandboxFailed",
    "Settings",
    "Snippet",
    "Submission",
    "Unjudged",
    "UnjudgedError",
    "Verdict",
    "VerdictStream",
    "command",
    "load_environments",
    "load_run",
    "options",
    "read_rows",
    "read_submissions",
]
