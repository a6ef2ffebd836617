"""Every edge of a graph against the same computation in plain loops, in float64."""

import pytest
import torch

from lit_sparse.anatomy.linear import LinearStack
from lit_sparse.attribution import Kind, build_graph
from lit_sparse.attribution.derivative import explained_logits, total_derivatives
from lit_sparse.attribution.replacement import Replacement
from tests.attribution.oracle import Oracle

# Attention weights of open edges are float32 (and llama's norms compute in it), about 1e-7 of what they are.
EXACT = {"rtol": 1e-5, "atol": 1e-6}

problems = pytest.mark.parametrize(
    ("family", "gate", "keys"),
    [
        ("llama", None, {}),
        ("gpt2", None, {}),
        ("llama", {"threshold": 0.25}, {}),
        ("gpt2", {"family": "contribution", "threshold": 0.3}, {}),
        ("llama", {"threshold": 0.25}, {"cross_layer": False}),
        ("gpt2", None, {"activation": "jumprelu"}),
    ],
)


@pytest.fixture
def make_both(make_problem):
    def make(family, gate, keys):
        model, transcoder, ids = make_problem(family, gate, layers=3, length=6, dtype=torch.float64, **keys)
        graph = build_graph(model, transcoder, ids)
        return graph, Oracle(model, transcoder, ids), (model, transcoder, ids)

    return make


@problems
def test_every_edge_is_the_direct_effect(family, gate, keys, make_both):
    graph, oracle, _ = make_both(family, gate, keys)
    tokens, probabilities = torch.from_numpy(graph.logit_ids), torch.from_numpy(graph.probabilities).double()
    expected = oracle.edges(tokens, oracle.derivatives(tokens, probabilities))
    names = graph.nodes.keys()
    source, target = graph.edges.source.tolist(), graph.edges.target.tolist()
    found = {(names[s], names[t]): w for s, t, w in zip(source, target, graph.edges.weight.tolist(), strict=True)}
    assert len(found) == len(graph.edges), "an edge is listed twice"
    listed = set(names)
    largest = max(abs(weight) for weight in found.values())
    for edge in found.keys() | expected.keys():
        if edge[1] in listed:
            assert found.get(edge, 0.0) == pytest.approx(expected.get(edge, 0.0), rel=1e-5, abs=1e-7 * largest), edge
    # What is not listed cannot reach the logits: no head that is has a node that is not as its source.
    assert all(edge[0] in listed for edge in expected if edge[1] in listed)


@problems
def test_total_derivatives_are_autograds(family, gate, keys, make_both):
    _, oracle, (model, transcoder, ids) = make_both(family, gate, keys)
    with LinearStack(model) as stack:
        replacement = Replacement(stack, transcoder, ids)
        explained = explained_logits(replacement.logits, None)
        derivatives = total_derivatives(replacement, explained)
    expected = oracle.derivatives(explained.ids, explained.probabilities)
    for found, autograds in zip(derivatives.attention, expected, strict=True):
        torch.testing.assert_close(found, autograds, **EXACT)


@problems
@torch.no_grad()
def test_the_oracle_is_the_model(family, gate, keys, make_both):
    """Or it would prove nothing: its frozen run gives the model's logits and the transcoder's preactivations."""
    graph, oracle, _ = make_both(family, gate, keys)
    logits, _ = oracle.run([torch.zeros_like(oracle.embedding)] * oracle.layers)
    torch.testing.assert_close(logits, oracle.logits, **EXACT)
    nodes, active = graph.nodes, oracle.activations > 0
    torch.testing.assert_close(oracle.activations[active], oracle.preactivations[active])
    listed = nodes.where(nodes.kind == Kind.FEATURE).keys()
    assert {key[1:] for key in listed} <= set(map(tuple, active.nonzero().tolist()))
