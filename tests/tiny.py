"""What many tests begin with: a tiny llama, and a trainer that says and keeps nothing."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from lit_sparse import sparsify
from lit_sparse.models.base import load_model
from lit_sparse.models.sparse_folder import export_sparse

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""Options of a Trainer."""


def export_sparse_llama(folder: Path, base: Path, tokenizer: PreTrainedTokenizerBase, threshold: float) -> Path:
    """The base with gates that close what is below the threshold, as a sparse folder that names its base."""
    model = sparsify(load_model(str(base)), {"threshold": threshold})
    export_sparse(model, folder, measured={"model": str(base)}, tokenizer=tokenizer)
    return folder


def tiny_llama(**options: Any) -> LlamaForCausalLM:
    """2 layers, 4 heads on 2 key heads, width 32, random weights (seed 0); options are those of its config."""
    config = LlamaConfig(
        **{
            "vocab_size": 32,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        | options
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)
