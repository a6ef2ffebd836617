"""From a learnt mask to a circuit of which no edge can go, on a model that has one."""

from types import SimpleNamespace

import pytest
import torch

from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.attention_edges.edges import EdgeList
from lit_sparse.circuits.attention_edges.goals import Difference, Distribution
from lit_sparse.circuits.attention_edges.mask import Learning, learn_mask
from lit_sparse.circuits.attention_edges.minimal import Ablations, minimal, shortest_prefix
from lit_sparse.circuits.attention_edges.passes import TOKENS_AT_ONCE


def goal_of(passes, kind):
    whole = passes.whole.logits
    if kind == "distribution":
        return Distribution(whole)
    tokens = torch.arange(16)
    ablated = passes.logits([torch.zeros(1, *some.shape) for some in passes.open])
    right, wrong = tokens == passes.ids[:, 1, None], tokens == (passes.ids[:, 1, None] + 5) % 16
    return Difference(right, wrong, whole, ablated)


@pytest.mark.parametrize("kind", ["distribution", "difference"])
@pytest.mark.parametrize("off", ["mean", "zero", "corrupted"])
def test_a_circuit_is_found_that_meets_the_goal_and_needs_each_edge(
    kind, off, copier, sentences, passes_of, logits_with
):
    with Stack(copier) as stack, torch.no_grad():
        passes = passes_of(stack, sentences(1, seed=4), off)
        edges, goal = EdgeList(passes.open), goal_of(passes, kind)
        with torch.enable_grad():
            learnt = learn_mask(passes, edges, goal, Learning(steps=30))
        ablations = Ablations(passes, edges, goal)
        prefix = shortest_prefix(ablations, learnt.argsort(descending=True))
        kept = minimal(ablations, prefix)
        single = kept.repeat(int(kept.sum()), 1)
        single[torch.arange(len(single)), kept.nonzero()[:, 0]] = False
        assert (ablations.losses(single) > goal.tolerance).all()
    assert len(edges) == 2 * 4 * 36 and not (kept & ~prefix).any()
    assert 0 < kept.sum() <= prefix.sum() < 0.3 * len(edges)
    loss = goal.loss(logits_with(passes, edges, kept))
    assert loss <= goal.tolerance and goal.loss(logits_with(passes, edges, kept & False)) > goal.tolerance
    with Stack(copier):
        torch.testing.assert_close(loss[0], ablations.losses(kept[None]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("off", ["mean", "corrupted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("takes_positions", [True, False])
def test_switching_an_edge_is_a_mask_that_differs_in_it(off, dtype, takes_positions, copier, sentences, passes_of):
    try:
        with Stack(copier.to(dtype)) as stack:
            stack.takes_positions = takes_positions
            passes = passes_of(stack, sentences(1), off)
            edges = EdgeList(passes.open)
            ablations = Ablations(passes, edges, Distribution(passes.whole.logits))
            kept = torch.rand(len(edges), generator=torch.Generator().manual_seed(0)) < 0.5
            places = torch.randperm(len(edges), generator=torch.Generator().manual_seed(1))[:200]
            assert len(places) > TOKENS_AT_ONCE // 8, "more than one batch"
            masks = kept.repeat(len(places), 1)
            masks[torch.arange(len(places)), places] ^= True
            found, expected = ablations.switched(kept, places), ablations.losses(masks)
    finally:
        copier.float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, check_dtype=False)
    assert expected.std() > 0.01


class Counted(Ablations):
    """The goal is met by at least so many edges."""

    def __init__(self, needed):
        self.needed, self.sizes = needed, []
        self.edges = EdgeList([torch.ones(1, 1, 20, 20, dtype=torch.bool)])
        self.goal = Distribution(torch.zeros(1, 2), tolerance=0.5)

    def losses(self, kept):
        self.sizes += kept.sum(1).tolist()
        return (kept.sum(1) < self.needed).float()


@pytest.mark.parametrize("needed", [1, 2, 7, 40, 111, 300, 391])
def test_the_shortest_prefix_is_found_to_a_sixteenth(needed):
    ablations, order = Counted(needed), torch.randperm(400)
    kept = shortest_prefix(ablations, order)
    size = int(kept.sum())
    assert needed <= size <= needed + max(1, size // 16) and kept[order[:size]].all()
    assert len(ablations.sizes) < 60
    alone = shortest_prefix(ablations, order[:350])
    assert alone is None if needed > 350 else bool(alone[order[: int(alone.sum())]].all())


def test_no_prefix_where_all_edges_miss_the_goal():
    assert shortest_prefix(Counted(401), torch.arange(400)) is None


def test_where_nothing_is_needed_nothing_is_kept(copier, sentences, passes_of):
    with Stack(copier) as stack:
        passes = passes_of(stack, sentences(1))
        edges = EdgeList(passes.open)
        easy = Ablations(passes, edges, Distribution(passes.whole.logits, tolerance=1e6))
        assert not minimal(easy, torch.ones(len(edges), dtype=torch.bool)).any()


def test_edges_are_switched_together_where_little_is_computed_again():
    ablations = Ablations.__new__(Ablations)
    ablations.passes = SimpleNamespace(
        ids=torch.zeros(1, 40), stack=SimpleNamespace(graph=SimpleNamespace(layers=30), takes_positions=True)
    )
    layers, queries = [0, 29, 12] * 20, [0, 39, 39] * 20
    batches = ablations._together(layers, queries)
    assert sorted(edge for batch in batches for edge in batch) == list(range(60))
    assert all(len({queries[edge] for edge in batch}) == 1 for batch in batches), "never all 40 positions for the last"
    assert all((40 - queries[batch[0]]) * len(batch) <= TOKENS_AT_ONCE for batch in batches)
    assert len(ablations._together([5] * 30, [39] * 30)) == 1, "weights are read once"
