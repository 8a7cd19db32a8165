"""The table as a report: a plugin that ends a test run with a line for each case and backend."""

import unicodedata
from typing import Any

WIDTHS = (2, 44, 14, 42)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    rows = []
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            properties = dict(report.user_properties)
            if "row" in properties:
                number, title, level, role, expected = properties["row"]
                backend = f"{level}, warm" if role == "warm" else level
                seen = plain(properties.get("seen", "no verdict"))
                words = "" if outcome == "passed" else "NOT MET: "
                rows.append((number, title, backend, expected, words + seen))
    terminalreporter.section("hostile programs")
    header = ("#", "case", "backend", "expected", "seen")
    for row in [header, *sorted(rows, key=lambda row: (row[0], row[1], row[2]))]:
        cells = [f"{cell!s:{width}.{width}}" for cell, width in zip(row, WIDTHS, strict=False)]
        terminalreporter.write_line("  ".join([*cells, row[4][:160]]).rstrip())


def plain(text: str) -> str:
    """What a program printed, on one line and without what a terminal obeys."""
    joined = "; ".join(line.replace("\t", ": ") for line in text.splitlines())
    return "".join(c if unicodedata.category(c)[0] not in "CZ" or c == " " else "?" for c in joined)
