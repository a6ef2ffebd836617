"""Tokens per second and model-FLOP utilisation; operations per token against PyTorch's own count."""

import csv
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig

from lit_sparse.attention import sparsify
from lit_sparse.commands.main import main
from lit_sparse.costs import flops_of_model, flops_per_token, matmul_weights
from lit_sparse.models.adapters import LoraConfig, add_lora
from lit_sparse.training.callbacks import Throughput, throughput
from lit_sparse.training.callbacks.throughput import _known_peak

pytestmark = pytest.mark.usefixtures("unpainted")

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
    callback = {"class_path": "lit_sparse.training.callbacks.Throughput", "init_args": {"peak_flops": 1e12}}
    main(["fit", "--config", str(make_config("run", {"trainer.callbacks": [callback]}))])
    rows = [row for row in _logged(tmp_path / "run" / "metrics.csv") if row["train/mfu"]]
    assert len(rows) == 6
    assert all(0 < float(row["train/mfu"]) < 1 for row in rows)


def test_utilisation_is_absent_where_nobody_knows_the_peak(make_config, tmp_path):
    main(["fit", "--config", str(make_config())])
    row = _logged(tmp_path / "run" / "metrics.csv")[0]
    assert "train/tokens_per_second" in row and "train/mfu" not in row


class FakeMark:
    """A GPU's event: the GPU reaches the first `done` that were recorded. A micro-batch takes 2 s."""

    recorded, done = 0, 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        FakeMark.recorded += 1
        self.number = FakeMark.recorded

    def query(self):
        return self.number <= FakeMark.done

    def elapsed_time(self, end):
        assert end.query() and end.number == self.number + 1, "the GPU has not got there"
        return 2000.0


def test_a_gpus_own_clock_is_read_without_waiting(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeMark)
    logged = []
    module = SimpleNamespace(device=torch.device("cuda"), log_dict=lambda values: logged.append(values))
    trainer = SimpleNamespace(world_size=2, precision="bf16-mixed")
    callback, batch = Throughput(smoothing=0.5), {"input_ids": torch.zeros(4, 16)}
    callback.on_train_start(trainer, module)
    for index, done in enumerate((0, 1, 4, 8, 8)):
        callback.on_train_batch_start(trainer, module, batch, index)
        FakeMark.done = done
        callback.on_train_batch_end(trainer, module, None, batch, index)
    assert len(logged) == 3  # nothing was known in the first two steps
    assert all(float(values["train/tokens_per_second"]) == 2 * 4 * 16 / 2.0 for values in logged)
    assert len(callback._running) == 1


def test_a_cpus_time_is_that_of_its_micro_batches(monkeypatch):
    clock = iter([0.0, 2.0, 7.0, 8.0])  # 2 s, 5 s between, 1 s
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    logged = []
    module = SimpleNamespace(device=torch.device("cpu"), log_dict=lambda values: logged.append(values))
    trainer = SimpleNamespace(world_size=1, precision="32-true")
    callback, batch = Throughput(smoothing=0.5), {"input_ids": torch.zeros(4, 16)}
    for index in range(2):
        callback.on_train_batch_start(trainer, module, batch, index)
        callback.on_train_batch_end(trainer, module, None, batch, index)
    assert [float(values["train/tokens_per_second"]) for values in logged] == pytest.approx([64 / 2, 64 / 1.5])


@pytest.mark.parametrize(
    ("precision", "peak"), [("bf16-mixed", 989.4e12), ("16-mixed", 989.4e12), ("32-true", 66.9e12)]
)
def test_an_h200_computes_as_an_h100(monkeypatch, precision, peak):
    for name in ("NVIDIA H200", "NVIDIA H100 80GB HBM3"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        monkeypatch.setattr("lightning.fabric.accelerators.cuda._is_ampere_or_later", lambda: True)
        assert _known_peak(torch.device("cuda:0"), precision) == pytest.approx(peak, rel=1e-12)


def test_known_devices(monkeypatch):
    assert _known_peak(torch.device("cpu"), "bf16-mixed") is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    assert _known_peak(torch.device("cuda:0"), "bf16-mixed") == 312e12
    with pytest.raises(ValueError, match="positive"):
        Throughput(peak_flops=-1.0)
