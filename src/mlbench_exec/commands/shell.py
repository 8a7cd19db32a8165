"""The `shell` command: a prompt in the sandbox that snippets get."""

import sys

import click

from mlbench_exec.command import Failures, interruptible, say
from mlbench_exec.options import engine_options, settings_from
from mlbench_exec.shell import run_shell


@click.command()
@click.argument("environment")
@engine_options
def shell(environment: str, **given: object) -> None:
    """Open a prompt in ENVIRONMENT, in the very sandbox that snippets get.

    The same view, limits and isolation; what you write is gone when you leave. The time limit is a
    day unless you give one. Ends with the exit code of the shell.
    """
    with Failures():
        settings = settings_from(given)
        if sys.stdin.isatty():
            say(
                f"A snippet's sandbox of {environment}: what you write here is gone when you leave."
            )
        sys.exit(interruptible(lambda: run_shell(settings, environment)))
