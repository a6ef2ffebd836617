"""Attention logits as sums over pairs of nodes."""

import numpy as np
import pytest
import torch

from lit_sparse.anatomy.linear import LinearStack
from lit_sparse.attention import attention_modules
from lit_sparse.attribution import Kind, build_graph, prune, why_open
from lit_sparse.attribution.replacement import Replacement
from lit_sparse.attribution.scores import LayerScores
from lit_sparse.attribution.writers import Writers

GATES = [None, {"threshold": 0.2}, {"family": "contribution", "threshold": 0.2}, {"family": "logit", "bias": -0.5}]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "phi", "gpt_neox"])
@torch.no_grad()
def test_pairs_add_up_to_every_logit(family, make_problem):
    """Of every edge that the mask allows, in all layers, whatever its rotation."""
    model, transcoder, ids = make_problem(family, dtype=torch.float64, length=7)
    with LinearStack(model) as stack:
        replacement = Replacement(stack, transcoder, ids)
        writers = Writers(replacement)
        for layer in range(2):
            scores = LayerScores(replacement, layer)
            for head, query, key in (replacement.weights[layer] != 0).nonzero().tolist():
                _, _, table = scores.pairwise(writers, head, query, key)
                # float32 norms: about 1e-7 of the logits
                torch.testing.assert_close(table.sum(), scores.logits[head, query, key], rtol=1e-5, atol=1e-5)
            writers.add_attention(layer)
            writers.add_mlp(layer)


@pytest.mark.parametrize("gate", GATES, ids=str)
def test_reasons_add_up_and_are_the_gates_own(gate, make_problem):
    model, transcoder, ids = make_problem("llama", gate, seed=1)
    graph = prune(build_graph(model, transcoder, ids))
    heads = np.flatnonzero(graph.nodes.kind == Kind.HEAD).tolist()
    why = why_open(model, transcoder, graph, heads, most_sources=4)
    assert why.refused is None and set(why.edges) == set(heads)
    for node, edges in why.edges.items():
        query, layer = int(graph.nodes.position[node]), int(graph.nodes.layer[node])
        assert 1 <= len(edges) <= 3 and edges == sorted(edges, key=lambda edge: -edge.weight)
        for edge in edges:
            assert edge.weight > 0 and edge.key <= query
            assert sum(value for *_, value in edge.pairs) + edge.pairs_rest == pytest.approx(edge.logit, abs=1e-4)
            sizes = [abs(value) for *_, value in edge.pairs]
            assert len(edge.pairs) <= 4 and sizes == sorted(sizes, reverse=True)
            for source, target, _ in edge.pairs:
                assert (source.position, target.position) == (query, edge.key)
                assert max(source.layer, target.layer) < layer
            if layer == 0:  # only the token is there: nothing is left but its biases, of which llama has none
                assert edge.queries_rest == pytest.approx(0, abs=1e-4) == edge.keys_rest
            if gate is None:
                assert edge.gate is None
            else:
                assert (
                    edge.gate is not None and edge.gate.z > 0 and edge.gate.family == gate.get("family", "probability")
                )
                assert edge.gate.z == pytest.approx(edge.gate.sharpness * (edge.gate.score - edge.gate.cutoff))


@torch.no_grad()
def test_a_gates_reading_decides(make_problem):
    """z > 0 exactly at the open edges; its score is the log of weight times value norm."""
    model, transcoder, ids = make_problem("llama", GATES[2], seed=1)
    with LinearStack(model) as stack:
        replacement = Replacement(stack, transcoder, ids)
        scores = LayerScores(replacement, 1)
        weights, value = replacement.weights[1], replacement.projected[1].value[0]
        readings = {}
        for head in range(4):
            for query in range(ids.shape[1]):
                for key in range(query + 1):
                    readings[head, query, key] = scores.gate(head, query, key)
        is_open = {place for place, reading in readings.items() if reading.z > 0}
        assert is_open == set(map(tuple, weights.nonzero().tolist())) and len(is_open) < len(readings)
        for head, query, key in is_open:
            expected = torch.log(weights[head, query, key] * value[head // 2, key].norm())
            assert readings[head, query, key].score == pytest.approx(float(expected), abs=1e-4)


def test_a_layer_that_keeps_all_edges_has_no_gate(make_problem):
    model, transcoder, ids = make_problem("llama", {"threshold": 0.2})
    attention_modules(model)[1].edge_gate.keep_open()
    graph = build_graph(model, transcoder, ids)
    heads = np.flatnonzero((graph.nodes.kind == Kind.HEAD) & (graph.nodes.layer == 1)).tolist()[:2]
    why = why_open(model, transcoder, graph, heads)
    assert all(edge.gate is None for edges in why.edges.values() for edge in edges)


def test_what_cannot_be_explained(make_problem):
    model, transcoder, ids = make_problem("qwen3")
    graph = build_graph(model, transcoder, ids)
    heads = np.flatnonzero(graph.nodes.kind == Kind.HEAD).tolist()
    why = why_open(model, transcoder, graph, heads[:1])
    assert why.edges == {} and "qwen3" in why.refused and "normalises" in why.refused
    with pytest.raises(ValueError, match="node 0 is none"):
        why_open(model, transcoder, graph, [heads[0], 0])
    assert why_open(model, transcoder, graph, []).edges == {}
