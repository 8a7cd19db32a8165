"""Templates: pages in one file, whose policy refuses requests and scripts other than their own."""

import base64
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

__all__ = ["generate"]


def generate(name: str, *, script: str = "", **context: Any) -> Iterator[str]:
    """The parts of a page. `script` names the one that it may run, if any."""
    style, code = _asset("report.css"), _asset(script) if script else ""
    allowed = f"script-src {_hash(code)}; " if code else ""
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; {allowed}"
        "base-uri 'none'; form-action 'none'"
    )
    template = _environment().get_template(name)
    return iter(template.generate(style=style, script=code, policy=policy, **context))


@cache
def _asset(name: str) -> str:
    assets = resources.files("mlbench_exec.report") / "assets"
    return (assets / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@cache
def _environment():  # type: ignore[no-untyped-def]
    # Imported late: commands that make no page don't pay for it.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mlbench_exec.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda rate: "-" if rate is None else f"{100 * rate:.2f} %"
    environment.filters["short"] = lambda rate: "-" if rate is None else f"{100 * rate:.1f}"
    environment.filters["many"] = lambda count, what: f"{count:,} {what}{'' if count == 1 else 's'}"
    return environment
