"""The base's attention by the gated operator with every gate open."""

import torch
from transformers import AttentionInterface

from lit_sparse.attention import sparsify
from lit_sparse.attention.fused_dense import FUSED_DENSE, fused_dense_attention
from lit_sparse.attention.masks import packed_causal_mask
from lit_sparse.models.adapters import BaseSwitch, LoraConfig, add_lora
from tests.tiny import tiny_llama


def test_the_base_of_packed_documents_is_that_of_transformers_own_attention(monkeypatch):
    base = tiny_llama(vocab_size=64, num_hidden_layers=3).double().eval()
    positions = torch.cat([torch.arange(9), torch.arange(14)]).repeat(2, 1)
    inputs = {"input_ids": torch.randint(64, (2, 23)), "position_ids": positions, "use_cache": False}
    expected = base(**inputs).logits

    def on_a_cpu(*args, **kwargs):
        return fused_dense_attention(*args, **kwargs, backend="blockwise")

    monkeypatch.setitem(AttentionInterface._global_mapping, FUSED_DENSE, on_a_cpu)
    model = add_lora(sparsify(base, {"family": "contribution"}), LoraConfig(r=2)).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    with torch.no_grad(), BaseSwitch(model).as_base(FUSED_DENSE):
        fused = model(**inputs, attention_mask=packed_causal_mask(positions)).logits
    torch.testing.assert_close(fused, expected)
    assert all(module.training for module in model.modules())
