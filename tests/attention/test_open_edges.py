"""The list of open edges against the matrices it stands for."""

import pytest
import torch

from lit_sparse import sparsify
from lit_sparse.attention import gates_of, open_edges, reference_pattern


def dense(edges, shape) -> torch.Tensor:
    matrix = torch.zeros(shape)
    matrix[tuple(edges.indices)] = edges.weights
    return matrix


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mistral", "opt"])
@pytest.mark.parametrize("normalisation", ["all", "open"])
def test_the_list_is_the_pattern(family, normalisation, make_model, tokens):
    model = sparsify(make_model(family), {"threshold": 0.15, "normalisation": normalisation}).train()
    ids = tokens(3, 11)
    listed = open_edges(model, ids)
    assert model.training and all(gate.training for gate in gates_of(model))
    assert len(listed) == 2
    for row in range(3):
        pattern = reference_pattern(model, ids[row : row + 1])
        for layer, edges in enumerate(listed):
            expected = pattern.weights[layer] * pattern.is_open[layer]
            if normalisation == "open":
                expected = expected / expected.sum(-1, keepdim=True).clamp_min(1e-9)
            assert 0 < pattern.is_open[layer].sum() < pattern.is_open[layer].numel() // 2
            mine = dense(edges, (3, 4, 11, 11))[row]
            assert torch.equal(mine > 0, pattern.is_open[layer])
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)  # float32, other kernels


def test_edges_are_in_order_and_padding_has_none(make_model, tokens):
    model = sparsify(make_model("llama"), {"threshold": 0.1})
    mask = torch.tensor([[1] * 9, [0] * 4 + [1] * 5])
    for edges in open_edges(model, tokens(2, 9), attention_mask=mask):
        place = edges.indices
        flat = ((place[0] * 4 + place[1]) * 9 + place[2]) * 9 + place[3]
        assert (flat.diff() > 0).all()
        assert (place[3] <= place[2]).all() and (place[3][place[0] == 1] >= 4).all()
        assert edges.weights.dtype is torch.float32 and (edges.weights > 0).all()


def test_a_model_without_gates_or_with_other_gates_is_refused(make_model, tokens, own_family):
    with pytest.raises(ValueError, match=r"no gates.*sparsify"):
        open_edges(make_model("llama"), tokens(1, 4))
    other = own_family("test_other", lambda logits, log_normaliser: logits - log_normaliser + 2)
    model, ids = sparsify(make_model("llama"), other()), tokens(1, 4)
    before = model(ids).logits
    with pytest.raises(ValueError, match=r"cannot be listed.*test_other"):
        open_edges(model, ids)
    assert torch.equal(model(ids).logits, before), "the model is left as it was"
