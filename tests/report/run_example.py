"""A run's record made of random numbers, and text that a page has to escape: fixtures for records and for reports."""

from collections.abc import Callable

import numpy as np
import pytest

from lit_sparse.records.run import AttentionExample, RunRecord
from lit_sparse.records.run_summary import RunSummary
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
    summary = RunSummary.model_validate({
        "model": model, "base_ce": 2.861, "ce": 2.884, "kl": 0.0978, "constraint_value": 0.0978,
        "constraint": "kl", "constraint_described": "KL divergence from the base model <= 0.1 nats per token",
        "tolerance": 0.1, "tolerance_in_training": 0.1, "satisfied": True, "edges_per_query_start": 43.84,
        "edge_fraction_start": 0.341, "edges_per_query": 4.77, "edge_fraction": 0.0371, "sequence_length": 256,
        "test_tokens": 4_096, "centered": True, "steps": steps, "tokens": 82_000, "seconds": 723.4,
        "model_digest": DIGEST,
    })  # fmt: skip
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
