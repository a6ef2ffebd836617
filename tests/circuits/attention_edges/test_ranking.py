"""Scores by gradients, and the sizes at which a ranking meets a goal."""

import pytest
import torch

from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.attention_edges.edges import EdgeList
from lit_sparse.circuits.attention_edges.goals import Distribution
from lit_sparse.circuits.attention_edges.minimal import Ablations
from lit_sparse.circuits.attention_edges.ranking import crossing, gradient_scores
from tests.circuits.attention_edges.test_search import Additive


@pytest.mark.parametrize("off", ["mean", "zero", "corrupted"])
def test_scores_are_the_loss_to_first_order(off, copier, sentences, passes_of):
    try:
        with Stack(copier.double()) as stack:
            passes = passes_of(stack, sentences(1, seed=3), off)
            edges = EdgeList(passes.open)

            def metric(logits):
                return logits[:, :1]

            scores = gradient_scores(passes, edges, metric)
            step = 1e-2  # llama's norms are float32 inside
            for place in scores.abs().argsort(descending=True)[:12].tolist():
                kept = torch.ones(2, len(edges), dtype=torch.float64)
                kept[:, place] += torch.tensor([step, -step], dtype=torch.float64)
                with torch.no_grad():
                    high, low = metric(passes.logits(edges.switches(kept)))[:, 0]
                torch.testing.assert_close(scores[place].double(), (high - low) / (2 * step), rtol=0.02, atol=1e-3)
    finally:
        copier.float()


def test_first_and_last_crossing_of_a_curve_that_falls_back():
    # What is kept of 11: 1, 3, 11, 11 (10 are enough), 7 from 5 to 8, then half more with each.
    ablations = Additive([1, 2, 8, 0, -4, 0, 0, 0] + [0.5] * 8)
    found = crossing(ablations, torch.arange(16), tolerance=1.0)
    assert (found.first, found.last) == (3, 14) and found.sizes[0] == 0 and found.sizes[-1] == 16
    assert 0 <= found.area() <= 1
    never = crossing(ablations, torch.arange(16), tolerance=-100.0)
    assert never.first is None and never.last is None
    at_once = crossing(ablations, torch.arange(16), tolerance=100.0)
    assert (at_once.first, at_once.last) == (0, 0) and at_once.area() >= found.area()


def test_all_edges_lose_nothing(copier, sentences, passes_of):
    with Stack(copier) as stack:
        passes = passes_of(stack, sentences(1, seed=4))
        edges = EdgeList(passes.open)
        goal = Distribution(passes.whole.logits)
        scores = gradient_scores(passes, edges, lambda logits: logits.max(-1, keepdim=True).values)
        found = crossing(Ablations(passes, edges, goal), scores.abs().argsort(descending=True), goal.tolerance)
    assert found.losses[-1] == pytest.approx(0, abs=1e-5) and 0 < found.first <= found.last <= len(edges)
