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

import matplotlib.image
import numpy as np
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
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Runs headless Chromium on a file; skips without one, unless LIT_SPARSE_REQUIRE_CHROMIUM=1."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    if browser is None:
        message = "no Chromium on the PATH"
        if os.environ.get("LIT_SPARSE_REQUIRE_CHROMIUM") == "1":
            pytest.fail(message)
        pytest.skip(message)

    def run(path: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-features=IsolateSandboxedIframes",  # virtual time holds in frames of the page's own process only
            "--disable-dev-shm-usage", f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
            "--enable-logging=stderr", "--v=0", *options, path.as_uri(),
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, timeout=60, check=True)

    return run


@pytest.fixture(scope="session")
def open_page(chromium: Callable[..., subprocess.CompletedProcess[bytes]]) -> Callable[..., Page]:
    """Loads an HTML file in a window of `size`, in pixels."""

    def load(path: Path, clock: str = "virtual", size: tuple[int, int] = (800, 600)) -> Page:
        # Virtual time waits for frames and timers, but stands still inside a script; "real" is for measuring.
        wait = ["--virtual-time-budget=3000"] if clock == "virtual" else []
        result = chromium(path, *wait, f"--window-size={size[0]},{size[1]}", "--dump-dom")
        errors = result.stderr.decode(errors="replace").splitlines()
        return Page(result.stdout.decode(), [line for line in errors if "CONSOLE" in line])

    return load


@pytest.fixture
def screenshot(
    chromium: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path
) -> Callable[..., np.ndarray]:
    """Takes a picture of a page, pixels (height, width, 3) in [0, 1], for readers of light or of dark pages."""

    def take(path: Path, size: tuple[int, int], dark: bool = False) -> np.ndarray:
        picture = tmp_path / "screenshot.png"
        chromium(
            path, f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=3000",
            "--hide-scrollbars", f"--window-size={size[0]},{size[1]}", f"--screenshot={picture}",
        )  # fmt: skip
        return np.asarray(matplotlib.image.imread(picture))[..., :3]

    return take


@pytest.fixture
def drive_page(open_page: Callable[..., Page], tmp_path: Path) -> Callable[..., Any]:
    """What a reader does with a page, as a script that runs after the page's own, and what it left in `result`: JSON,
    its text percent-encoded and then in base64. The page has to be ready and without complaints."""

    def drive(path: Path, driver: str, **window: Any) -> Any:
        driven = tmp_path / "driven.html"
        driven.write_text(path.read_text().replace("</body>", driver + "</body>"))
        page = open_page(driven, **window)
        assert page.console == []
        assert 'data-ready="yes"' in page.dom
        return json.loads(urllib.parse.unquote(base64.b64decode(page.text_of("result")).decode()))

    return drive
