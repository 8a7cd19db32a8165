"""Details: what one output's part of a report holds: bounded, and every character visible."""

import re
from collections.abc import Iterable
from functools import cache

from mlbench_exec.report.terminal import visible
from mlbench_exec.samples import Language

__all__ = ["highlighted", "shortened"]

_STYLES = {  # of Pygments' kinds of token; what is not here is plain
    "Comment": "c",
    "Keyword": "k",
    "Operator.Word": "k",
    "Literal.String": "s",
    "Literal.Number": "n",
    "Name.Function": "f",
    "Name.Class": "f",
    "Name.Builtin": "b",
    "Name.Decorator": "f",
    "Name.Variable": "v",
    "Name.Namespace": "m",
}
_HIDDEN = re.compile(r"[^\n\t\x20-\x7e]")


def shortened(text: str, limit: int) -> str:
    """At most about `limit` characters: a third from the head, the rest from the tail."""
    if len(text) > limit:
        head = limit // 3
        left_out = len(text) - limit
        text = f"{text[:head]}\n… {left_out} characters left out …\n{text[-(limit - head) :]}"
    return _HIDDEN.sub(lambda match: visible(match[0]), text)


def highlighted(code: str, language: Language, limit: int) -> list[str]:
    """The code as a list of style, text, style, text, …; styles are the page's class names."""
    runs: list[str] = []
    for style, text in _styled(shortened(code, limit), language):
        if runs and runs[-2] == style:
            runs[-1] += text
        else:
            runs += (style, text)
    return runs


def _styled(code: str, language: Language) -> Iterable[tuple[str, str]]:
    for token, text in _lexer(language).get_tokens(code):
        yield _style(str(token)), text


@cache
def _style(token: str) -> str:
    name = token.removeprefix("Token.")
    return next((style for kind, style in _STYLES.items() if name.startswith(kind)), "")


@cache
def _lexer(language: Language):  # type: ignore[no-untyped-def]
    # Imported late: commands that make no page don't pay for it.
    from pygments.lexers.python import PythonLexer
    from pygments.lexers.shell import BashLexer

    options = {"stripnl": False, "ensurenl": False}
    return PythonLexer(**options) if language == "python" else BashLexer(**options)
