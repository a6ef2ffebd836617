"""Centers: nothing changes while edges are open, the mean is left where they close, and every operator agrees."""

import math

import pytest
import torch

from lit_sparse.attention import attention_modules, dense, gates_of, open_edges, sparsify
from lit_sparse.attention.dense_attention import dense_attention, measure_centers
from lit_sparse.attention.masks import EdgeMask
from lit_sparse.models.adapters import LoraConfig, add_lora
from lit_sparse.models.base import load_model
from lit_sparse.models.sparse_folder import continue_from, export_adapters, export_sparse, load_sparse
from lit_sparse.training.module import SparseAttentionModule
from lit_sparse.training.start.calibration import Calibration, calibrate

FAMILIES = ["llama", "gpt2", "gemma2", "qwen3", "phi3"]  # grouped or not, soft cap, windows, one projection for all
CENTERED = {"family": "contribution", "centered": True, "threshold": 0.2}


def randomise(model, scale=0.5):
    for gate in gates_of(model):
        gate.center.copy_(scale * torch.randn_like(gate.center))


def batch_of(ids):
    return {"input_ids": ids, "position_ids": torch.arange(ids.shape[1]).expand_as(ids), "labels": ids.roll(-1, 1)}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_with_all_edges_open_the_model_is_its_base(family, make_model, tokens):
    model, ids = make_model(family), tokens(2, 9)
    expected = model(ids).logits
    sparsify(model, CENTERED | {"threshold": 1e-30})
    randomise(model)
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    with dense(model):
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_centers_are_the_means_of_what_heads_give(family, make_model, tokens):
    model, ids = make_model(family), tokens(4, 9)
    outputs = []
    projections = {"gpt2": "c_proj"}.get(family, "o_proj")
    for name, module in model.named_modules():
        if name.endswith(f"attn.{projections}"):
            module.register_forward_pre_hook(lambda _, args: outputs.append(args[0]))
    model(ids[:2])
    model(ids[2:])
    layers = len(outputs) // 2
    sparsify(model, CENTERED)
    measure_centers(model, [batch_of(ids[:2]), batch_of(ids[2:])])
    for layer, gate in enumerate(gates_of(model)):
        every = torch.cat([outputs[layer], outputs[layers + layer]])  # (batch, time, heads x dim)
        heads = every.mean((0, 1)).view(gate.num_heads, -1)
        expected = heads.view(len(gate.center), -1, heads.shape[1]).mean(1)
        torch.testing.assert_close(gate.center, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_head_without_open_edges_gives_its_center(make_model, tokens):
    model, ids = sparsify(make_model("llama"), CENTERED), tokens(2, 9)
    randomise(model)
    for gate in gates_of(model):
        gate.set_cutoff(torch.full((gate.num_heads,), 50.0))
    given = []
    for module in attention_modules(model):
        module.o_proj.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    model(ids)
    for gate, output in zip(gates_of(model), given, strict=True):
        torch.testing.assert_close(output, gate.head_center(output.dtype).flatten().expand_as(output))


@pytest.mark.parametrize("training", [False, True])
def test_the_fast_operator_agrees_with_the_formula_written_out(training, make_model, tokens):
    """o = c + sum A p (v - c) for the reference and the blockwise operator, in float64, with all gradients."""
    ids, found = tokens(2, 9), []
    for backend in ("reference", "blockwise"):
        model = sparsify(make_model("llama").double(), CENTERED, backend=backend).train(training)
        torch.manual_seed(1)
        with torch.no_grad():
            randomise(model)
        for module in attention_modules(model):
            module.edge_seeds = torch.tensor([3, 4]) if training else None
        logits = model(ids).logits
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found.append(
            (logits, *torch.autograd.grad(logits.square().mean(), trained, materialize_grads=True, allow_unused=True))
        )
    for ours, formula in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, formula, rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_listed_edges_are_those_of_deviations(make_model, tokens):
    """Written out with the listed weights, the first layer's heads are what its output projection reads."""
    model, ids = sparsify(make_model("llama"), CENTERED), tokens(1, 9)
    randomise(model)
    module, gate = attention_modules(model)[0], gates_of(model)[0]
    read, values = [], []
    module.o_proj.register_forward_pre_hook(lambda _, args: read.append(args[0][0]))
    module.v_proj.register_forward_hook(lambda _, args, output: values.append(output[0]))
    indices, weights = open_edges(model, ids)[0]
    assert 0 < len(weights) < 4 * 45
    value = values[0].unflatten(-1, gate.center.shape).double() - gate.center.double()  # (key, kv head, dim)
    expected = gate.head_center(torch.float64).expand(9, -1, -1).clone()
    _, head, query, key = indices
    expected.index_put_((query, head), weights[:, None].double() * value[key, head // 2], accumulate=True)
    torch.testing.assert_close(read[0].double(), expected.flatten(1), rtol=1e-5, atol=1e-6)


def test_calibration_measures_them(make_model, tokens):
    model, batches = sparsify(make_model("llama"), CENTERED), [batch_of(tokens(4, 24))]
    reached = calibrate(model, batches, Calibration(edge_fraction=0.3))
    assert reached.edge_fraction < 0.6
    found = [gate.center.clone() for gate in gates_of(model)]
    assert all(center.abs().max() > 0 for center in found)
    with torch.no_grad():
        measure_centers(model.eval(), batches)
    for gate, center in zip(gates_of(model), found, strict=True):
        torch.testing.assert_close(gate.center, center)


@torch.no_grad()
def test_written_and_read(llama_folder, tmp_path):
    name, ids = str(llama_folder), torch.arange(9)[None]
    model = add_lora(sparsify(load_model(name), CENTERED, layers=lambda layer: layer == 1), LoraConfig(r=2))
    assert gates_of(model)[0].center is None, "a layer that stays dense has no center"
    gates_of(model)[1].center.normal_()
    measured = {"model": name, "tokens": 0, "seconds": 0.0}
    export_adapters(model, tmp_path / "adapters", measured=measured)
    export_sparse(model, tmp_path / "whole", measured=measured)
    expected = model.eval()(ids).logits
    for folder in ("adapters", "whole"):
        torch.testing.assert_close(load_sparse(tmp_path / folder)(ids).logits, expected, rtol=1e-4, atol=1e-4)
    plain = add_lora(sparsify(load_model(name), CENTERED | {"centered": False}), LoraConfig(r=2))
    with pytest.raises(ValueError, match="centered True, the config says False"):
        continue_from(tmp_path / "adapters", plain, name)


def test_precision_and_switches(make_model):
    gate = gates_of(sparsify(make_model("llama"), CENTERED))[0]
    gate.center.fill_(math.pi)
    assert torch.equal(gate.to(torch.bfloat16).center, torch.full((2, 8), math.pi)), "kept in float32"
    assert "centered" in repr(gate)
    with pytest.raises(ValueError, match=r"centered gate needs the heads' means: set start"):
        SparseAttentionModule("any", gate=CENTERED)


@pytest.mark.parametrize("block", [1 << 24, 300])
def test_dense_attention_by_blocks(block, monkeypatch):
    """Grouped heads, packed documents, and gradients, against torch's own."""
    monkeypatch.setattr("lit_sparse.attention.dense_attention._BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, heads, 11, 6, generator=generator, dtype=torch.float64) for heads in (4, 2, 2)]
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5], [*range(11)]])
    mask = EdgeMask.causal(11, 11).within_documents(positions)
    ours, theirs = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    found = dense_attention(*ours, mask, None, None)
    expected = torch.nn.functional.scaled_dot_product_attention(*theirs, mask.dense(), enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    direction = torch.randn(found.shape, generator=generator, dtype=found.dtype)
    gradients = torch.autograd.grad(found, ours, direction), torch.autograd.grad(expected, theirs, direction)
    for gradient, other in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-11)
