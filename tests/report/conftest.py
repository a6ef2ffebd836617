"""A run's record made of random numbers, and Chromium to look at its page with."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lit_sparse.report import AttentionExample, RunRecord
from tests.report.circuits_example import DIGEST

_HOSTILE = [
    " <script>document.title='pwned'</script>",
    "</script><script>document.title='pwned'</script>",
    '"><img src=x onerror="document.title=\'pwned\'">',
    " <!--",
    " $x_{$",
    "\n",
    " \u202etxet",
    "\udc80",
]


def _make_example(tokens: list[str], layers: int = 3, heads: int = 2, seed: int = 0) -> AttentionExample:
    """Random causal attention; `after` keeps the weights above 0.3."""
    rng = np.random.default_rng(seed)
    size = len(tokens)
    scores = rng.exponential(1.0, (layers, heads, size, size)) ** 2 * np.tril(np.ones((size, size)))
    before = scores / scores.sum(-1, keepdims=True)
    return AttentionExample(tokens, before, np.where(before > 0.3, before, 0.0), title="a sentence")


def _make_record(
    tokens: list[str] | None = None, layers: int = 3, heads: int = 2, steps: int = 60, model: str = "tiny"
) -> RunRecord:
    """A record as a short run leaves it."""
    rng = np.random.default_rng(1)
    history: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        history.append(
            {
                "step": float(step),
                "train/ce": 3 + rng.normal(0, 0.1),
                "train/constraint": 0.1 + rng.normal(0, 0.01),
                "train/lambda": float(np.exp(np.sin(step / 9))),
                "train/edge_fraction": 0.3 * 0.97**step,
            }
        )
        if step % 20 == 0:
            history.append(
                {
                    "step": float(step),
                    "val/ce": 3.0,
                    "val/base_ce": 2.97,
                    "val/constraint": 0.1,
                    "val/edge_fraction": 0.28 * 0.97**step,
                }
            )
    summary: dict[str, object] = {
        "model": model, "base_ce": 2.861, "ce": 2.884, "kl": 0.0978, "constraint_value": 0.0978,
        "constraint": "kl", "constraint_described": "KL divergence from the base model <= 0.1 nats per token",
        "tolerance": 0.1, "tolerance_in_training": 0.1, "satisfied": True, "edges_per_query_start": 43.84,
        "edge_fraction_start": 0.341, "edges_per_query": 4.77, "edge_fraction": 0.0371, "sequence_length": 256,
        "test_tokens": 4_096, "centered": True, "steps": steps, "tokens": 82_000, "seconds": 723.4,
        "model_digest": DIGEST,
    }  # fmt: skip
    words = [" The", " cat", " sat", " on", " the", " mat", "."] if tokens is None else tokens
    return RunRecord(
        summary,
        history,
        rng.uniform(0.1, 1.0, (layers, heads)),
        rng.uniform(0.0, 0.1, (layers, heads)),
        _make_example(words, layers, heads),
    )


@pytest.fixture
def make_example() -> Callable[..., AttentionExample]:
    return _make_example


@pytest.fixture
def make_record() -> Callable[..., RunRecord]:
    return _make_record


@pytest.fixture
def hostile() -> list[str]:
    """Tokens that would run a script, or break the page or a plot, if they were not escaped."""
    return list(_HOSTILE)


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
            "--disable-dev-shm-usage", f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
            "--enable-logging=stderr", "--v=0", *wait, "--dump-dom", path.as_uri(),
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, timeout=60, check=True)
        errors = result.stderr.decode(errors="replace").splitlines()
        return Page(result.stdout.decode(), [line for line in errors if "CONSOLE" in line])

    return load
