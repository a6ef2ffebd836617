"""What a training step dispatches to a GPU, and what it waits for."""

import importlib.util

import pytest
import torch
from transformers import LlamaConfig

from lit_sparse.models.adapters import LoraConfig
from tests.conftest import REPOSITORY

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def script():
    path = REPOSITORY / "benchmarks" / "step_operations.py"
    spec = importlib.util.spec_from_file_location("step_operations", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_operations_are_counted(script):
    with script.CountOperations() as counted:
        x = torch.arange(6.0)
        y = x.view(2, 3) * 2
        assert y[y > 5].numel()
        y.sum().item()
    assert counted.names.total() == 7 and counted.views == 1
    assert counted.waits == {"aten.index.Tensor": 1, "aten._local_scalar_dense.default": 1}


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)])
def test_a_step_of_any_size_has_the_same_few_operations_and_waits_for_none(script, lora):
    small = LlamaConfig(**SIZES, vocab_size=64, num_hidden_layers=2)
    large = LlamaConfig(**SIZES, vocab_size=50_000, num_hidden_layers=2)
    found, same = script.count(small, 2, 16, lora), script.count(large, 32, 512, lora)
    assert found == same
    assert found.waits == {}
    # Fake tensors take the norm of each of about 30 gradients by itself; a device takes them in one operation.
    assert found.parts["losses"] < 100 and found.parts["multiplier"] < 80


def test_the_device_is_not_waited_for(start_python):
    """In a process of its own: the pretended device changes torch's defaults for good."""
    cases = REPOSITORY / "tests" / "pretended" / "step_cases.py"
    process = start_python("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", cases)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, output + errors
