"""What heads pass per unit of weight, against the model's own activations."""

import pytest
import torch

from lit_sparse import sparsify
from lit_sparse.anatomy.stack import Stack
from lit_sparse.attention import gates_of
from lit_sparse.circuits.attention_edges.passes import means
from tests.circuits.attention_edges.test_passes import head_outputs, whole_weights

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def prompts(tokens):
    """Of different lengths: each position counts once."""
    return [tokens(1, length, seed=length) for length in (3, 9, 5)]


def of(model, prompts):
    with Stack(model) as stack:
        return means(stack, [ids[0].tolist() for ids in prompts])


@pytest.mark.parametrize("family", ["llama", "gpt2", "deepseek_v3"])
def test_in_a_dense_model_a_head_passes_its_mean_output(family, build, prompts):
    model = build(family, "dense")
    by_prompt = [head_outputs(model, ids) for ids in prompts]
    for layer, found in enumerate(of(model, prompts)):
        outputs = torch.cat([outputs[layer][0] for outputs in by_prompt])
        torch.testing.assert_close(found, outputs.mean(0).view(4, -1), **CLOSE)


def test_in_a_sparse_model_it_is_per_unit_of_weight(build, prompts):
    model = build("llama", "centered")
    by_prompt = [head_outputs(model, ids) for ids in prompts]
    weights = [whole_weights(model, ids) for ids in prompts]
    for layer, (found, gate) in enumerate(zip(of(model, prompts), gates_of(model), strict=True)):
        total = sum(
            (outputs[layer][0].view(-1, 4, 8) - gate.head_center(torch.float64)).sum(0) for outputs in by_prompt
        )
        mass = sum(some[layer, 0].sum((1, 2)) for some in weights)
        torch.testing.assert_close(found, total / mass[:, None], **CLOSE)


def test_a_head_that_passes_nothing_has_none(make_model, prompts):
    model = sparsify(make_model("llama"), {"threshold": 0.15})
    gates_of(model)[1].set_cutoff(torch.tensor([0.0, 1.0, 1.0, 0.0]))
    found = of(model, prompts)
    assert found[0].abs().amin(1).all() and not found[1][1:3].any() and found[1].isfinite().all()


def test_no_prompts_no_means(make_model):
    with pytest.raises(ValueError, match="needs prompts"):
        of(make_model("llama"), [])
