"""Models with random weights and made-up text: what a training step costs does not depend on what was learnt."""

import json
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lit_sparse import SparseAttentionModule
from lit_sparse.attention import Contribution
from lit_sparse.models.adapters import LoraConfig
from lit_sparse.objective import KL, Lagrangian, LogEdgeFraction, NuPI
from lit_sparse.training.execution import Execution
from lit_sparse.training.schedule import WarmupDecay
from lit_sparse.training.start.calibration import Calibration

SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TINY = SMOLLM2 | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}


class RandomWeights(SparseAttentionModule):
    """The real module on a model that only has the shape of `model`.

    Args:
        dtype: of the weights; adapters and gates are float32 under mixed precision.
        device: to draw the weights on.
    """

    def __init__(self, model: str, dtype: torch.dtype, device: torch.device, **settings: Any):
        super().__init__(model, **settings)
        self.start = None  # a centered gate asks for one, but nothing is calibrated here
        self.weights_dtype, self.weights_device = dtype, device

    def build_base(self) -> PreTrainedModel:
        config = AutoConfig.from_pretrained(self.base_name)
        with self.weights_device:
            model: Any = AutoModelForCausalLM.from_config(config, dtype=self.weights_dtype)
        return model.eval()


def module_of(
    folder: Path, dtype: torch.dtype, device: torch.device, compiled: bool, recorded: bool, checkpointing: bool
) -> RandomWeights:
    """Set up as `configs/smollm2_gpu.yaml` is: adapters, centered contribution gates, KL. Few edges are open at a
    threshold of 3 %, as in a trained model."""
    return RandomWeights(
        str(folder),
        dtype,
        device,
        gate=Contribution(threshold=0.03, sharpness=6.0, sharpness_end=12.0, centered=True),
        objective=Lagrangian(
            KL(tolerance=0.1),
            LogEdgeFraction(weight=0.1),
            NuPI(initial=1.0, integral=0.04, proportional=2.0, smoothing=0.7),
        ),
        start=Calibration(kl=0.1),
        lora=LoraConfig(r=16, lora_alpha=16),
        optimizer=partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        scheduler=partial(WarmupDecay, total_steps=1000, warmup_steps=20),
        gate_lr=0.04,
        execution=Execution(activation_checkpointing=checkpointing, compile_layers=compiled, record_steps=recorded),
    )


def text(batch: int, length: int, vocabulary: int) -> Iterator[dict[str, Tensor]]:
    """Batches of random tokens without end, one document a sequence."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(4):
        tokens = torch.randint(vocabulary, (batch, length + 1), generator=generator)
        positions = torch.arange(length).expand(batch, length).contiguous()
        made = {
            "input_ids": tokens[:, :-1].contiguous(),
            "position_ids": positions,
            "labels": tokens[:, 1:].contiguous(),
        }
        pinned = torch.cuda.is_available()  # as the data modules' loaders do: a copy then waits for nothing
        batches.append({name: tensor.pin_memory() if pinned else tensor for name, tensor in made.items()})
    return cycle(batches)


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    """A model folder without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
