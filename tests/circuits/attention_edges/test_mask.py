"""Masks learnt on a model that has a circuit, and what they begin with."""

import pytest
import torch

from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.attention_edges.edges import EdgeList
from lit_sparse.circuits.attention_edges.goals import Distribution
from lit_sparse.circuits.attention_edges.mask import Learning, learn_mask, sensitivity
from lit_sparse.circuits.attention_edges.minimal import Ablations, shortest_prefix
from lit_sparse.circuits.attention_edges.passes import Passes

SHORT = Learning(steps=30)


def test_the_same_seed_learns_the_same(copier, sentences, passes_of):
    with Stack(copier) as stack:
        passes = passes_of(stack, sentences(2))
        edges, goal, steps = EdgeList(passes.open), Distribution(passes.whole.logits), []
        learnt = [
            learn_mask(passes, edges, goal, Learning(steps=4), seed=seed, advance=steps.append) for seed in (1, 1, 2)
        ]
    assert torch.equal(learnt[0], learnt[1]) and not torch.equal(learnt[0], learnt[2])
    assert steps == [1] * 12 and learnt[0].shape == (len(edges),) and not learnt[0].requires_grad


def test_prompts_are_learnt_side_by_side(copier, sentences, passes_of, logits_with):
    ids, found = sentences(3, seed=5), []
    with Stack(copier) as stack:
        passes = passes_of(stack, ids)
        edges = EdgeList(passes.open)
        learnt = learn_mask(passes, edges, Distribution(passes.whole.logits), SHORT)
        for prompt in range(3):
            one = passes_of(stack, ids[prompt : prompt + 1])
            own, goal = EdgeList(one.open), Distribution(one.whole.logits)
            order = learnt[edges.prompt == prompt].argsort(descending=True)
            found.append((one, own, goal, shortest_prefix(Ablations(one, own, goal), order)))
    for one, own, goal, kept in found:
        assert goal.loss(logits_with(one, own, kept)) <= goal.tolerance
        assert kept.sum() < 0.3 * len(own)


def test_edges_that_are_listed_once_get_one_mask_for_all_prompts(copier, sentences, passes_of, logits_with):
    ids = sentences(6, seed=6)
    with Stack(copier) as stack:
        passes = passes_of(stack, ids)
        edges = EdgeList([some.any(0, keepdim=True) for some in passes.open])
        goal = Distribution(passes.whole.logits)
        learnt = learn_mask(passes, edges, goal, SHORT)
        assert learnt.shape == (2 * 4 * 36,)
        kept = torch.zeros(len(edges), dtype=torch.bool)
        kept[learnt.topk(len(edges) // 3).indices] = True
        singles = [passes_of(stack, one) for one in ids.split(1)]
    losses = [Distribution(one.whole.logits).loss(logits_with(one, EdgeList(one.open), kept)) for one in singles]
    assert torch.stack(losses).mean() <= goal.tolerance


@pytest.mark.parametrize("shared", [False, True])
def test_sensitivity_is_the_diagonal_of_the_fisher_information(shared, make_model, tokens):
    """The expectation over all pairs of next tokens of two prompts."""
    draws = 1000
    with Stack(make_model("llama").double()) as stack:
        passes = Passes(stack, tokens(2, 4), "zero")
        edges = EdgeList([some.any(0, keepdim=True) for some in passes.open] if shared else passes.open)
        found = sensitivity(passes, edges, torch.Generator().manual_seed(0), draws).double()
        switches = torch.ones(1, len(edges), dtype=torch.float64, requires_grad=True)
        log_p = passes.logits(edges.switches(switches)).log_softmax(-1)
        scores = torch.stack(
            [torch.autograd.grad(one, switches, retain_graph=True)[0][0] for one in log_p.flatten()]
        ).unflatten(0, (2, 64))
    first, second = log_p.detach().exp()
    p = first[:, None, None] * second[:, None]
    squared = (scores[0][:, None] + scores[1]).square()
    expected = (p * squared).sum((0, 1))
    error = ((p * squared.square()).sum((0, 1)) - expected.square()).clamp_min(0).sqrt() / draws**0.5
    assert expected.max() > 0.01
    assert ((found - expected).abs() <= 5 * error + 1e-6).all()
    assert (error < 0.3 * expected)[expected > 0.1 * expected.max()].all(), "too few draws to tell"
