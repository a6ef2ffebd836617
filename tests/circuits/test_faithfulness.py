"""Curves and smallest circuits, on a tiny model and by hand."""

import itertools

import pytest
import torch

from lit_sparse import sparsify
from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.edge_scores import eap, exact
from lit_sparse.circuits.faithfulness import FRACTIONS, Curve, Evaluator, Ranking, curve
from lit_sparse.circuits.forward import activations, run_nodes
from lit_sparse.circuits.node_scores import patch_nodes
from lit_sparse.circuits.prompts import Prompts, group
from lit_sparse.circuits.pruning import prune
from lit_sparse.circuits.tasks import Pair


@pytest.fixture
def prompts(tokens):
    clean, corrupted = tokens(4, 8, seed=1), tokens(4, 8, seed=2)
    pairs = [
        Pair(tuple(a), tuple(b), (5, 6), (9,), "some") for a, b in zip(clean.tolist(), corrupted.tolist(), strict=True)
    ]
    return group(pairs, 64)[0]


@pytest.fixture(params=[False, True])
def stack(request, make_model, prompts):
    model = make_model("llama")
    if request.param:
        sparsify(model, {"threshold": 0.15})
    with Stack(model) as stack:
        yield stack


@pytest.fixture
def trained(copier):
    """The copier, and prompts that differ in the letter that it says."""
    torch.manual_seed(1)
    clean = torch.randint(0, 16, (12, 8))
    corrupted = clean.clone()
    corrupted[:, 1] = (clean[:, 1] + torch.randint(1, 16, (12,))) % 16
    answers = zip(clean.tolist(), corrupted.tolist(), strict=True)
    pairs = [Pair(tuple(a), tuple(b), (a[1],), (b[1],), "copy") for a, b in answers]
    with Stack(copier) as stack:
        yield stack, group(pairs, 16)[0]


def oriented(stack, prompts):
    """The same prompts with clean and corrupted exchanged where the model prefers the other's answer."""
    metric = [prompts.metric(activations(stack, ids)[1]).mean() for ids in (prompts.clean, prompts.corrupted)]
    if metric[0] > metric[1]:
        return prompts
    return Prompts(prompts.corrupted, prompts.clean, prompts.right, prompts.wrong)


def test_pairs_of_one_length_are_together_and_the_metric_is_log_odds():
    pairs = [Pair((1, 2, 3), (1, 4, 3), (5, 6), (7,), "a"), Pair((1, 2), (2, 2), (8,), (9,), "b")] * 3
    batches = group(pairs, 10, size=2)
    assert [tuple(batch.clean.shape) for batch in batches] == [(2, 3), (1, 3), (2, 2), (1, 2)]
    logits = torch.randn(2, 10, dtype=torch.float64)
    right = torch.log(logits[:, 5].exp() + logits[:, 6].exp())
    torch.testing.assert_close(batches[0].metric(logits), right - logits[:, 7])
    torch.testing.assert_close(batches[2].metric(logits), logits[:, 8] - logits[:, 9])


@pytest.mark.parametrize("ablation", ["patch", "mean"])
def test_faithfulness_is_1_for_everything_and_0_for_nothing(stack, prompts, ablation):
    evaluator = Evaluator(stack, [oriented(stack, prompts)], ablation)
    edges, nodes = stack.graph.edges, torch.ones(len(stack.graph.writers), dtype=torch.bool)
    assert evaluator.edges(edges) == pytest.approx(1, abs=1e-3)
    assert evaluator.nodes(nodes) == pytest.approx(1, abs=1e-3)
    assert evaluator.edges(torch.zeros_like(edges)) == pytest.approx(0, abs=1e-3)
    assert evaluator.nodes(~nodes) == pytest.approx(0, abs=1e-3)


def test_without_behaviour_there_is_nothing_to_explain(stack, prompts):
    better = oriented(stack, prompts)
    with pytest.raises(ValueError, match="no behaviour"):
        Evaluator(stack, [Prompts(better.corrupted, better.clean, better.right, better.wrong)])


def test_every_head_patched_is_every_head_replaced_in_a_run_of_its_own(stack, prompts):
    effects = patch_nodes(stack, prompts.clean, prompts.corrupted, prompts.metric)
    evaluator_of = {True: (prompts.clean, prompts.corrupted), False: (prompts.corrupted, prompts.clean)}
    for noising, (run, other) in evaluator_of.items():
        written, _ = activations(stack, other)
        normal = prompts.metric(activations(stack, run)[1]).mean()
        for writer in range(len(stack.graph.writers)):
            kept = torch.ones(len(stack.graph.writers), dtype=torch.bool)
            kept[writer] = False
            expected = prompts.metric(run_nodes(stack, run, written, kept)).mean() - normal
            measured = (effects.noising if noising else effects.denoising)[writer]
            assert float(measured) == pytest.approx(float(expected), abs=2e-3)


def test_the_smallest_circuit_is_found_by_bisection(stack):
    ranking = Ranking("edge", stack, torch.arange(500), 500)
    ranking.faithfulness = lambda evaluator, size: size / 400  # type: ignore[method-assign]
    found = curve(ranking, None, shares=(0.5, 0.9, 1.0))
    assert found.smallest[0.5] == pytest.approx(200, rel=0.06) and found.smallest[0.9] == pytest.approx(360, rel=0.06)
    assert all(size / 400 == value for size, value in zip(found.sizes, found.values, strict=True))
    expected = sum((b - a) * (a + b) / 2 for a, b in itertools.pairwise(FRACTIONS)) * 500 / 400
    assert found.cpr() == pytest.approx(expected, rel=0.02)
    ranking.faithfulness = lambda evaluator, size: min(0.8, size / 100)  # type: ignore[method-assign]
    assert curve(ranking, None, shares=(0.9,)).smallest == {0.9: None}


def test_a_later_fall_below_the_share_counts(stack):
    ranking = Ranking("edge", stack, torch.arange(1000), 1000)
    ranking.faithfulness = lambda evaluator, size: 0.95 if 20 <= size < 100 or size > 400 else 0.1  # type: ignore
    assert curve(ranking, None, shares=(0.9,)).smallest[0.9] == pytest.approx(400, rel=0.06)


def test_scores_of_exact_patches_find_smaller_circuits_than_chance(trained):
    stack, batch = trained
    evaluator = Evaluator(stack, [batch])
    scores = exact(stack, batch.clean, batch.corrupted, batch.metric)
    random = torch.rand(scores.shape, generator=torch.Generator().manual_seed(0)) * stack.graph.edges
    found, chance = (curve(Ranking.of_edges(stack, some), evaluator) for some in (scores, random))
    assert found.cmd() < chance.cmd() and found.smallest[0.9] < 0.7 * chance.smallest[0.9]


def test_eap_ig_ranks_edges_like_exact_patching(trained):
    stack, batch = trained
    edges = stack.graph.edges
    truth = exact(stack, batch.clean, batch.corrupted, batch.metric)[edges]
    by_gradient = eap(stack, batch.clean, batch.corrupted, batch.metric, interpolations=20)[edges]
    ranks = torch.stack([x.abs().argsort().argsort().double() for x in (by_gradient, truth)])
    assert float(torch.corrcoef(ranks)[0, 1]) >= 0.9


def test_pruning_leaves_only_edges_that_matter(trained):
    stack, batch = trained
    evaluator = Evaluator(stack, [batch])
    scores = exact(stack, batch.clean, batch.corrupted, batch.metric)
    kept = prune(evaluator, stack.graph.edges, scores, 0.02)
    assert kept.sum() < 0.5 * stack.graph.edges.sum()
    assert evaluator.edges(kept) > 1 - 0.02 * float((stack.graph.edges & ~kept).sum())
    with pytest.raises(ValueError, match="above 0"):
        prune(evaluator, stack.graph.edges, scores, 0)


def test_an_area_needs_every_fraction():
    assert Curve("edge", 1000, sizes=[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], values=[1.0] * 10).cmd() == 0
