"""A sparse model in nnsight: what a trace reads, writes and differentiates is what plain PyTorch hooks do."""

import pytest
import torch

import lit_sparse
from lit_sparse import sparsify
from lit_sparse.attention import attention_modules, edge_counts
from tests.interop.packages import needed

nnsight = needed("nnsight")

PATHS = {"llama": "model.layers.{}.self_attn", "gpt2": "transformer.h.{}.attn"}
EXACT = {"rtol": 0, "atol": 0}


@pytest.fixture(params=PATHS)
def case(request, make_model, tokens):
    """A sparse model whose gates are called as modules, nnsight's view of it, a function from a layer to the paths of
    its attention, and two prompts."""
    model = sparsify(make_model(request.param), {"threshold": 0.2}, backend="reference")
    return model, nnsight.NNsight(model), PATHS[request.param].format, tokens(1, 9, seed=1), tokens(1, 9, seed=2)


@torch.no_grad()
def with_hooks(model, ids, hooks):
    """Logits, with forward hooks {path: hook}."""
    handles = [model.get_submodule(path).register_forward_hook(hook) for path, hook in hooks.items()]
    try:
        return model(ids).logits
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def test_attention_outputs_and_gates_are_saved(case):
    model, traced, path, ids, _ = case
    expected = {}
    logits = with_hooks(
        model,
        ids,
        {
            path(0): lambda module, inputs, output: expected.update(output=output[0], counts=output[1]),
            f"{path(1)}.edge_gate": lambda module, inputs, output: expected.update(gate_logits=output),
        },
    )
    with traced.trace(ids):
        output = traced.get(path(0)).output[0].save()
        counts = traced.get(path(0)).output[1].save()
        gate_logits = traced.get(f"{path(1)}.edge_gate").output.save()
        found = traced.output.logits.save()
    assert gate_logits.shape == (1, 4, 9, 9) and ((gate_logits > 0).any() and (gate_logits < 0).any())
    for ours, theirs in ((found, logits), (output, expected["output"]), (counts, expected["counts"])):
        torch.testing.assert_close(ours, theirs, **EXACT)
    torch.testing.assert_close(gate_logits, expected["gate_logits"], **EXACT)
    opened = edge_counts([counts]).opened[0]
    allowed = torch.ones(9, 9).tril().bool()
    first = lit_sparse.attention.reference_pattern(model, ids).is_open[0]
    assert torch.equal(opened, (first & allowed).sum((-2, -1)).float())


@torch.no_grad()
def test_attention_outputs_and_gates_are_patched(case):
    model, traced, path, clean, other = case
    plain = model(clean).logits
    # an attention output from another prompt
    with traced.trace(other):
        source = traced.get(path(0)).output[0].save()
    with traced.trace(clean):
        traced.get(path(0)).output[0][:, 3] = source[:, 3]
        patched = traced.output.logits.save()

    def patch(module, inputs, output):
        changed = output[0].clone()
        changed[:, 3] = source[:, 3]
        return changed, *output[1:]

    expected = with_hooks(model, clean, {path(0): patch})
    torch.testing.assert_close(patched, expected, **EXACT)
    assert not torch.allclose(patched, plain)
    # gates of the last layer, closed for the last query
    with traced.trace(clean):
        traced.get(f"{path(1)}.edge_gate").output[:, :, -1] = -1.0
        closed = traced.output.logits.save()

    def close(module, inputs, output):
        changed = output.clone()
        changed[:, :, -1] = -1.0
        return changed

    torch.testing.assert_close(closed, with_hooks(model, clean, {f"{path(1)}.edge_gate": close}), **EXACT)
    with lit_sparse.edit(model) as edit:
        edit.close(layer=1, query=8)
        torch.testing.assert_close(closed, model(clean).logits, rtol=1e-4, atol=1e-5)
        with traced.trace(clean):  # an edit holds inside a trace as well
            both = traced.output.logits.save()
    torch.testing.assert_close(both, closed, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(closed, plain)
    torch.testing.assert_close(model(clean).logits, plain, **EXACT)  # nothing stays


def test_gradients_of_attention_outputs(case):
    model, traced, path, ids, _ = case
    kept = []

    def keep(module, inputs, output):
        output.retain_grad()
        kept.append(output)

    handle = model.get_submodule(path(0)).register_forward_hook(
        lambda module, inputs, output: keep(module, inputs, output[0])
    )
    model(ids).logits[0, -1, 3].backward()
    handle.remove()
    with traced.trace(ids):
        output = traced.get(path(0)).output[0]
        logit = traced.output.logits[0, -1, 3]
        with logit.backward():
            gradient = output.grad.save()
    torch.testing.assert_close(gradient, kept[0].grad, rtol=1e-5, atol=1e-6)
    assert gradient.any()


@torch.no_grad()
def test_the_fused_operator_has_outputs_but_no_gates_to_patch(make_model, tokens):
    """The fast backends compute gates inside an operator: asking for them is an error, not something silent."""
    model = sparsify(make_model("llama"), {"threshold": 0.2})
    traced, ids = nnsight.NNsight(model), tokens(1, 9)
    with traced.trace(ids):
        output = traced.model.layers[0].self_attn.output[0].save()
        logits = traced.output.logits.save()
    torch.testing.assert_close(logits, model(ids).logits, **EXACT)
    assert output.shape == (1, 9, 32)
    with pytest.raises(Exception, match="edge_gate"), traced.trace(ids):
        traced.model.layers[0].self_attn.edge_gate.output.save()


@torch.no_grad()
def test_text_and_folders(llama_folder, character_tokenizer, tmp_path):
    model = sparsify(lit_sparse.models.base.load_model(str(llama_folder)), {"threshold": 0.15}, backend="reference")
    model.save_pretrained(tmp_path / "sparse")
    character_tokenizer.save_pretrained(tmp_path / "sparse")
    ids = character_tokenizer("the cat", return_tensors="pt").input_ids
    expected = model(ids).logits
    by_name = nnsight.TransformersModel(str(tmp_path / "sparse"), task="text-generation", dispatch=True)
    for traced in (nnsight.TransformersModel(model, tokenizer=character_tokenizer), by_name):
        with traced.trace("the cat"):
            logits = traced.output.logits.save()
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert len(attention_modules(by_name._module)) == 2
    # without dispatch=True nnsight would build the model from its configuration, which has no gates
    with pytest.raises(ValueError, match="not built from its configuration"):
        nnsight.TransformersModel(str(tmp_path / "sparse"), task="text-generation")
