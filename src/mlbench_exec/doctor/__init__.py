"""Doctor: what this machine can do, and the command that mends what it can't.

facts    what was found, as one frozen value
checks   pure: from facts to findings
gather   looks at the machine, and runs one program through each backend
"""

from mlbench_exec.doctor.checks import Finding, exit_code, findings
from mlbench_exec.doctor.facts import Facts
from mlbench_exec.doctor.gather import gather

__all__ = ["Facts", "Finding", "exit_code", "findings", "gather"]
