"""What asking a model can fail with.

    AskFailed
    ├── Passing         may succeed if it is asked again: limits, faults, cut connections
    ├── RowRefused      the server doesn't take this prompt; other rows may be answered
    └── ServerRefused   no request would be taken: key, model or address are wrong

Each is raised by one request. What users see is an `InputError` of mlbench_exec, or a row that
stands in failed.jsonl with its reason.
"""


class AskFailed(Exception):
    """The root: one request got no usable reply."""


class Passing(AskFailed):
    """Worth another attempt. `cause` is a short name that retries are counted by."""

    def __init__(self, message: str, *, cause: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.cause = cause
        self.retry_after_s = retry_after_s


class RowRefused(AskFailed):
    """The server refuses this prompt, for its length for instance; asking again changes nothing.

    `names` are the request's parameters that the server complains about, as far as can be read.
    """

    def __init__(self, message: str, *, names: frozenset[str] = frozenset()) -> None:
        super().__init__(message)
        self.names = names


class ServerRefused(AskFailed):
    """The server refuses every request; the message says what to correct."""
