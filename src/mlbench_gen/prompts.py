"""Prompts: ML-Bench's four tasks, in words of our own or anybody's."""

import hashlib
import re
from pathlib import Path

import msgspec

from mlbench_exec import InputError
from mlbench_gen.clients import Message
from mlbench_gen.rows import Row

__all__ = ["TASKS", "Template", "load_template", "template_of"]

_ASK = """\
A user works with a code repository and asks for this:

{instruction}

"""
_ANSWER = """\
Write the code that does it: a shell command or script where the repository's own scripts are to
be run, else Python. It is run as it stands, in the top folder of the repository, so name every
parameter that the user asks for, with the user's values. Answer with one fenced block of code,
tagged with its language, and nothing else.
"""
TASKS = {
    1: _ASK + "This is what the repository holds, READMEs first:\n\n{context}\n\n" + _ANSWER,
    2: _ASK + "This passage of the repository's README may help:\n\n{context}\n\n" + _ANSWER,
    3: _ASK
    + "This part of the repository's README shows how it is done; values may differ:\n\n"
    + "{context}\n\n"
    + _ANSWER,
    4: _ASK + _ANSWER,
}
COLUMNS = {1: "readme_content", 2: "bm25_result", 3: "oracle"}
_FIELD = re.compile(r"\{(instruction|context)\}")


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """The wording of a task: a text in which `{instruction}` and `{context}` are replaced.

    Other braces stay as they are. What the context is, the task says: the whole README (1), the
    retrieved segment (2), the oracle (3), or nothing (4).
    """

    task: int
    text: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.task}\n{self.text}".encode()).hexdigest()[:32]

    def render(self, row: Row) -> list[Message]:
        """The messages for one row. Raises `InputError` where the row lacks the task's context.

        Halves of surrogate pairs, which no server takes, become question marks.
        """
        parts = {"instruction": row.instruction, "context": self._context(row)}
        text = _FIELD.sub(lambda field: parts[field[1]], self.text)
        return [{"role": "user", "content": text.encode("utf-8", "replace").decode("utf-8")}]

    def _context(self, row: Row) -> str:
        column = COLUMNS.get(self.task)
        if column is None:
            return ""
        context = {"oracle": row.oracle, "bm25_result": row.segment}.get(column, row.readme)
        if context is None:
            step = (
                "make it with `mlbench-gen prepare`, and pass its folder as --dataset"
                if column != "oracle"
                else "take another --task"
            )
            raise InputError(
                f"task {self.task} needs the column {column}, which the dataset hasn't: {step}"
            )
        return context


def template_of(task: int) -> Template:
    """Our wording of a task."""
    return Template(task=task, text=TASKS[task])


def load_template(task: int, path: Path) -> Template:
    """Anybody's wording, from a UTF-8 file. Raises `InputError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read ({error}): check --prompt-template") from None
    if "{instruction}" not in text:
        raise InputError(f"{path}: has no {{instruction}}: write it where the instruction belongs")
    if task in COLUMNS and "{context}" not in text:
        raise InputError(
            f"{path}: has no {{context}}, which task {task} is about: add it, or take --task 4"
        )
    return Template(task=task, text=text)
