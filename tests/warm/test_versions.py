"""Warm interpreters on every CPython from 3.7 on that this machine has."""

from collections.abc import Iterator

import pytest

from test_agent_versions import interpreters
from warm.programs import COLD, PROGRAMS, has_fronts
from warm.test_same import PRELOAD, Place, compare, direct, opened, seen, through_bash

HERE = list(interpreters().items())
# Cold where something in their imports was changed that another version doesn't look at.
EITHER_WAY = {"mp_exception", "resource_warning", "patched_what_an_import_leaves_alone"}
# Warm, what was put there is never deleted: a module that every program has holds it.
NEVER_DELETED = {
    "3.7": "del_of_what_was_put_into_stat",
    "3.13": "destructor_in_a_function_that_sys_has",
}
FEW = (
    "main_globals",
    "argv",
    "stack",
    "exit_text",
    "traceback",
    "package_dependency",
    "del_at_exit",
)


@pytest.fixture(
    scope="module",
    params=range(len(HERE)),
    ids=["{}.{}".format(*version) for version, _ in HERE],
)
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    _, python = HERE[request.param]
    slot = 10 + 2 * request.param
    yield from opened(tmp_path_factory.mktemp("version"), python, PRELOAD, slot)


@pytest.mark.slow
def test_this_version_has_warm_interpreters(place: Place) -> None:
    """A few programs run warm, and as they do cold; through bash as well."""
    for name in FEW:
        expected, got = (place.run(how, "python", PROGRAMS[name]) for how in ("cold", "warm"))
        assert (got.warm, got.notes, seen(got)) == (True, (), seen(expected)), name
    expected, got = (
        place.run(how, "bash", through_bash(PROGRAMS["argv"])) for how in ("cold", "warm")
    )
    assert (got.warm, seen(got)) == (has_fronts(place.environment.python or ""), seen(expected))


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_this_version_makes_no_difference(place: Place) -> None:
    """The whole suite."""
    programs, python = dict(PROGRAMS), place.environment.python or ""
    for version, name in NEVER_DELETED.items():
        if version in python:
            del programs[name]
    warm = compare(place, "python", direct, programs)
    cold = COLD - EITHER_WAY
    assert not [name for name, was_warm in warm.items() if was_warm and name in cold]
