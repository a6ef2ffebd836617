"""Circuits on tiny random models: passes with ablated edges, gradients against exact patches."""

import pytest
import torch

from lit_sparse import sparsify
from lit_sparse.anatomy.component_graph import ComponentGraph
from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.edge_scores import eap, exact
from lit_sparse.circuits.forward import activations, run_edges, run_nodes

FAMILIES = ["gpt2", "llama", "gemma2", "gpt_neox", "phi"]  # plain, grouped, norms on both sides, parallel, one norm


def metric(logits):
    return logits[:, 5] - logits[:, 9]


@pytest.fixture(params=FAMILIES)
def problem(request, make_model, tokens):
    model = make_model(request.param)
    if request.param in ("llama", "gemma2"):
        sparsify(model, {"threshold": 0.1})
    with Stack(model) as stack:
        yield stack, tokens(3, 7, seed=1), tokens(3, 7, seed=2)


def test_gpt2_small_has_as_many_nodes_and_edges_as_the_literature_says():
    graph = ComponentGraph((12,) * 12, (12,) * 12, (False,) * 12)
    assert (graph.nodes, int(graph.edges.sum())) == (158, 32491)


def test_a_circuit_of_everything_is_the_model_and_one_of_nothing_the_corrupted_run(problem):
    stack, clean, corrupted = problem
    _, expected = activations(stack, clean)
    written, ablated = activations(stack, corrupted)
    close = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(run_edges(stack, clean, written, stack.graph.edges), expected, **close)
    nothing = torch.zeros_like(stack.graph.edges)
    torch.testing.assert_close(run_edges(stack, clean, written, nothing), ablated, **close)
    everything = torch.ones(len(stack.graph.writers), dtype=torch.bool)
    torch.testing.assert_close(run_nodes(stack, clean, written, everything), expected, **close)
    torch.testing.assert_close(run_nodes(stack, clean, written, ~everything), ablated, **close)


def test_ablating_all_edges_of_a_node_is_ablating_the_node(problem):
    stack, clean, corrupted = problem
    written, _ = activations(stack, corrupted)
    generator = torch.Generator().manual_seed(0)
    nodes = torch.rand(len(stack.graph.writers), generator=generator) < 0.5
    edges = stack.graph.edges & nodes[:, None]
    close = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(
        run_edges(stack, clean, written, edges), run_nodes(stack, clean, written, nodes), **close
    )


def test_what_is_not_connected_does_not_matter(problem):
    stack, clean, corrupted = problem
    if stack.model.config.model_type == "gemma2":
        pytest.skip("a norm after the attention lets a layer's heads share a scale")
    written, _ = activations(stack, corrupted)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        kept = stack.graph.edges & (torch.rand(stack.graph.edges.shape, generator=generator) < 0.1)
        connected = stack.graph.connected(kept)
        torch.testing.assert_close(
            run_edges(stack, clean, written, kept), run_edges(stack, clean, written, connected), rtol=1e-3, atol=1e-3
        )


def test_an_exact_score_is_the_effect_of_leaving_one_edge_out(problem):
    stack, clean, corrupted = problem
    scores = exact(stack, clean, corrupted, metric)
    written, _ = activations(stack, corrupted)
    normal = metric(activations(stack, clean)[1]).mean()
    edges = stack.graph.edges.nonzero()
    for index in torch.randperm(len(edges), generator=torch.Generator().manual_seed(0))[:12].tolist():
        writer, reader = edges[index].tolist()
        kept = stack.graph.edges.clone()
        kept[writer, reader] = False
        # The writer itself runs as in the clean pass, so leaving out one edge is patching it.
        effect = metric(run_edges(stack, clean, written, kept)).mean() - normal
        assert float(scores[writer, reader]) == pytest.approx(float(effect), rel=1e-3, abs=2e-3)
    assert not scores[~stack.graph.edges].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_eap_is_the_derivative_of_the_exact_patch(family, make_model, tokens):
    """Moving the embeddings a little, patches and gradients agree to first order. The step is so small that no gate
    changes its mind, and so large that the float32 in which transformers computes RMS norms does not matter."""
    model, clean, step = make_model(family).double(), tokens(3, 7, seed=1), 1e-4
    if family in ("llama", "gemma2"):
        sparsify(model, {"threshold": 0.1})
    with Stack(model) as stack:
        embed, near = stack.embed, clean.clone()
        direction = torch.randn(embed(clean).shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        stack.embed = lambda ids: embed(ids) + (step * direction if ids is near else 0)
        slopes = eap(stack, clean, near, metric) / step
        differences = exact(stack, clean, near, metric) / step
    size = slopes.abs().max()
    assert size > 0.1
    torch.testing.assert_close(slopes, differences, rtol=1e-2, atol=5e-3 * float(size))
