"""Layers run through torch.compile: the same numbers, few graphs, and nothing left behind."""

import torch
import torch._dynamo.utils as dynamo

from lit_sparse.attention import attention_modules, edge_counts, sparsify
from lit_sparse.attention.compiled import CompiledLayers
from lit_sparse.attention.masks import packed_causal_mask
from lit_sparse.models.adapters import BaseSwitch, LoraConfig, add_lora
from tests.tiny import tiny_llama

LENGTH = 24


def model_with_adapters() -> torch.nn.Module:
    model = sparsify(tiny_llama(vocab_size=64, num_hidden_layers=4), {"family": "contribution", "centered": True})
    return add_lora(model, LoraConfig(r=2)).train()


def step(model: torch.nn.Module, switch: BaseSwitch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    positions = torch.cat([torch.arange(10), torch.arange(LENGTH - 10)]).repeat(2, 1)
    inputs = {
        "input_ids": torch.randint(64, (2, LENGTH), generator=generator),
        "position_ids": positions,
        "attention_mask": packed_causal_mask(positions),
        "use_cache": False,
    }
    for module in attention_modules(model):
        module.edge_seeds = torch.randint(2**62, (2,), generator=generator)
    with torch.no_grad(), switch.as_base():
        base = model(**{**inputs, "attention_mask": None}).logits
    outputs = model(**inputs, output_attentions=True)
    loss = (outputs.logits - base).square().mean() + 1e-3 * edge_counts(outputs.attentions).expected.sum()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.detach(), gradients


def test_compiled_layers_compute_the_same_step_in_one_graph_for_each_kind_of_part():
    model = model_with_adapters()
    switch = BaseSwitch(model)
    loss, gradients = step(model, switch)
    torch._dynamo.reset()
    dynamo.counters.clear()
    compiled = CompiledLayers(model, backend="aot_eager")
    compiled.attach()
    compiled_loss, compiled_gradients = step(model, switch)
    compiled.detach()
    torch.testing.assert_close(compiled_loss, loss)
    torch.testing.assert_close(compiled_gradients, gradients, rtol=1e-4, atol=1e-6)
    assert not dynamo.counters["graph_break"]
    # Norm, attention and MLP, each for the base and for the sparse model.
    assert dynamo.counters["stats"]["unique_graphs"] == 6
    assert not any("forward" in vars(module) for module in model.modules())
    assert not model.get_input_embeddings()._forward_hooks
