"""Tokens per second and model-FLOP utilisation; operations per token against PyTorch's own count."""

import csv

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig

from lit_sparse.adapters import LoraConfig, add_lora
from lit_sparse.attention import sparsify
from lit_sparse.callbacks import Throughput
from lit_sparse.callbacks.throughput import _known_peak
from lit_sparse.cli import main
from lit_sparse.costs import flops_of_model, flops_per_token, matmul_weights

LENGTH = 16
SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}


@pytest.fixture
def model():
    return LlamaForCausalLM(LlamaConfig(**SIZES, attn_implementation="eager"))


def test_operations_are_those_that_pytorch_counts(model):
    """Eager attention multiplies whole T x T matrices, as PaLM's formula counts them."""
    ids = torch.randint(48, (3, LENGTH))
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=ids, use_cache=False).logits
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        logits.sum().backward()
    found = flops_of_model(model, LENGTH, teacher=True)
    # torch also counts the rotary angles' outer products, a few hundred operations
    assert found.forward * ids.numel() == pytest.approx(forward, rel=1e-2)
    assert found.backward * ids.numel() == pytest.approx(counter.get_total_flops(), rel=1e-2)
    assert found.teacher == found.forward
    assert flops_of_model(model, LENGTH, teacher=False).teacher == 0


def test_palms_formula_is_the_case_of_full_training():
    found = flops_per_token(1e9, 1e9, attention_width=5e4, length=2048)
    assert found.model == 6 * 1e9 + 12 * 5e4 * 2048
    checkpointed = flops_per_token(1e9, 1e9, attention_width=5e4, length=2048, checkpointing=True)
    assert checkpointed.model == found.model
    assert checkpointed.hardware - found.hardware == found.forward


def test_frozen_weights_take_no_weight_gradients(model):
    full = flops_of_model(model, LENGTH, teacher=True)
    adapted = add_lora(sparsify(model, {}), LoraConfig(r=2))
    weights, trained = matmul_weights(adapted)
    assert 0 < trained < 0.2 * weights
    found = flops_of_model(adapted, LENGTH, teacher=True)
    assert found.teacher == full.teacher  # the base model has no adapters
    assert found.backward == pytest.approx(full.backward - 2 * (weights - trained) + 4 * trained)


def test_tied_embeddings_count_once_and_experts_as_routed():
    tied = LlamaForCausalLM(LlamaConfig(**{**SIZES, "tie_word_embeddings": True}))
    untied = LlamaForCausalLM(LlamaConfig(**SIZES))
    assert matmul_weights(tied) == matmul_weights(untied)
    sizes = {**SIZES, "num_local_experts": 8, "num_experts_per_tok": 2}
    with torch.device("meta"):
        mixture = AutoModelForCausalLM.from_config(MixtralConfig(**sizes))
    attention = 2 * (2 * 32 * 32 + 2 * 32 * 16)
    assert matmul_weights(mixture)[0] == attention + 2 * (2 * 3 * 32 * 64 + 8 * 32) + 48 * 32


def _logged(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_utilisation_is_logged_where_the_peak_is_known(make_config, tmp_path):
    callback = {"class_path": "lit_sparse.callbacks.Throughput", "init_args": {"peak_flops": 1e12}}
    main(["fit", "--config", str(make_config("run", {"trainer.callbacks": [callback]}))])
    rows = [row for row in _logged(tmp_path / "run" / "metrics.csv") if row["train/mfu"]]
    assert len(rows) == 6
    assert all(0 < float(row["train/mfu"]) < 1 for row in rows)


def test_utilisation_is_absent_where_nobody_knows_the_peak(make_config, tmp_path):
    main(["fit", "--config", str(make_config())])
    row = _logged(tmp_path / "run" / "metrics.csv")[0]
    assert "train/tokens_per_second" in row and "train/mfu" not in row


def test_known_devices(monkeypatch):
    assert _known_peak(torch.device("cpu"), "bf16-mixed") is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    assert _known_peak(torch.device("cuda:0"), "bf16-mixed") == 312e12
    with pytest.raises(ValueError, match="positive"):
        Throughput(peak_flops=-1.0)
