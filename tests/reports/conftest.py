"""One run of 1,300 outputs and one browser, for all tests of the report."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver

from acceptance.command import Command
from reports.browser import Listener, chromium, skip_without_chromium
from reports.real_run import make_run


@pytest.fixture(scope="session")
def listener() -> Iterator[Listener]:
    """Where hostile outputs would have something fetched from."""
    found = Listener()
    yield found
    found.close()


@pytest.fixture(scope="session")
def real_run(tmp_path_factory: pytest.TempPathFactory, listener: Listener) -> Command:
    """A finished run; it is only read."""
    command = make_run(tmp_path_factory.mktemp("real"), listener.address)
    assert command.run(within_s=400) == 0, command.said()
    return command


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    skip_without_chromium()
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="session")
def page(real_run: Command) -> Path:
    return real_run.folder / "report.html"
