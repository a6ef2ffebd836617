"""Model families end to end: the sparse model is the base model where it should be, whatever the family's positions,
windows, caches and padding."""

import copy

import pytest
import torch
from transformers import PreTrainedModel

from lit_sparse import desparsify, sparsify
from lit_sparse.attention import attention_modules, dense, edge_counts, gates_of, reference_pattern
from lit_sparse.models.adapters import LoraConfig, add_lora
from lit_sparse.models.sparse_folder import export_sparse, load_sparse

FAMILIES = [
    "gpt2", "llama", "olmo", "olmo2", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt_neox", "opt", "phi",
    "phi3", "mixtral", "deepseek_v3",
]  # fmt: skip
CLOSING = {"threshold": 0.15}  # about half of the edges of the short sequences here
WINDOWED = ["qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "mixtral"]  # windows of 3 (conftest)
# float32: kernels sum in another order. Logits here are of order 1 to 10.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

every_family = pytest.mark.parametrize("family", FAMILIES)


@torch.no_grad()
def logits(model: PreTrainedModel, ids, **keys):
    return model(input_ids=ids, **{"use_cache": False} | keys).logits


@torch.no_grad()
def open_fraction(model: PreTrainedModel, ids) -> float:
    counts = edge_counts(model(input_ids=ids, use_cache=False, output_attentions=True).attentions)
    return float(counts.opened.detach().sum() / counts.allowed.sum())


@every_family
def test_all_gates_open_is_the_base_model(family, make_model, tokens):
    model, ids = make_model(family), tokens(2, 11)
    native = logits(model, ids)
    with_eager = copy.deepcopy(model)
    with_eager.set_attn_implementation("eager")
    eager = logits(with_eager, ids)
    assert eager.std() > 0.3, "logits too small for the tolerance to tell anything"
    sparsify(model, layers=lambda index: False)
    torch.testing.assert_close(logits(model, ids), eager, **TOLERANCE)
    torch.testing.assert_close(logits(model, ids), native, **TOLERANCE)
    assert open_fraction(model, ids) == 1.0
    desparsify(model)
    sparsify(model, CLOSING)
    assert 0.1 < open_fraction(model, ids) < 0.9
    assert (logits(model, ids) - eager).abs().max() > 0.01, "closed edges must matter"
    with dense(model):
        torch.testing.assert_close(logits(model, ids), native, rtol=0, atol=0)


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_leak(family, side, make_model, tokens):
    model = sparsify(make_model(family), CLOSING)
    ids, lengths = tokens(3, 9, seed=1), [9, 6, 2]
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, 9 - length :] = 1
    if side == "right":
        mask = mask.flip(1)
    real = mask.bool()
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    padded = logits(model, ids.masked_fill(~real, 0), attention_mask=mask, position_ids=positions)
    other = logits(model, ids.masked_fill(~real, 5), attention_mask=mask, position_ids=positions)
    counts = model(ids, attention_mask=mask, position_ids=positions, output_attentions=True, use_cache=False)
    for row in range(3):
        alone = ids[row : row + 1][real[row : row + 1]][None]
        torch.testing.assert_close(padded[row][real[row]], logits(model, alone)[0], **TOLERANCE)
        torch.testing.assert_close(padded[row][real[row]], other[row][real[row]], **TOLERANCE)
        if side == "left":  # padded queries see nothing, so the counts are the short sequence's
            single = model(alone, output_attentions=True, use_cache=False)
            for layer, expected in zip(counts.attentions, single.attentions, strict=True):
                torch.testing.assert_close(layer[row], expected[0], rtol=1e-4, atol=1e-4)  # sums of up to 45 edges
    assert torch.isfinite(padded).all()


@every_family
def test_packed_documents_do_not_see_each_other(family, make_model, tokens):
    model, ids, lengths = sparsify(make_model(family), CLOSING), tokens(1, 14, seed=2), [5, 1, 8]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = model(ids, position_ids=positions, use_cache=False, output_attentions=True)
    separate = [model(part, use_cache=False, output_attentions=True) for part in ids.split(lengths, dim=1)]
    torch.testing.assert_close(packed.logits, torch.cat([part.logits for part in separate], dim=1), **TOLERANCE)
    expected = sum(torch.stack(part.attentions) for part in separate)
    torch.testing.assert_close(torch.stack(packed.attentions), expected, rtol=1e-4, atol=1e-4)


def test_a_batch_of_differently_packed_rows(make_model, tokens):
    for family in ("opt", "llama"):
        model, ids = sparsify(make_model(family), CLOSING), tokens(2, 8, seed=3)
        positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 0, 1]])
        packed = logits(model, ids, position_ids=positions)
        for row, split in enumerate((3, 6)):
            parts = [logits(model, ids[row : row + 1, part]) for part in (slice(split), slice(split, 8))]
            torch.testing.assert_close(packed[row : row + 1], torch.cat(parts, dim=1), **TOLERANCE)


@pytest.mark.parametrize("family", WINDOWED)
def test_windows_bound_the_edges(family, make_model, tokens):
    model, length = make_model(family), 12
    kinds = getattr(model.config, "layer_types", None) or ["sliding_attention"] * 2
    sparsify(model, layers=lambda index: False)
    counts = edge_counts(model(tokens(1, length), output_attentions=True).attentions)
    for layer, kind in enumerate(kinds):
        expected = length * 3 - 3 if kind == "sliding_attention" else length * (length + 1) // 2  # rows 0, 1 see less
        assert counts.allowed[layer].tolist() == [expected] * 4
    pattern = reference_pattern(model, tokens(1, length))
    for layer, kind in enumerate(kinds):
        far = torch.ones(length, length, dtype=torch.bool).tril(-3)
        assert pattern.is_open[layer][:, far].any() == (kind != "sliding_attention")
    torch.testing.assert_close(pattern.weights.sum(-1), torch.ones(2, 4, length))


@every_family
def test_cached_decoding_is_uncached(family, make_model, tokens):
    model, ids = sparsify(make_model(family), CLOSING), tokens(2, 12, seed=4)
    assert 0.1 < open_fraction(model, ids) < 0.9
    whole = logits(model, ids)
    cache, steps = None, []
    for part in ids.split([5, 1, 1, 1, 3, 1], dim=1):
        with torch.no_grad():
            out = model(part, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, **TOLERANCE)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    cached, uncached = (model.generate(ids, use_cache=use, **options) for use in (True, False))
    assert cached.shape == (2, 20) and torch.equal(cached, uncached)


@every_family
def test_generation_from_a_padded_batch(family, make_model, tokens):
    model, ids = sparsify(make_model(family), CLOSING), tokens(2, 9, seed=6)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    together = model.generate(ids.masked_fill(mask == 0, 0), attention_mask=mask, **options)
    for row, prompt in enumerate((ids[:1], ids[1:, 4:])):
        alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        assert torch.equal(together[row, 9:], alone[0, prompt.shape[1] :])


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma2"])
def test_a_static_cache_changes_nothing(family, make_model, tokens):
    model, ids = sparsify(make_model(family), CLOSING), tokens(2, 9, seed=7)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "disable_compile": True}
    static = model.generate(ids, cache_implementation="static", **options)
    assert torch.equal(static, model.generate(ids, **options))


@every_family
def test_checkpointing_recomputes_the_same_gates(family, make_model, tokens):
    ids = tokens(2, 9, seed=5)

    def step(checkpointing: bool):
        model = sparsify(make_model(family), CLOSING)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        torch.manual_seed(1)
        out = model(ids, labels=ids, use_cache=False, output_attentions=True)
        counts = edge_counts(out.attentions)
        (out.loss + 0.1 * counts.expected.sum()).backward()
        gradients = [gate.log_threshold.grad for gate in gates_of(model)]
        return out.loss.detach(), counts, gradients, model.get_input_embeddings().weight.grad

    plain, again = step(False), step(True)
    # Recomputation runs the same kernels on the same draws.
    torch.testing.assert_close(again, plain, rtol=1e-6, atol=1e-7)
    assert all(gradient.abs().min() > 0 for gradient in plain[2])


@every_family
def test_desparsify_restores_the_model(family, make_model, tokens):
    model, ids = make_model(family), tokens(2, 11)
    before, names, implementation = logits(model, ids), list(model.state_dict()), model.config._attn_implementation
    attributes = [set(vars(module)) for module in model.modules()]
    sparsify(model, CLOSING)
    logits(model, ids)
    assert desparsify(model) is model
    assert torch.equal(logits(model, ids), before)
    assert list(model.state_dict()) == names and model.config._attn_implementation == implementation
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert not attention_modules(model)


def test_gates_are_drawn_in_training_only(make_model, tokens):
    model, ids = sparsify(make_model("llama"), CLOSING), tokens(2, 9)

    def opened(seed: int):
        torch.manual_seed(seed)
        return edge_counts(model(ids, output_attentions=True).attentions).opened

    assert torch.equal(opened(1), opened(2))
    model.train()
    assert torch.equal(opened(1), opened(1)) and not torch.equal(opened(1), opened(2))


def test_training_flags_and_trainability_are_kept(make_model, tokens):
    model = make_model("gpt2").train()
    frozen = model.transformer.h[0].eval()
    model.transformer.wte.requires_grad_(False)
    flags = {name: module.training for name, module in model.named_modules()}
    sparsify(model, CLOSING)
    assert {name: module.training for name, module in model.named_modules() if "edge_gate" not in name} == flags
    assert [gate.training for gate in gates_of(model)] == [False, True]
    assert not frozen.training and not model.transformer.wte.weight.requires_grad
    reference_pattern(model, tokens(1, 5))
    assert [gate.training for gate in gates_of(model)] == [False, True]


def test_adapters_leave_gates_trainable_and_merge_into_the_export(make_model, tokens, tmp_path):
    model, ids = sparsify(make_model("llama"), CLOSING, layers=lambda index: index == 1), tokens(2, 9)
    wrapped = add_lora(model, LoraConfig(r=2))
    trainable = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert sum("edge_gate" in name for name in trainable) == 1, "the closable layer's gate only"
    assert all("edge_gate" in name or "lora_" in name for name in trainable)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
        gates_of(wrapped)[1].log_threshold.add_(torch.tensor([0.0, 0.3, -0.3, 0.1]))
    wrapped.eval()
    expected = logits(wrapped, ids)
    export_sparse(wrapped, tmp_path / "sparse", measured={})
    loaded = load_sparse(tmp_path / "sparse")
    torch.testing.assert_close(logits(loaded, ids), expected, rtol=1e-4, atol=1e-4)  # W + BA x against W x + B A x
    assert torch.equal(gates_of(loaded)[1].log_threshold, gates_of(wrapped)[1].log_threshold)
    torch.testing.assert_close(logits(wrapped, ids), expected, rtol=0, atol=0)
    with dense(wrapped):
        assert (logits(wrapped, ids) - expected).abs().max() > 0.01


def test_torch_compile_changes_nothing(make_model, tokens):
    """Forward and gradients of a whole model; the backend that needs no compiler."""
    model, ids = sparsify(make_model("llama"), CLOSING).train(), tokens(2, 11)

    def step(run):
        torch.manual_seed(3)
        out = run(ids, labels=ids, use_cache=False, output_attentions=True)
        counts = edge_counts(out.attentions)
        gradients = torch.autograd.grad(out.loss + counts.expected.sum() / 100, model.get_input_embeddings().weight)
        return out.loss.detach(), counts.opened, *gradients

    eager, compiled = step(model), step(torch.compile(model, backend="aot_eager"))
    assert torch.equal(eager[1], compiled[1]), "the same gates are drawn"
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)  # float32, other kernels
