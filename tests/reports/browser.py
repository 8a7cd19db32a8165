"""Browser: a headless Chromium that asks nobody for anything, and what it was seen to do."""

import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--window-size=1280,900"),
)
# Before any script of a page: note what a hostile one would do.
WATCH = """
window.seen = [];
for (const name of ["alert", "confirm", "prompt", "open", "print"])
  window[name] = () => { window.seen.push(name); };
"""


def skip_without_chromium() -> None:
    """Skip the test where there is no Chromium; with MLBENCH_REQUIRE_CHROMIUM=1, fail it."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if not missing:
        return
    reason = f"there is no {' and no '.join(missing)}: apt-get install chromium chromium-driver"
    if os.environ.get("MLBENCH_REQUIRE_CHROMIUM") == "1":
        pytest.fail(f"MLBENCH_REQUIRE_CHROMIUM=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@contextmanager
def chromium(profile: Path) -> Iterator[webdriver.Chrome]:
    """A fresh browser; every page is watched from its first moment."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
        yield driver
    finally:
        driver.quit()


def requested(driver: webdriver.Chrome) -> list[str]:
    """Every address that was asked for since the last call."""
    lines = log(driver, "performance")
    events = (json.loads(line["message"])["message"] for line in lines)
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]


def log(driver: webdriver.Chrome, kind: str) -> list[Any]:
    """The browser's log of that kind, since the last call."""
    return list(driver.get_log(kind))  # type: ignore[no-untyped-call]


class Listener:
    """A port of this machine that counts who connects, and answers nothing."""

    def __init__(self) -> None:
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)

    def _count(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()
