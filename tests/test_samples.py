"""Sample: reading one row, and its arguments."""

import ast
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbench_exec.errors import InputError
from mlbench_exec.samples import parse_arguments, parse_sample

ROW: dict[str, Any] = {
    "github_id": 1,
    "github": "https://github.com/owner/name/",
    "id": 7,
    "path": "./examples",
    "arguments": "{'lr': 0.1, 'epochs': 3}",
    "type": "Bash Script",
}


def test_a_row_becomes_a_sample() -> None:
    """A row's columns are read, and its arguments become text."""
    sample = parse_sample(ROW, place="d.jsonl:1")
    assert sample.key == (1, 7)
    assert sample.repository == "name"
    assert sample.arguments == {"lr": "0.1", "epochs": "3"}


@pytest.mark.parametrize(
    ("kind", "language"),
    [("Bash Script", "bash"), ("Python Code", "python"), ("bash script", "python")],
)
def test_only_bash_script_wants_bash(kind: str, language: str) -> None:
    """Every type but the exact `Bash Script` wants Python."""
    assert parse_sample(ROW | {"type": kind}, place="p").wants == language


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"github_id": "1"}, "github_id is '1', not an integer"),
        ({"id": True}, "id is True, not an integer"),
        ({"arguments": "__import__('os').getcwd()"}, "not a literal dict"),
        ({"arguments": "['a']"}, "arguments are a list"),
        ({"arguments": None}, "arguments are a NoneType"),
    ],
)
def test_a_bad_row_is_named(change: dict[str, Any], message: str) -> None:
    """A row that can't be read raises `InputError` with its place and what is wrong."""
    with pytest.raises(InputError) as caught:
        parse_sample(ROW | change, place="d.jsonl:3")
    assert str(caught.value).startswith("d.jsonl:3: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("column", ["github_id", "id", "type"])
def test_a_missing_column_is_named(column: str) -> None:
    """A row without a column it needs says which."""
    row = {name: value for name, value in ROW.items() if name != column}
    with pytest.raises(InputError, match=f"no '{column}' column"):
        parse_sample(row, place="p")


def test_a_dict_with_an_unhashable_key_is_a_value_error() -> None:
    """A literal that parses but can't be built is refused like any other."""
    with pytest.raises(ValueError, match="not a literal dict"):
        parse_arguments("{[]: 1}")


@pytest.mark.slow
@settings(deadline=None)
@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(repr))
def test_arguments_are_a_dict_or_a_value_error(text: str) -> None:
    """No text makes parsing arguments raise anything but `ValueError`."""
    try:
        arguments = parse_arguments(text)
    except ValueError:
        return
    assert all(isinstance(value, str) for value in arguments.values())


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.slow
@settings(deadline=None)
@given(st.dictionaries(st.text(), st.text() | st.integers() | FINITE))
def test_arguments_survive_the_way_through_repr(arguments: dict[str, Any]) -> None:
    """The text of a dict gives the same names, and each value as `str` shows it."""
    assert ast.literal_eval(repr(arguments)) == arguments
    assert parse_arguments(repr(arguments)) == {k: str(v) for k, v in arguments.items()}


@pytest.mark.parametrize(
    "text", ["(" * 5000, "-" * 50_000 + "1", "{'a': " + "9" * 5000 + "}", "\0"]
)
def test_hostile_arguments_are_a_value_error(text: str) -> None:
    """Nesting, huge numbers and NUL bytes are refused, not a crash."""
    with pytest.raises(ValueError, match=r"."):
        parse_arguments(text)
