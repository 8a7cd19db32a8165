"""Prompts: the four tasks, and anybody's wording."""

from pathlib import Path

import pytest

from mlbench_exec import InputError
from mlbench_gen.prompts import load_template, template_of
from mlbench_gen.rows import Row

ROW = Row(
    github_id=1,
    id=2,
    instruction="Train {x} now",
    oracle="python a.py {instruction}",
    readme="whole readme",
    segment="a segment",
)


@pytest.mark.parametrize(
    ("task", "context"), [(1, "whole readme"), (2, "a segment"), (3, "python a.py"), (4, "")]
)
def test_each_task_shows_its_context(task: int, context: str) -> None:
    """A prompt holds the instruction and its task's context, and no other one."""
    [message] = template_of(task).render(ROW)
    assert message["role"] == "user"
    assert "Train {x} now" in message["content"]
    assert context in message["content"]
    others = {"whole readme", "a segment", "python a.py"} - {context}
    assert not any(other in message["content"] for other in others)


def test_braces_in_what_is_put_in_stay() -> None:
    """What looks like a field in the dataset's text is text."""
    [message] = template_of(3).render(ROW)
    assert "python a.py {instruction}" in message["content"]


def test_a_missing_column_is_named_with_the_way_to_get_it() -> None:
    """Without its context, a task says what makes it."""
    bare = Row(github_id=1, id=2, instruction="Train")
    with pytest.raises(InputError, match="readme_content"):
        template_of(1).render(bare)
    with pytest.raises(InputError, match="oracle"):
        template_of(3).render(bare)
    template_of(4).render(bare)


def test_a_template_file_is_anybodys_wording(tmp_path: Path) -> None:
    """Other braces stay as they are; the digest tells wordings apart."""
    path = tmp_path / "mine.txt"
    path.write_text("Do {instruction} with {context} and {this}.")
    template = load_template(2, path)
    [message] = template.render(ROW)
    assert message["content"] == "Do Train {x} now with a segment and {this}."
    assert template.digest != template_of(2).digest


@pytest.mark.parametrize(
    ("text", "reason"), [("{context}", "no {instruction}"), ("{instruction}", "no {context}")]
)
def test_a_template_without_its_fields_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    """A wording that would leave out the instruction or the context is a mistake."""
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=reason):
        load_template(1, path)
    with pytest.raises(InputError, match="can't be read"):
        load_template(1, tmp_path / "none.txt")
