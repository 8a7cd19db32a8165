"""Options: the flags that say what is asked, and of whom, for every command that generates.

Where ML-Bench's scripts have a name for something, it works too.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from mlbench_exec import InputError
from mlbench_exec.options import flags
from mlbench_gen.prompts import Template, load_template, template_of
from mlbench_gen.settings import DEFAULT_KEY, Sampling, Service

__all__ = ["generation_options", "sampling_from", "service_from", "task_from", "template_from"]

README_TYPES = {"oracle_segment": 3, "readme": 1}

_ABOVE_0 = click.FloatRange(min=0, min_open=True)
_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--model",
        "--engine-name",
        "--engine_name",
        "model",
        required=True,
        metavar="M",
        help="The model's name at its server.",
    ),
    click.option(
        "--task",
        type=click.IntRange(1, 4),
        metavar="1|2|3|4",
        help="Context: 1 whole README, 2 retrieved segment, 3 oracle, 4 none. [default: 3]",
    ),
    click.option(
        "--readme-type",
        "--readme_type",
        "readme_type",
        type=click.Choice(list(README_TYPES)),
        help="ML-Bench's name for --task 3 and 1.",
    ),
    click.option(
        "--samples",
        "--n-turn",
        "--n_turn",
        "samples",
        type=click.IntRange(min=1),
        default=5,
        show_default=True,
        metavar="N",
        help="Answers for each row.",
    ),
    click.option(
        "--prompt-template",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Your wording, with {instruction} and {context} in it.",
    ),
    click.option("--temperature", type=click.FloatRange(min=0), default=1.0, show_default=True),
    click.option("--top-p", type=click.FloatRange(0, 1), default=1.0, show_default=True),
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        metavar="N",
        help="Length of an answer. [default: the server's]",
    ),
    click.option(
        "--param",
        "params",
        multiple=True,
        metavar="NAME=JSON",
        help="Anything else for the request; null takes a parameter out. --param temperature=null",
    ),
    click.option(
        "--base-url",
        metavar="URL",
        help="A server that speaks chat completions. [default: OPENAI_BASE_URL, or OpenAI]",
    ),
    click.option(
        "--api-version",
        metavar="V",
        help="For Azure's addresses with an api-version, 2024-10-21 for instance.",
    ),
    click.option(
        "--key-env",
        default=DEFAULT_KEY,
        show_default=True,
        metavar="NAME",
        help="The environment variable that holds the key.",
    ),
    click.option("--stream", is_flag=True, help="Have answers streamed, for servers that want it."),
    click.option(
        "--one-at-a-time", is_flag=True, help="Never ask for several answers in one request."
    ),
    click.option(
        "--requests",
        type=click.IntRange(min=1),
        default=16,
        show_default=True,
        metavar="N",
        help="Requests at once.",
    ),
    click.option("--requests-per-minute", type=_ABOVE_0, metavar="N"),
    click.option("--tokens-per-minute", type=_ABOVE_0, metavar="N"),
    click.option(
        "--timeout",
        type=_ABOVE_0,
        default=600.0,
        show_default=True,
        metavar="S",
        help="Seconds for a whole reply.",
    ),
    click.option(
        "--attempts",
        type=click.IntRange(min=1),
        default=10,
        show_default=True,
        metavar="N",
        help="For each request, before its row is given up until the next run.",
    ),
    click.option(
        "--backoff",
        type=_ABOVE_0,
        default=1.0,
        show_default=True,
        metavar="S",
        help="Seconds before a second attempt; doubled for each further one, up to 60.",
    ),
    click.option(
        "--prices",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Prices by model (TOML), to show the cost.",
    ),
    click.option(
        "--limit", type=click.IntRange(min=1), metavar="ROWS", help="Only the split's first rows."
    ),
    click.option("--restart", is_flag=True, help="Forget what the folder holds."),
)


# Gives a command every flag that the functions below read.
generation_options = flags(_OPTIONS)


def task_from(given: Mapping[str, Any]) -> int:
    """The task, by our name or ML-Bench's."""
    task, readme_type = given["task"], given["readme_type"]
    if readme_type is None:
        return task or 3
    if task not in (None, README_TYPES[readme_type]):
        raise click.UsageError(
            f"--readme-type {readme_type} is task {README_TYPES[readme_type]}, not {task}: "
            "give one of them"
        )
    return README_TYPES[readme_type]


def template_from(given: Mapping[str, Any]) -> Template:
    task, path = task_from(given), given["prompt_template"]
    return load_template(task, path) if path else template_of(task)


def sampling_from(given: Mapping[str, Any]) -> Sampling:
    return Sampling(
        model=given["model"],
        samples=given["samples"],
        temperature=given["temperature"],
        top_p=given["top_p"],
        max_tokens=given["max_tokens"],
        params=dict(_param(text) for text in given["params"]),
    )


def service_from(given: Mapping[str, Any]) -> Service:
    return Service(
        base_url=given["base_url"],
        api_version=given["api_version"],
        key_env=given["key_env"],
        stream=given["stream"],
        one_at_a_time=given["one_at_a_time"],
        concurrency=given["requests"],
        requests_per_minute=given["requests_per_minute"],
        tokens_per_minute=given["tokens_per_minute"],
        timeout_s=given["timeout"],
        attempts=given["attempts"],
        backoff_s=given["backoff"],
    )


def _param(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"--param {text!r}: write NAME=JSON, top_k=50 for instance")
    if name in ("messages", "n", "stream", "model"):
        raise InputError(f"--param {name}: has an option of its own")
    if value in ("NaN", "Infinity", "-Infinity"):  # Python reads them; no server takes them
        raise InputError(f"--param {text}: is no JSON")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value  # a word stands for itself
