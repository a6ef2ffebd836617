"""What users of transformers do with a model, done with a sparse one: the same logits and open edges, or a reason."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, QuantizedCache, StaticCache, pipeline
from transformers.utils import is_hqq_available, is_optimum_quanto_available

from lit_sparse import attention_patterns, from_pretrained, sparsify
from lit_sparse.attention import dense, gates_of
from lit_sparse.models.adapters import LoraConfig, add_lora
from lit_sparse.models.base import load_model

CLOSING = {"family": "contribution", "threshold": 0.1}
GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
FAMILIES = ["llama", "mistral", "gemma2"]  # full attention, sliding windows of 3, one layer each
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def sparse_folder(llama_folder, character_tokenizer, tmp_path):
    model = sparsify(load_model(str(llama_folder)), CLOSING)
    gates_of(model)[1].set_cutoff(torch.tensor([-1.1, -2.2, -3.3, -1.7]))
    model.save_pretrained(tmp_path / "sparse")
    character_tokenizer.save_pretrained(tmp_path / "sparse")
    return tmp_path / "sparse"


@torch.no_grad()
def logits(model, ids):
    return model(ids, use_cache=False).logits


def open_edges(model, ids):
    return [weights != 0 for weights in attention_patterns(model, ids)]


def assert_same(found, expected, ids, **tolerance):
    torch.testing.assert_close(logits(found, ids), logits(expected, ids), **(tolerance or TOLERANCE))
    for one, other in zip(open_edges(found, ids), open_edges(expected, ids), strict=True):
        assert torch.equal(one, other) and 0.05 < one.float().mean() < 0.53, "some edges are closed, some open"


def generate(model, ids, **options):
    """Tokens, and per new token the logits and each layer's open edges of the last query."""
    out = model.generate(
        ids, **GREEDY, return_dict_in_generate=True, output_logits=True, output_attentions=True, **options
    )
    return out.sequences, torch.stack(out.logits, dim=1), [[layer[..., 1] for layer in step] for step in out.attentions]


def assert_generates_as_without_a_cache(model, ids, **options):
    sequences, found, counts = generate(model, ids, **options)
    assert torch.equal(sequences, model.generate(ids, use_cache=False, **GREEDY))
    start = ids.shape[1]
    torch.testing.assert_close(found, logits(model, sequences)[:, start - 1 : -1], **TOLERANCE)
    for layer, edges in enumerate(open_edges(model, sequences)):
        assert torch.equal(counts[0][layer], edges[:, :, :start].sum((-2, -1)).float())
        for step in range(1, 6):
            assert torch.equal(counts[step][layer], edges[:, :, start + step - 1].sum(-1).float())


# generate with every cache


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_caches_by_name(family, cache, make_model, tokens):
    """Both follow the layers: what keeps a window of keys is a sliding cache, both kinds together a hybrid one."""
    model = sparsify(make_model(family), CLOSING)
    assert_generates_as_without_a_cache(model, tokens(2, 9), cache_implementation=cache, disable_compile=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("make", [DynamicCache, lambda config: StaticCache(config, max_cache_len=20)])
def test_caches_that_are_given(family, make, make_model, tokens):
    model = sparsify(make_model(family), CLOSING)
    cache = make(config=model.config)
    assert_generates_as_without_a_cache(model, tokens(2, 9), past_key_values=cache, disable_compile=True)
    kinds = {type(layer).__name__ for layer in cache.layers}
    assert any("Sliding" in kind for kind in kinds) == (family != "llama")


@pytest.mark.parametrize("cache", ["offloaded", "offloaded_static"])
def test_offloaded_caches(cache, make_model, tokens):
    """These move keys between a GPU and main memory. Without a GPU transformers refuses, for a dense model too."""
    base, ids = make_model("llama"), tokens(2, 9)
    options = {"cache_implementation": cache, "disable_compile": True}
    if torch.cuda.is_available():
        assert_generates_as_without_a_cache(sparsify(base, CLOSING).cuda(), ids.cuda(), **options)
        return
    with pytest.raises(AssertionError, match="CUDA"):
        base.generate(ids, **options)
    with pytest.raises(AssertionError, match="CUDA"):
        sparsify(base, CLOSING).generate(ids, **options)


@pytest.mark.parametrize("backend", ["fp8", "quanto", "hqq"])
def test_quantized_caches(backend, make_model, tokens):
    """Gates read the keys and values of the cache, rounded: the operator agrees with the formula on these."""
    if backend != "fp8" and not {"quanto": is_optimum_quanto_available, "hqq": is_hqq_available}[backend]():
        pytest.skip(f"{backend} is not installed")
    ids = tokens(2, 9)
    found, expected = (
        generate(
            sparsify(make_model("llama"), CLOSING, backend=operator),
            ids,
            cache_implementation="quantized",
            cache_config={"backend": backend},
        )
        for operator in ("auto", "reference")
    )
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], **TOLERANCE)
    torch.testing.assert_close(found[2], expected[2])
    rounded = found[1] - logits(sparsify(make_model("llama"), CLOSING), found[0])[:, 8:-1]
    assert rounded.abs().max() > 1e-3, "the cache must be a rounded one"
    windows = make_model("gemma2")
    with pytest.raises(ValueError, match="only full attention"):
        QuantizedCache(backend=backend, config=windows.config)


def test_beams_and_samples(make_model, tokens):
    """A cache that is reordered."""
    model, ids = sparsify(make_model("llama"), CLOSING), tokens(2, 9)
    for options in ({"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        cached, uncached = (model.generate(ids, use_cache=use, **GREEDY, **options) for use in (True, False))
        assert torch.equal(cached, uncached)
    sampling = {"max_new_tokens": 6, "do_sample": True}
    torch.manual_seed(1)
    first = model.generate(ids, **sampling)
    torch.manual_seed(1)
    assert torch.equal(model.generate(ids, use_cache=False, **sampling), first)


# pipeline, save_pretrained, devices


def test_a_pipeline(sparse_folder, character_tokenizer):
    model = from_pretrained(sparse_folder)
    prompts = ["12+34=", "the cat"]
    made = pipeline("text-generation", model=model, tokenizer=character_tokenizer)
    loaded = pipeline("text-generation", model=str(sparse_folder))
    for pipe in (made, loaded):
        for prompt, (out,) in zip(prompts, pipe(prompts, **GREEDY), strict=True):
            ids = torch.tensor([character_tokenizer(prompt).input_ids])
            text = character_tokenizer.decode(
                model.generate(ids, **GREEDY)[0, ids.shape[1] :], skip_special_tokens=True
            )
            assert out["generated_text"] == prompt + text
    assert len(gates_of(loaded.model)) == 2


def test_save_pretrained_and_from_pretrained(sparse_folder, tokens, tmp_path):
    model, ids = from_pretrained(sparse_folder), tokens(2, 9) % 40
    model.save_pretrained(tmp_path / "again", max_shard_size="10KB")
    again = from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again, ids), logits(model, ids))
    assert_same(again, model, ids)
    with dense(again):
        assert (logits(again, ids) - logits(model, ids)).abs().max() > 0.01, "the gates must matter here"


def test_device_map_auto(sparse_folder, llama_folder, tokens):
    ids = tokens(2, 9) % 40
    expected = from_pretrained(sparse_folder)
    assert_same(AutoModelForCausalLM.from_pretrained(sparse_folder, device_map="auto").cpu(), expected, ids)
    base = AutoModelForCausalLM.from_pretrained(llama_folder, device_map="auto").cpu()
    assert_same(sparsify(base, CLOSING), sparsify(load_model(str(llama_folder)), CLOSING), ids)


def test_a_device_map_that_keeps_layers_on_disk(sparse_folder, llama_folder, tokens, tmp_path):
    """A dense model of which accelerate keeps a part on disk can be sparsified; a sparse one is loaded whole."""
    names = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head"]
    ids = tokens(2, 9) % 40
    for on_disk in (["model.layers.1"], names[:4]):
        placed = {name: "disk" if name in on_disk else "cpu" for name in names}
        base = AutoModelForCausalLM.from_pretrained(llama_folder, device_map=placed, offload_folder=tmp_path / "disk")
        assert_same(sparsify(base, CLOSING), sparsify(load_model(str(llama_folder)), CLOSING), ids)
    with pytest.raises(ValueError, match="a sparse model is loaded onto one device"):
        AutoModelForCausalLM.from_pretrained(sparse_folder, device_map=placed)


def test_quantized_weights_are_refused(sparse_folder):
    with pytest.raises(ValueError, match="cannot be loaded with quantization_config"):
        AutoModelForCausalLM.from_pretrained(sparse_folder, quantization_config={"load_in_8bit": True})


# peft


def test_merge_and_unmerge(make_model, tokens):
    model, ids = sparsify(make_model("llama"), CLOSING), tokens(2, 9)
    base = copy.deepcopy(model)
    wrapped = add_lora(model, LoraConfig(r=2)).eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    apart = copy.deepcopy(wrapped)
    assert (logits(apart, ids) - logits(base, ids)).abs().max() > 0.01, "the adapters must matter here"
    close = {"rtol": 1e-3, "atol": 1e-4}  # W + BA x against W x + B A x
    wrapped.merge_adapter()
    assert_same(wrapped, apart, ids, **close)
    wrapped.unmerge_adapter()
    assert_same(wrapped, apart, ids, **close)
    with wrapped.disable_adapter():
        assert_same(wrapped, base, ids, **close)
    merged = wrapped.merge_and_unload()
    assert_same(merged, apart, ids, **close)
    assert not hasattr(merged, "peft_config") and len(gates_of(merged)) == 2
    unloaded = copy.deepcopy(apart).unload()
    assert_same(unloaded, base, ids, **close)


# bfloat16, torch.compile


def test_bfloat16(sparse_folder, tokens):
    """The gates stay float32; what is open differs from float32 only where rounding decides."""
    model, half = from_pretrained(sparse_folder), from_pretrained(sparse_folder, dtype=torch.bfloat16)
    ids = tokens(2, 9) % 40
    moved = from_pretrained(sparse_folder).to(torch.bfloat16)
    reference = from_pretrained(sparse_folder, dtype=torch.bfloat16, backend="reference")
    assert half.dtype is torch.bfloat16 and torch.equal(logits(half, ids), logits(moved, ids))
    assert all(parameter.dtype is torch.float32 for gate in gates_of(moved) for parameter in gate.parameters())
    for other in (reference, model):
        difference = logits(half, ids).float() - logits(other, ids).float()
        assert difference.norm() < 0.03 * logits(model, ids).norm()  # bfloat16 keeps 8 bits
        for one, expected in zip(open_edges(half, ids), open_edges(other, ids), strict=True):
            assert (one == expected).float().mean() > 0.98
    auto = AutoModelForCausalLM.from_pretrained(sparse_folder, dtype="bfloat16", device_map="auto").cpu()
    assert torch.equal(logits(auto, ids), logits(half, ids))
    assert half.generate(ids, **GREEDY).shape == (2, 15)


@pytest.mark.parametrize("family", FAMILIES)
def test_torch_compile_at_evaluation(family, make_model, tokens):
    model, ids = sparsify(make_model(family), CLOSING), tokens(2, 9)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        found, expected = (run(ids, use_cache=False, output_attentions=True) for run in (compiled, model))
    torch.testing.assert_close(found.logits, expected.logits, **TOLERANCE)
    for one, other in zip(found.attentions, expected.attentions, strict=True):
        assert torch.equal(one[..., 1:], other[..., 1:]), "the same edges are open"
    model.forward = torch.compile(model.forward, backend="aot_eager")  # as generate compiles it
    sequences = model.generate(ids, cache_implementation="static", disable_compile=True, **GREEDY)
    del model.forward
    assert torch.equal(sequences, model.generate(ids, **GREEDY))
