"""Influence against the matrix series, pruning, and counts of heads on graphs made by hand."""

from dataclasses import replace

import numpy as np
import pytest

from lit_sparse.attribution import AttributionGraph, Edges, Kind, NodeTable, build_graph, heads_for, prune
from lit_sparse.attribution.influence import edge_influence, node_influence, smallest_count

ROWS = [  # kind, layer, position, index, value
    (Kind.EMBEDDING, -1, 0, 11, 0),
    (Kind.EMBEDDING, -1, 1, 12, 0),
    (Kind.HEAD, 0, 1, 0, 3),
    (Kind.HEAD, 0, 1, 1, -1),
    (Kind.FEATURE, 0, 1, 7, 2),
    (Kind.ERROR, 0, 1, 0, 0),
    (Kind.HEAD, 1, 1, 0, 1),
    (Kind.LOGIT, 2, 1, 5, 4),
    (Kind.LOGIT, 2, 1, 6, 2),
]
EDGES = [  # source, target, weight; by the target's stage
    (0, 2, 1.0), (1, 2, 3.0), (0, 3, -1.0), (2, 4, 2.0), (1, 4, -2.0), (4, 6, 1.0), (5, 6, 3.0),
    (6, 7, 1.0), (4, 7, 1.0), (3, 7, -2.0), (5, 8, 1.0),
]  # fmt: skip


def make_graph() -> AttributionGraph:
    kind, layer, position, index, value = (np.array(column) for column in zip(*ROWS, strict=True))
    nodes = NodeTable(kind.astype(np.int8), layer, position, index, value.astype(np.float32))
    source, target, weight = (np.array(column) for column in zip(*EDGES, strict=True))
    edges = Edges(source.astype(np.int32), target.astype(np.int32), weight.astype(np.float32))
    probabilities = np.array([0.6, 0.2], dtype=np.float32)
    attribution = np.zeros((2, 2, 2), dtype=np.float32)
    attribution[0, :, 1], attribution[1, 0] = (3, -1), (-0.5, 0.5)
    edge_attribution = [np.zeros((2, 2, 2), dtype=np.float32) for _ in range(2)]
    edge_attribution[0][:, 1, 0], edge_attribution[0][:, 1, 1], edge_attribution[1][0, 1] = (1, -1), (2, 0), (-0.5, 1)
    return AttributionGraph(
        ids=np.array([11, 12]), layers=2, nodes=nodes, edges=edges, bias=np.zeros(len(nodes), dtype=np.float32),
        influence=node_influence(nodes, edges, probabilities), logit_ids=np.array([5, 6]),
        probabilities=probabilities, head_attribution=attribution, attention=[],
        edge_attribution=edge_attribution, replacement_error=0.0,
        explained_variance=1.0, replacement_kl=0.0, allowed_edges=12, open_edges=9,
    )  # fmt: skip


def series(graph: AttributionGraph) -> np.ndarray:
    """logits (A + A^2 + ...) by solving (I - A), rows targets (transformer-circuits.pub 2025)."""
    size = len(graph.nodes)
    shares = np.zeros((size, size))
    np.add.at(shares, (graph.edges.target, graph.edges.source), np.abs(graph.edges.weight).astype(np.float64))
    shares /= np.maximum(shares.sum(1, keepdims=True), 1e-300)
    start = np.zeros(size)
    start[-len(graph.probabilities) :] = graph.probabilities / graph.probabilities.sum()
    return start @ np.linalg.inv(np.eye(size) - shares)


def test_influence_by_hand():
    graph = make_graph()
    first, second = 0.75, 0.25  # the logits' probabilities, made to sum to 1
    head_1 = first / 4
    feature = first / 4 + head_1 / 4
    assert graph.influence[[7, 8, 6, 4]] == pytest.approx([first, second, head_1, feature])
    assert graph.influence[5] == pytest.approx(second + head_1 * 3 / 4)
    assert graph.influence[3] == pytest.approx(first / 2)
    # All influence ends at nodes without inputs.
    assert graph.influence[[0, 1, 5]].sum() == pytest.approx(1)


def test_influence_is_the_sum_of_the_powers_of_the_matrix(make_problem):
    for graph in (make_graph(), build_graph(*make_problem("llama", {"threshold": 0.2}, layers=3))):
        np.testing.assert_allclose(graph.influence, series(graph), rtol=1e-4, atol=1e-6)
        through = edge_influence(graph.nodes, graph.edges, graph.probabilities)
        received = np.bincount(graph.edges.source, through, minlength=len(graph.nodes))
        is_logit = graph.nodes.kind == Kind.LOGIT
        np.testing.assert_allclose(received[~is_logit], graph.influence[~is_logit], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shares", [(0.8, 0.98), (0.5, 0.9), (1.0, 1.0)], ids=str)
def test_a_pruned_graph_is_connected_and_keeps_its_ends(shares, make_problem):
    graph = build_graph(*make_problem("gpt2", layers=3))
    pruned = prune(graph, *shares)
    nodes, edges = pruned.nodes, pruned.edges
    assert len(nodes) < len(graph.nodes) or shares[0] == 1
    names, whole = nodes.keys(), graph.nodes.keys()
    ends = graph.nodes.where((graph.nodes.kind == Kind.EMBEDDING) | (graph.nodes.kind == Kind.LOGIT)).keys()
    assert set(ends) <= set(names) <= set(whole)
    inner = np.flatnonzero((nodes.kind != Kind.EMBEDDING) & (nodes.kind != Kind.LOGIT))
    assert set(inner) <= set(edges.source.tolist())
    assert set(inner[nodes.kind[inner] != Kind.ERROR]) <= set(edges.target.tolist())
    # An edge has the weight that it had, a node its influence and value.
    size = len(graph.nodes)
    weights = dict(
        zip((graph.edges.source.astype(np.int64) * size + graph.edges.target).tolist(), graph.edges.weight, strict=True)
    )
    place = {name: i for i, name in enumerate(whole)}
    old = np.array([place[name] for name in names])
    for source, target, weight in zip(old[edges.source], old[edges.target], edges.weight, strict=True):
        assert weights[int(source) * size + int(target)] == weight
    assert (pruned.influence == graph.influence[old]).all() and (nodes.value == graph.nodes.value[old]).all()
    assert pruned.head_attribution is graph.head_attribution
    if shares == (1.0, 1.0):
        assert len(edges) == pytest.approx(len(graph.edges), rel=0.01)


def test_pruning_by_hand_keeps_the_strongest():
    pruned = prune(make_graph(), node_share=0.5)
    kept = set(pruned.nodes.keys())
    # Influences: error .39, embeddings .47 and .14, heads .375, .12, .19, feature .23; half of 1.92 is the first three.
    assert (Kind.HEAD, 0, 1, 1) in kept and (Kind.ERROR, 0, 1, 0) in kept
    assert (Kind.FEATURE, 0, 1, 7) not in kept and (Kind.HEAD, 1, 1, 0) not in kept
    assert {key[0] for key in kept} >= {Kind.EMBEDDING, Kind.LOGIT}


@pytest.mark.parametrize("shares", [{"node_share": 0}, {"node_share": 1.1}, {"edge_share": -0.1}])
def test_shares_out_of_range_are_refused(shares):
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        prune(make_graph(), **shares)
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        heads_for(make_graph(), share=0)


def test_heads_that_carry_a_share():
    graph = make_graph()  # |attribution| over positions: 3, 1, 1 and nothing; influence .12, .375, .19
    found = heads_for(graph, 0.8)
    assert found.by_attribution == 2 and found.by_influence == 2
    np.testing.assert_allclose(found.attribution, [[0.6, 0.2], [0.2, 0]])
    assert found.influence.sum() == pytest.approx(1)
    assert found.by_connection == 2, "from position 0 to 1 move 1, -1 and -.5; what stays at 1 does not count"
    assert heads_for(graph, 0.6).by_attribution == 1 and heads_for(graph, 0.9).by_connection == 3
    assert heads_for(graph, 1.0).by_attribution == 3, "a head that has nothing is not needed"
    silent = replace(graph, head_attribution=np.zeros_like(graph.head_attribution))
    assert heads_for(silent).by_attribution == 0 and not heads_for(silent).attribution.any()


@pytest.mark.parametrize(("share", "count"), [(0.3, 1), (0.5, 1), (0.6, 2), (0.9, 2), (0.91, 3), (1.0, 3)])
def test_the_smallest_count_is_not_off_by_rounding(share, count):
    assert smallest_count(np.array([0.5, 0.4, 0.1, 0.0]), share) == count
