"""A tiny model that has learned something, so that there is a circuit to find."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LETTERS = "abcdefghijklmnop"


@pytest.fixture(scope="session")
def copier() -> LlamaForCausalLM:
    """Says the second of eight letters after the last one."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        ids = torch.randint(0, 16, (64, 8))
        loss = torch.nn.functional.cross_entropy(model(ids).logits[:, -1], ids[:, 1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    return model.eval()


@pytest.fixture(scope="session")
def letters() -> PreTrainedTokenizerFast:
    """One token a letter."""
    backend = Tokenizer(models.WordLevel({letter: index for index, letter in enumerate(LETTERS)}))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend)
