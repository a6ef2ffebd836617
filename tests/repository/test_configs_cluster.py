"""Configs that need a cluster and the hub: here they parse, and pass `info` without a network."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from lit_sparse.commands.main import main

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "configs" / "paper").glob("*.yaml"))
ARCHITECTURES = REPOSITORY / "configs" / "architectures"
PUBLISHED = {
    "openai-community/gpt2": 124_439_808,
    "allenai/OLMo-7B-hf": 6_888_095_744,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "Qwen/Qwen3-8B": 8_190_735_360,
}
"""Parameters, as the model cards and safetensors files count them."""

configs = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)


def test_there_is_one_for_each_model():
    assert [path.stem for path in CONFIGS] == ["gpt2", "llama-3-8b", "olmo-7b", "qwen3-8b"]


@configs
def test_it_parses(config, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(SystemExit) as exit:
        main(["fit", "--config", str(config), "--print_config"])
    assert not exit.value.code
    resolved, written = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(config.read_text())
    assert resolved["model"]["init_args"]["gate"]["class_path"] == written["model"]["init_args"]["gate"]["class_path"]
    assert resolved["data"]["init_args"]["sources"] == written["data"]["init_args"]["sources"]


@configs
def test_info_needs_no_network(config, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **kwargs: pytest.fail("asked for a network address"))
    main(["info", "--config", str(config), "--tflops", "400"])
    printed = capsys.readouterr().out
    model = yaml.safe_load(config.read_text())["model"]["init_args"]["model"]
    assert f"{PUBLISHED[model]:,}" in printed
    assert f"architectures/{model}" in printed  # says whose numbers these are
    total = re.search(r"in all, each GPU +│ ([\d.]+) GB", printed)
    assert total and float(total[1]) < 80  # of one GPU


@configs
def test_it_is_the_papers_method(config):
    settings = yaml.safe_load(config.read_text())
    model, data = settings["model"]["init_args"], settings["data"]["init_args"]
    assert model["gate"]["class_path"] == "lit_sparse.Logit" and model["gate"]["init_args"]["bias"] > 0
    assert model["objective"]["constraint"]["class_path"].endswith("Absolute")
    architecture = json.loads((ARCHITECTURES / model["model"] / "config.json").read_text())
    assert data["sequence_length"] <= architecture.get("max_position_embeddings", architecture.get("n_positions"))
    steps = settings["trainer"]["max_steps"] * settings["trainer"]["accumulate_grad_batches"]
    gpus = settings["trainer"]["devices"] * settings["trainer"]["num_nodes"]
    assert data["train_sequences"] >= 0.9 * steps * gpus * data["batch_size"]  # no text is seen often


@configs
def test_every_value_says_why(config):
    """A line that sets a value, or one beside it, carries a comment."""
    bare = [
        line
        for line in config.read_text().splitlines()
        if re.match(r" +\w+: \S", line) and "#" not in line and "class_path" not in line
    ]
    assert bare == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_architectures_are_the_published_ones(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(ARCHITECTURES / name))
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


def test_parsing_needs_no_deepspeed(start_python):
    code = "import sys; sys.modules['deepspeed'] = None; from lit_sparse.commands.main import main; main(sys.argv[1:])"
    process = start_python("-c", code, "fit", "--config", "configs/paper/olmo-7b.yaml", "--print_config")
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "SparseDeepSpeedStrategy" in printed and "stage: 3" in printed
