"""Extraction: which code an answer is taken to give."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbench_gen import extract

PREFERENCE = ["python", "bash", "shell", ""]


def block(tag: str, code: str) -> str:
    return f"```{tag}\n{code}\n```"


@pytest.mark.parametrize("tag", [*PREFERENCE, "script"])
def test_the_code_of_a_block_is_taken(tag: str) -> None:
    """Prose around the block is left out, and so is the line end before its closing fence."""
    code = "a = 1\n\nb"
    assert extract(f"Sure!\n\n{block(tag, code)}\n\nThat is all.") == code


@pytest.mark.parametrize("better", range(3))
def test_preference_goes_before_place(better: int) -> None:
    """A block of a preferred tag wins over every earlier block of another one."""
    for worse in PREFERENCE[better + 1 :]:
        answer = block(worse, "no") + "\ntext\n" + block(PREFERENCE[better], "yes")
        assert extract(answer) == "yes"


def test_shell_and_script_are_equals() -> None:
    """Of blocks with the same standing the first wins."""
    assert extract(block("script", "first") + "\n" + block("shell", "second")) == "first"
    assert extract(block("python", "first") + "\n" + block("python", "second")) == "first"


@pytest.mark.parametrize(
    "answer", ["", "python train.py --lr 0.1", "a\r\nb\n", block("json", "{}"), "~~~python\na\n~~~"]
)
def test_an_answer_without_a_block_is_taken_whole(answer: str) -> None:
    """Where no block matches, nothing is changed: line ends, tildes and other tags stay."""
    assert extract(answer) == answer


@pytest.mark.parametrize("tag", ["py", "python3", "sh", "pythonic", "text"])
def test_other_tags_never_match(tag: str) -> None:
    """Only ML-Bench's own tags count; a bare block is better than any other tag."""
    assert extract(block(tag, "no") + "\n" + block("", "yes")) == "yes"


@pytest.mark.parametrize("tag", ["Python", "PYTHON", " python", 'python title="a.py"', "python \t"])
def test_a_tag_is_the_first_word_in_any_case(tag: str) -> None:
    """What models write around a tag changes nothing."""
    assert extract(block("bash", "no") + "\n" + block(tag, "yes")) == "yes"


def test_windows_line_ends() -> None:
    """Fences end in CRLF too, and the code gets plain line ends, which bash needs."""
    assert extract("Hi\r\n```bash\r\ncd a\r\nls\r\n```\r\n") == "cd a\nls"


def test_an_unclosed_block_runs_to_the_end() -> None:
    """An answer that was cut short still gives the code it holds."""
    assert extract("Here:\n```python\na = 1\nb = ") == "a = 1\nb = "


def test_an_empty_block_is_taken() -> None:
    """The first match wins, even with nothing in it."""
    assert extract("```python\n```\n" + block("bash", "ls")) == ""


def test_an_indented_block_loses_its_indentation() -> None:
    """In a list, the code is indented as its fence is; deeper lines keep the rest."""
    answer = "1. Run\n   ```python\n   if a:\n       b()\n  c()\n\n   ```\n"
    assert extract(answer) == "if a:\n    b()\nc()\n"


def test_a_block_may_end_on_its_last_line_of_code() -> None:
    """A fence stuck to the last line closes the block."""
    assert extract("```python\nprint('a')```\nand so on") == "print('a')"


def test_longer_fences_hold_shorter_ones() -> None:
    """A block ends only at as many backticks as opened it."""
    assert extract("````python\ntext = '''\n```bash\nls\n```\n'''\n````") == (
        "text = '''\n```bash\nls\n```\n'''"
    )


def test_a_tagged_fence_ends_an_unclosed_block() -> None:
    """A forgotten closing fence doesn't swallow the block behind it."""
    assert extract("```json\n{}\n```python\nyes\n```") == "yes"


def test_code_in_a_line_is_no_block() -> None:
    """Backticks within a line are prose."""
    assert extract("Use ```python a.py``` here") == "Use ```python a.py``` here"
    assert extract("```ls```\n" + block("", "yes")) == "yes"


@pytest.mark.parametrize("text", ["```" + " " * 50_000 + "`", "`" * 50_000, "```\n" * 20_000])
def test_time_is_in_proportion(text: str) -> None:
    """No answer makes extraction slow."""
    assert isinstance(extract(text), str)


@given(st.text(alphabet="`~ \t\r\npythonbashx"))
def test_any_text_gives_some_of_itself(answer: str) -> None:
    """Nothing is ever invented."""
    assert set(extract(answer)) <= set(answer)


@given(st.text(alphabet=st.characters(blacklist_characters="`\r")))
def test_any_code_comes_back_from_its_block(code: str) -> None:
    """Code without backticks is returned letter by letter."""
    assert extract(block("python", code)) == code
