"""One call from a goal to a minimal circuit, and an edge put in the place of others."""

import pytest
import torch

from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.attention_edges import search as module
from lit_sparse.circuits.attention_edges.edges import EdgeList
from lit_sparse.circuits.attention_edges.goals import Distribution
from lit_sparse.circuits.attention_edges.mask import Learning
from lit_sparse.circuits.attention_edges.minimal import Ablations, exchanged, grown, minimal
from lit_sparse.circuits.attention_edges.search import find, find_each

STEPS = Learning(steps=30)


class Additive(Ablations):
    """Each edge is worth something by itself, and 10 are wanted: no model is run."""

    def __init__(self, worth: list[float]):
        self.worth = torch.tensor(worth)
        self.goal = Distribution(torch.zeros(1, 2), tolerance=1.0)

    def losses(self, kept):
        return 11 - (kept.float() * self.worth).sum(-1)

    def switched(self, kept, places):
        trials = kept.repeat(len(places), 1)
        trials[torch.arange(len(places)), places] ^= True
        return self.losses(trials)


def test_minimal_takes_the_least_needed_and_keeps_what_is_protected():
    ablations = Additive([6, 3, 2, 1, 1, 0])
    kept = minimal(ablations, torch.ones(6, dtype=torch.bool))
    assert float(ablations.losses(kept[None])) <= 1 and kept.tolist() == [True, True, True, False, False, False]
    kept = minimal(ablations, torch.ones(6, dtype=torch.bool), protected=[5])
    assert bool(kept[5]) and float(ablations.losses(kept[None])) <= 1


def test_a_circuit_grows_by_the_edges_that_help_most_until_the_goal_is_met():
    ablations = Additive([1, 0, 0, 5, -3, 2, 4])
    order = torch.arange(7)
    kept = torch.tensor([True] + [False] * 6)
    found = grown(ablations, kept, order, most=7)
    assert float(ablations.losses(found[None])) <= 1 and found.nonzero()[:, 0].tolist() == [0, 3, 6]
    assert torch.equal(grown(ablations, found, order, most=7), found), "what meets the goal is left alone"
    assert grown(ablations, kept, order[:4], most=7) is None, "none of the others helps"
    assert grown(Additive([1, 1, 1, 1, 1, 1, 1]), kept, order, most=7) is None
    assert grown(ablations, kept, order, most=1) is None


def test_an_edge_takes_the_place_of_several():
    ablations = Additive([2, 2, 2, 2, 2, 9, 1])
    kept = torch.tensor([True] * 5 + [False, False])
    assert torch.equal(minimal(ablations, kept), kept), "no single one can go"
    smaller = exchanged(ablations, kept, torch.arange(7))
    assert smaller.sum() == 2 and bool(smaller[5]) and float(ablations.losses(smaller[None])) <= 1


def test_a_large_prefix_is_learnt_again_and_what_is_found_is_of_the_same_edges(
    copier, sentences, passes_of, monkeypatch
):
    with Stack(copier) as stack:
        passes = passes_of(stack, sentences(1, seed=4))
        goal = Distribution(passes.whole.logits)
        steps = []
        found = find(passes, goal, STEPS, advance=steps.append)
        assert sum(steps) == STEPS.steps
        again = find(passes, goal, STEPS)
        assert found.edges() == again.edges() and len(found.edges()) == found.size > 0
        monkeypatch.setattr(module, "_MANY", 1)
        monkeypatch.setattr(module, "_FIRST", 1)
        grows = find(passes, goal, STEPS)
        assert float(grows.ablations.losses(grows.kept[None])) <= goal.tolerance
        monkeypatch.setattr(module, "grown", lambda *_, most: None)
        other = find(passes, goal, STEPS)
        assert float(other.ablations.losses(other.kept[None])) <= goal.tolerance
        assert len(other.ablations.edges) < sum(int(layer.sum()) for layer in passes.open)


def test_a_goal_that_needs_no_edges_is_met_by_none(copier, sentences, passes_of):
    with Stack(copier) as stack:
        passes = passes_of(stack, sentences(1))
        assert find(passes, Distribution(passes.whole.logits, tolerance=100.0), Learning(steps=2)).size == 0


def test_what_no_mask_reaches_is_none(copier, sentences, passes_of):
    with Stack(copier) as stack:
        passes = passes_of(stack, sentences(1))
        impossible = Distribution(torch.full((1, 16), -30.0).index_fill(1, torch.tensor([3]), 30.0), tolerance=1e-6)
        assert find(passes, impossible, Learning(steps=2)) is None


def test_several_prompts_have_one_circuit_that_meets_the_goal_on_average(copier, sentences, passes_of):
    with Stack(copier) as stack:
        passes = passes_of(stack, sentences(3, seed=4))
        goal = Distribution(passes.whole.logits)
        found = find(passes, goal, STEPS)
        kept = found.ablations.edges.switches(found.kept.float()[None])
        with torch.no_grad():
            losses = goal.loss(passes.logits(kept))
    assert losses.shape == (1, 3) and float(losses.mean()) <= goal.tolerance
    assert {layer.shape for layer in kept} == {(1, 1, 4, 8, 8)} and 0 < found.size < 2 * 4 * 36


def test_edges_of_each_prompt_by_itself_are_refused(copier, sentences, passes_of):
    with Stack(copier) as stack:
        passes = passes_of(stack, sentences(2))
        with pytest.raises(ValueError, match="2 prompts: list them once"):
            Ablations(passes, EdgeList(passes.open), Distribution(passes.whole.logits))


def test_circuits_of_prompts_learnt_side_by_side_meet_each_its_goal(copier, sentences, passes_of):
    with Stack(copier) as stack:
        ids = sentences(3, seed=4)
        passes = passes_of(stack, ids)
        goal = Distribution(passes.whole.logits)
        each = find_each(passes, goal, STEPS)
        alone = passes_of(stack, ids[1:2])
        kept = each[1].ablations.edges.switches(each[1].kept.float()[None])
        with torch.no_grad():
            loss = Distribution(alone.whole.logits).loss(alone.logits(kept))
        assert all(float(found.ablations.losses(found.kept[None])) <= goal.tolerance for found in each)
    assert len(each) == 3 and len({frozenset(found.edges()) for found in each}) == 3
    assert float(loss) <= goal.tolerance


@pytest.mark.parametrize("off", ["mean", "zero", "corrupted"])
def test_one_of_several_prompts(off, copier, sentences, passes_of):
    with Stack(copier) as stack, torch.no_grad():
        ids = sentences(3, seed=2)
        several, alone = passes_of(stack, ids, off).only(1), passes_of(stack, ids[1:2], off)
        kept = [(torch.rand(2, *layer.shape) < 0.7).float() for layer in alone.open]
        torch.testing.assert_close(several.logits(kept), alone.logits(kept))
        assert all(map(torch.equal, several.open, alone.open)) and torch.equal(several.ids, alone.ids)


def test_the_smallest_set_of_whole_heads(copier, sentences, passes_of):
    with Stack(copier) as stack, torch.no_grad():
        passes = passes_of(stack, sentences(2, seed=4))
        goal = Distribution(passes.whole.logits)
        with torch.enable_grad():
            each = find_each(passes, goal, STEPS, level="head")
        for prompt, found in enumerate(each):
            alone, mine = passes.only(prompt), goal.only(prompt)
            heads = torch.zeros(2, 4)
            for layer, head, query, key in found.edges():
                assert query == key == 0
                heads[layer, head] = 1

            def loss(heads, alone=alone, mine=mine):
                kept = [row[None, None, :, None, None].expand(1, 1, 4, 8, 8) for row in heads]
                return float(mine.loss(alone.logits(kept)))

            assert 0 < heads.sum() == found.size < 8 and loss(heads) <= goal.tolerance
            for layer, head in heads.nonzero().tolist():
                fewer = heads.clone()
                fewer[layer, head] = 0
                assert loss(fewer) > goal.tolerance
