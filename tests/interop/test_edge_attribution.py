"""Our EAP scores against TransformerLens' edge attribution patching, in float64."""

import copy

import pytest
import torch

from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.edge_scores import eap
from tests.interop.packages import needed

needed("transformer_lens")

READERS = {"query": "q_input", "key": "k_input", "value": "v_input", "mlp": "mlp_in", "logits": "logits"}
WRITERS = {"embedding": "embed", "head": "attn_head_out", "mlp": "mlp_out"}


def names(kinds, node, layers):
    """A node of ours as (kind, layer, head) of theirs, which count the logits to the last layer."""
    layer = layers - 1 if node.kind == "logits" else node.layer
    return kinds[node.kind], None if layer < 0 else layer, None if node.head < 0 else node.head


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_scores_are_transformer_lens_own(family, make_model, tokens):
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

    model = make_model(family, num_key_value_heads=4 if family == "llama" else None).double()
    clean, corrupted = tokens(2, 6, seed=1), tokens(2, 6, seed=2)
    bridge = build_bridge_from_module(
        copy.deepcopy(model), type(model).__name__, hf_config=model.config, dtype=torch.float64
    )
    # They differentiate at their corrupted prompt and point to their clean one, we the other way round.
    theirs = attribution_patch(
        bridge, corrupted, clean, lambda logits: logits[0, -1, 5] - logits[0, -1, 9],
        config=EdgeAttributionConfig(granularity="edge"),
    ).edge_scores  # fmt: skip
    summed: dict[tuple[object, ...], float] = {}  # over positions
    for (writer, reader), score in theirs.items():
        edge = (writer.kind, writer.layer, writer.head), (reader.kind, reader.layer, reader.head)
        summed[edge] = summed.get(edge, 0.0) + score
    with Stack(model) as stack:
        ours = eap(stack, clean, corrupted, lambda logits: logits[:, 5] - logits[:, 9])
        graph = stack.graph
    assert len(summed) == int(graph.edges.sum())
    layers = graph.layers
    expected = torch.zeros_like(ours)
    for writer, reader in graph.edges.nonzero().tolist():
        edge = names(WRITERS, graph.writers[writer], layers), names(READERS, graph.readers[reader], layers)
        expected[writer, reader] = summed.pop(edge)
    assert not summed
    size = float(ours.abs().max())
    assert size > 0.1
    tolerance = 1e-12 if family == "gpt2" else 1e-6  # transformers computes RMS norms in float32
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance * size)
