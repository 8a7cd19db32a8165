"""Options: what command lines may say, in our words and ML-Bench's."""

import json
from pathlib import Path
from typing import Any

import click
import pytest

from acceptance.command import write_lines
from gen.asking import good
from gen.programs import ended, environments
from mlbench_exec import InputError
from mlbench_gen.options import sampling_from, service_from, task_from
from mlbench_gen.testing import ModelServer


def given(**changes: Any) -> dict[str, Any]:
    return {"task": None, "readme_type": None, "prompt_template": None} | changes


def test_a_task_has_two_names() -> None:
    """readme_type names a task; one that contradicts --task is refused."""
    assert task_from(given()) == 3
    assert task_from(given(readme_type="readme")) == 1
    assert task_from(given(readme_type="oracle_segment", task=3)) == 3
    with pytest.raises(click.UsageError, match="task 1, not 4"):
        task_from(given(readme_type="readme", task=4))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["generate", "run"])
def test_ml_benchs_names_work_too(command: str, tmp_path: Path) -> None:
    """A command line in ML-Bench's words asks for the model, the whole README and the number of
    answers that it names, of the split that it names."""
    row: dict[str, Any] = {
        "instruction": "Do thing 3.",
        "readme_content": "the whole README",
        "arguments": "{}",
    }
    row |= {"github_id": 1, "id": 3, "github": "a/b", "path": "./", "type": "Python Code"}
    rows = write_lines(tmp_path / "rows.jsonl", [row])
    words = ["--engine_name", "scripted-1", "--readme_type", "readme", "--n_turn", "3"]
    words += ["--type", "quarter", "--dataset", str(rows), "--key-env", "TEST_KEY"]
    if command == "run":
        words += ["--environments", str(environments(tmp_path)), "--backend", "local"]
        words += ["--memory", "256m"]
    with ModelServer(good) as server:
        code, said = ended(
            command, *words, "--base-url", server.url, shell=f"cd {tmp_path} && exec"
        )
    assert code == 0, said
    [asked] = server.log
    assert (asked.body["model"], asked.count) == ("scripted-1", 3)
    assert "the whole README" in asked.prompt
    folder = tmp_path / "runs" / "scripted-1-task1-quarter"
    kept = folder / "generation" / "manifest.json"
    assert json.loads(kept.read_text())["split"] == "quarter"
    assert (folder / "verdicts.jsonl").exists() == (command == "run")


def test_parameters_are_json_or_words() -> None:
    """--param gives a request what it has no flag for; null takes a parameter out."""
    plain: dict[str, Any] = {"model": "m", "samples": 1, "temperature": 1.0, "top_p": 1.0}
    plain |= {"max_tokens": 10, "params": ("top_k=50", "temperature=null", "effort=low")}
    request = sampling_from(plain).request()
    assert request == {"model": "m", "top_p": 1.0, "max_tokens": 10, "top_k": 50, "effort": "low"}
    for bad in ("top_k", "=1", "n=3", "top_k=NaN"):
        with pytest.raises(InputError, match="--param"):
            sampling_from({**plain, "params": (bad,)})


def service_given(**changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = dict.fromkeys(("requests_per_minute", "tokens_per_minute"))
    plain |= {"stream": False, "one_at_a_time": False, "requests": 1, "timeout": 1.0}
    plain |= {"attempts": 1, "backoff": 1.0, "key_env": "K", "base_url": None}
    return plain | {"api_version": None} | changes


@pytest.mark.parametrize(
    "url",
    ["example.org/v1", "https://me:secret@example.org", "ftp://a/b", "https://a.org/v1?key=secret"],
)
def test_addresses_are_checked(url: str) -> None:
    """A base URL, by its flag or from the environment, is an address without a secret in it."""
    with pytest.raises(InputError, match="--base-url") as caught:
        service_from(service_given(base_url=url))
    assert "secret" not in str(caught.value)
    with pytest.raises(InputError, match="OPENAI_BASE_URL") as caught:
        service_from(service_given()).address({"OPENAI_BASE_URL": url})
    assert "secret" not in str(caught.value)


def test_an_api_version_needs_an_address() -> None:
    """Azure has no address that everybody shares: the message shows its form."""
    with pytest.raises(InputError, match="--base-url https://RESOURCE"):
        service_from(service_given(api_version="2024-10-21")).address({})


@pytest.mark.parametrize("key", ["\u2026", "sk-\u00e9", "sk-a\nb"])
def test_a_key_that_is_none_is_told_before_anything_is_asked(key: str) -> None:
    """What no header can carry, the README's dots for instance, isn't repeated ten times."""
    with pytest.raises(InputError, match="K holds characters that no key has") as caught:
        service_from(service_given()).key({"K": key})
    assert key not in str(caught.value)
