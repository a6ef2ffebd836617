"""Edges as a list and as switches."""

import torch

from lit_sparse.circuits.attention_edges.edges import EdgeList


def some_edges(batch, seed=0):
    """Of layers with different numbers of heads."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(batch, heads, 4, 4, generator=generator) < 0.4 for heads in (3, 2, 1)]


def test_edges_come_by_layer_prompt_head_query_and_key():
    of_layers = some_edges(2)
    edges = EdgeList(of_layers)
    places = torch.stack([edges.layer, edges.prompt, edges.head, edges.query, edges.key], dim=1).tolist()
    assert places == sorted(places) and len(edges) == len(places) and edges.prompts == 2
    expected = {(layer, *place) for layer, some in enumerate(of_layers) for place in some.nonzero().tolist()}
    assert set(map(tuple, places)) == expected and len(expected) == len(places)


def test_switches_put_each_edge_in_its_place_and_leave_the_others_off():
    of_layers = some_edges(2)
    edges = EdgeList(of_layers)
    kept = torch.rand(3, len(edges), dtype=torch.float64)
    switches = edges.switches(kept)
    for some, switch in zip(of_layers, switches, strict=True):
        assert switch.shape == (3, *some.shape) and switch.dtype is kept.dtype and not switch[:, ~some].any()
    at = zip(edges.layer, edges.prompt, edges.head, edges.query, edges.key, strict=True)
    for number, (layer, *place) in enumerate(at):
        assert torch.equal(switches[layer][:, *place], kept[:, number])
    together = torch.cat([switch[:, some] for some, switch in zip(of_layers, switches, strict=True)], dim=1)
    assert torch.equal(together, kept)


def test_switches_are_differentiable():
    edges = EdgeList(some_edges(2))
    kept = torch.rand(2, len(edges), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda kept: tuple(edges.switches(kept)), kept)


def test_one_list_for_several_prompts():
    edges = EdgeList(some_edges(1))
    assert edges.prompts == 1 and not edges.prompt.any()
    assert [tuple(some.shape) for some in edges.switches(torch.ones(2, len(edges)))] == [
        (2, 1, 3, 4, 4),
        (2, 1, 2, 4, 4),
        (2, 1, 1, 4, 4),
    ]


def test_layers_without_edges():
    edges = EdgeList([torch.zeros(1, 2, 3, 3, dtype=torch.bool), torch.ones(1, 2, 3, 3, dtype=torch.bool)])
    assert len(edges) == 18 and edges.layer.eq(1).all()
    off, on = edges.switches(torch.ones(1, 18))
    assert not off.any() and on.all()
