"""`python main.py info --config …`: what a config would train, and what memory it takes, without loading weights."""

from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from lit_sparse.attention import GateConfig, gates_of, sparsify
from lit_sparse.models import load_config
from lit_sparse.module import SparseAttentionModule

_ADAM_BYTES = 8  # two float32 moments a trained parameter


def print_info(cli: Any) -> None:
    """Prints the resolved model, parameter counts and a memory estimate. Uses the meta device: seconds at any size.

    Raises:
        ValueError: the model's configuration cannot be read, or its family is not supported.
    """
    module, data = cli.model, cli.datamodule
    if not isinstance(module, SparseAttentionModule):
        raise ValueError("info describes sparse runs; this config trains another module")
    config = load_config(module.base_name, trust_remote_code=module.trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=module.trust_remote_code)
    weights = sum(parameter.numel() for parameter in model.parameters())
    sparsify(model, GateConfig.of(module.gate_config), layers=module.is_gated)
    gates = sum(parameter.numel() for gate in gates_of(model) for parameter in gate.parameters())
    table = Table(title=f"{module.base_name}", show_header=False)
    text = config.get_text_config()
    heads = gates_of(model)[0].num_heads
    rows = {
        "family": f"{config.model_type}, {len(gates_of(model))} layers x {heads} heads, width {text.hidden_size}",
        "weights": f"{weights:,}",
        "gates": f"{gates:,} ({module.gate_config.family}, normalised over {module.gate_config.normalisation} keys)",
        "trained": "adapters (LoRA)" if module.lora else f"{module.train_weights} weights and gates",
        "constraint": f"{module.constraint.name} <= {module.constraint.tolerance:g} nats per token",
        "multiplier": type(module.multiplier).__name__,
        "batch": f"{data.batch_size} x {data.sequence_length} tokens",
    }
    rows |= memory_rows(module, weights, len(gates_of(model)), heads, text, data)
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)


def memory_rows(
    module: SparseAttentionModule, weights: int, layers: int, heads: int, text: Any, data: Any
) -> dict[str, str]:
    """An estimate of one device's memory, by part, without sharding: float32 weights, Adam, bfloat16 activations.

    Activations count what backward passes keep: 34 bytes per token and unit of width for a layer's linear parts
    (Korthikanti et al., arXiv 2205.05198, equation 1 without its attention term), and for gated attention one float32
    number per query and head: it recomputes what is of the size T x T. Of checkpointed layers only one is held at a
    time.
    """
    tokens = data.batch_size * data.sequence_length
    trained = weights if module.train_weights == "all" and module.lora is None else weights // 10
    linear = 34 * tokens * text.hidden_size
    attention = 4 * tokens * heads
    kept = 1 if module.activation_checkpointing else layers
    parts = {
        "weights, float32": 4 * weights,
        "gradients": 4 * trained,
        "optimizer": _ADAM_BYTES * trained,
        "base model, bfloat16": 2 * weights,
        "activations": kept * (linear + attention) + layers * 2 * tokens * text.hidden_size,
        "output logits": 3 * 4 * tokens * text.vocab_size,
    }
    rows = {f"memory: {name}": f"{size / 1e9:.2f} GB" for name, size in parts.items()}
    rows["memory: estimate in all"] = f"{sum(parts.values()) / 1e9:.2f} GB"
    return rows
