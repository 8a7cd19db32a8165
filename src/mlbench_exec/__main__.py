"""`python -m mlbench_exec`: the same as the command `mlbench-exec`."""

from mlbench_exec.cli import main

main()
