"""The exceptions of mlbench-exec.

    MLBenchExecError
    ├── InputError               the user's files or options: bad, missing, or contradictory
    │   └── RunFolderError       a run folder that can't be continued, or is in use
    │       └── RunFolderBroken  its disk refuses a write, or a file in it is damaged
    ├── BackendUnavailable       no backend can start on this machine
    ├── EnvironmentUnusable      this environment has no image, folder or interpreter here
    └── SandboxFailed            a sandbox broke; its snippet is run again on a fresh one
        ├── MachineTooBusy       what else ran here left too little for it; it is run again alone
        └── BackendLost          nothing answers where sandboxes come from; it is waited for

What a submitted program does is never an exception: it is an `Observation`, and becomes a
`Verdict`. Every message names the thing, the place and the next step.
"""


class MLBenchExecError(Exception):
    """The root of everything this package raises on purpose."""


class InputError(MLBenchExecError):
    """The user's input can't be used as it is."""


class RunFolderError(InputError):
    """A run folder belongs to other inputs, is damaged, or is in use by another run."""


class RunFolderBroken(RunFolderError):
    """The disk or the files are at fault, not what was asked for; what is whole stays valid."""


class BackendUnavailable(MLBenchExecError):
    """A backend can't run anything on this machine; the message says what would help."""


class EnvironmentUnusable(MLBenchExecError):
    """An environment isn't there: its outputs stay unjudged, and no retry would help."""


class SandboxFailed(MLBenchExecError):
    """The sandbox, not the snippet, failed; worth another attempt on a fresh one."""


class MachineTooBusy(SandboxFailed):
    """Too little CPU time or memory was left for a snippet to be judged fairly."""


class BackendLost(SandboxFailed):
    """A backend that had started doesn't answer any more; it may come back."""


class SlotBroken(SandboxFailed):
    """What a slot has to itself can't be used any more; no sandbox is opened there again."""
