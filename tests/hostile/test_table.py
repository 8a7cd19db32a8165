"""The table of hostile programs: at every level, between innocent neighbours, and unconfined."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from hostile import host
from hostile.house import PYTHON, House, open_house
from hostile.table import TABLE, Case, read
from mlbench_exec import Verdict

pytestmark = [pytest.mark.slow, pytest.mark.hostile]
FLOOD = {"local": 10**10, "docker-nested": 10**10, "docker-fresh": 10**9}  # bytes
PARAMETERS = [
    "local",
    pytest.param("docker-nested", marks=pytest.mark.docker),
    pytest.param("docker-fresh", marks=pytest.mark.docker),
]
# Rows whose program lies in Python, where an interpreter that is shared could matter.
WARM = [case for case in TABLE if case.language == "python" and case.number in {
    1, 3, 4, 14, 19, 22, 23, 24, 25, 26, 27, 28, 29, 30, 42, 44, 45, 49, 52, 53, 57}]  # fmt: skip
COLD = {49}  # it sets limits before it imports anything: never forked


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[host.Surroundings]:
    with host.surroundings(tmp_path_factory.mktemp("host")) as surroundings:
        yield surroundings


@pytest.fixture(scope="module", params=PARAMETERS)
def house(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    surroundings: host.Surroundings,
) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    before = host.state(folder)
    with open_house(
        request.param, folder, lambda: str(request.getfixturevalue("conformance_image"))
    ) as house:
        surroundings.furnish(folder / "data")
        files = host.state(folder)
        house.settle()
        yield house
    before |= {name for name in files if name.startswith(f"file {folder}/")}
    until = time.monotonic() + 10
    while (left := host.state(folder) - before) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left, f"left on the host: {sorted(left)}"


@pytest.mark.parametrize("case", TABLE, ids=[case.name for case in TABLE])
def test_case(
    house: House,
    case: Case,
    surroundings: host.Surroundings,
    record_property: Callable[[str, object], None],
) -> None:
    """The verdict is of the stated kind, the innocent and the host are as without the program."""
    case = case.on(house.level)
    _run(house, case, surroundings, "short" if case.short else "hostile", record_property)


@pytest.mark.parametrize("house", PARAMETERS[:2], indirect=True)  # at the third nothing is forked
@pytest.mark.parametrize("case", WARM, ids=[case.name for case in WARM])
def test_case_warm(
    house: House,
    case: Case,
    surroundings: host.Surroundings,
    record_property: Callable[[str, object], None],
) -> None:
    """The same where the environment preloads modules, so that the interpreter may be warm."""
    case = case.on(house.level)
    _run(house, case, surroundings, "warm", record_property)


def _run(
    house: House,
    case: Case,
    surroundings: host.Surroundings,
    role: str,
    record_property: Callable[[str, object], None],
) -> None:
    given = surroundings.given(house.mount, confined=True) | {
        "flood": FLOOD[house.level],
        "targets": ["parent", "pid 1", "host's"],
        "programs": [PYTHON, "/usr/bin/bash", "/usr/bin/ls"],
        "search": "/",
    }
    record_property("row", (case.number, case.title, house.level, role, case.expected))
    program = surroundings.compiled(case.file) if case.language == "c" else None
    memory = _resident_bytes()
    shared = house.folder / "data" / "file.txt"
    with (
        surroundings.lock(shared) if case.number == 48 else nullcontext(),
        surroundings.core_handler() if case.number == 49 else nullcontext(list) as cores,
    ):
        outcome = house.live(
            read(case, given, program=program),
            "bash" if case.language == "bash" else "python",
            role=role,
            alone=case.alone,
        )
    verdict = outcome.verdict
    record_property("seen", _seen(verdict))
    case.check(verdict)
    house.check_innocent(outcome)
    assert not cores(), "a core went to the host"
    assert host.survivors(house.folder) == set()
    assert surroundings.is_unharmed()
    assert shared.read_text() == "the host's\n"
    assert _resident_bytes() - memory < 100 << 20
    assert verdict.attempts == 1
    if role == "warm":  # the others' interpreters are bare, and serve from a second snippet on
        assert verdict.warm == (house.level != "docker-fresh" and case.number not in COLD)


def _seen(verdict: Verdict) -> str:
    parts: list[str] = [verdict.status]
    if verdict.status != "passed_at_limit":
        parts.append(f"exit {verdict.exit_code}" if verdict.signal is None else
                     f"signal {verdict.signal}")  # fmt: skip
    if verdict.limit:
        parts.append(f"limit {verdict.limit}")
    told = verdict.stdout if "\t" in verdict.stdout else f"{verdict.stdout_bytes} bytes"
    return f"{', '.join(parts)}: {told.strip()}"


def _resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize()


# Code that is hardly code (55), made here: it would be no use as a file.

ODD = {
    "4 MB": ("x = '" + "y" * (4 << 20) + "'\nprint(len(x))", "passed", "4194304\n"),
    "deep nesting": ("(" * 100_000, "failed", ""),
    "NUL byte": ("print(1)\0", "passed|failed", None),
    "lone surrogate": ("print('\ud800')", "failed", ""),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_code(house: House, name: str, record_property: Callable[[str, object], None]) -> None:
    """55: each has a result of its own, and the run goes on."""
    code, status, stdout = ODD[name]
    record_property("row", (55, name, house.level, "hostile", "own result; the run goes on"))
    outcome = house.live(code, "python")
    record_property("seen", _seen(outcome.verdict))
    assert outcome.verdict.status in status.split("|"), outcome.verdict
    assert stdout is None or outcome.verdict.stdout == stdout
    house.check_innocent(outcome)
