"""Tiny random models with random transcoders that write as much as the MLPs do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from lit_sparse import sparsify
from lit_sparse.attention import gates_of
from lit_sparse.transcoders import Transcoder, TranscoderConfig


@pytest.fixture
def make_transcoder() -> Callable[..., Transcoder]:
    """make_transcoder(layers=2, seed=0, **config keys) -> 24 features a layer, 6 of them active, biases everywhere."""

    def make(layers: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32, **keys: Any) -> Transcoder:
        transcoder = Transcoder(TranscoderConfig(**{"features": 24, "k": 6} | keys), layers, 32).to(dtype)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in transcoder.parameters():
                drawn = torch.empty(parameter.shape).normal_(0, 0.3, generator=generator)
                parameter.copy_(drawn)
        return transcoder.eval()

    return make


@pytest.fixture
def make_problem(
    make_model, make_transcoder, tokens
) -> Callable[..., tuple[PreTrainedModel, Transcoder, torch.Tensor]]:
    """make_problem(family, gate=None, layers=2, length=9, ..., **transcoder keys) -> model, transcoder, ids."""

    def make(family, gate=None, *, layers=2, length=9, dtype=torch.float32, seed=0, **keys):
        sizes: dict[str, object] = {"num_hidden_layers": layers, "n_layer": layers}
        if family in ("gemma2", "qwen3"):
            sizes["layer_types"] = (["sliding_attention", "full_attention"] * layers)[:layers]
        model = make_model(family, seed, **sizes).to(dtype)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # fresh norms and biases are ones and zeros, which hides mistakes
                    parameter.add_(torch.empty(parameter.shape).normal_(0, 0.2, generator=generator))
        if gate is not None:
            sparsify(model, gate)
            for one in gates_of(model):
                if one.center is not None:
                    one.center.normal_(0, 0.3, generator=generator)
        return model, make_transcoder(layers, seed, dtype, **keys), tokens(1, length, seed)

    return make
