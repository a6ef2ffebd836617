"""A run's record made of random numbers, and Chromium to look at its page with."""

import base64
import json
import os
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.report.run_example import hostile, make_example, make_record  # noqa: F401 - fixtures


@dataclass(frozen=True)
class Page:
    """What Chromium made of a page: the DOM after its scripts ran, and what reached the console."""

    dom: str
    console: list[str]

    def text_of(self, element_id: str) -> str:
        """The text in the element, without tags inside it (they must not nest its own tag)."""
        found = re.search(rf'<(\w+)[^>]* id="{element_id}"[^>]*>(.*?)</\1>', self.dom, re.DOTALL)
        assert found, f"no element {element_id}"
        return found[2]


@pytest.fixture(scope="session")
def open_page(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Page]:
    """Loads an HTML file in headless Chromium; skips without one, unless LIT_SPARSE_REQUIRE_CHROMIUM=1."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    if browser is None:
        message = "no Chromium on the PATH"
        if os.environ.get("LIT_SPARSE_REQUIRE_CHROMIUM") == "1":
            pytest.fail(message)
        pytest.skip(message)

    def load(path: Path, clock: str = "virtual") -> Page:
        # Virtual time waits for frames and timers, but stands still inside a script; "real" is for measuring.
        wait = ["--virtual-time-budget=3000"] if clock == "virtual" else []
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-features=IsolateSandboxedIframes",  # virtual time holds in frames of the page's own process only
            "--disable-dev-shm-usage", f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
            "--enable-logging=stderr", "--v=0", *wait, "--dump-dom", path.as_uri(),
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, timeout=60, check=True)
        errors = result.stderr.decode(errors="replace").splitlines()
        return Page(result.stdout.decode(), [line for line in errors if "CONSOLE" in line])

    return load


@pytest.fixture
def drive_page(open_page: Callable[..., Page], tmp_path: Path) -> Callable[[Path, str], Any]:
    """What a reader does with a page, as a script that runs after the page's own, and what it left in `result`: JSON,
    its text percent-encoded and then in base64. The page has to be ready and without complaints."""

    def drive(path: Path, driver: str) -> Any:
        driven = tmp_path / "driven.html"
        driven.write_text(path.read_text().replace("</body>", driver + "</body>"))
        page = open_page(driven)
        assert page.console == []
        assert 'data-ready="yes"' in page.dom
        return json.loads(urllib.parse.unquote(base64.b64decode(page.text_of("result")).decode()))

    return drive
