"""The examples do what their docstrings say."""

import json

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from examples.gemma_local_layers import GlobalLayersOnly
from examples.train import train
from lit_sparse.attention import EdgeCounts, gates_of
from lit_sparse.records.run import read_history


def test_windowed_layers_stay_dense_and_edges_are_weighed_by_depth(tmp_path):
    config = AutoConfig.for_model(
        "gemma3_text",
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=4,
        max_position_embeddings=64,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    module = GlobalLayersOnly(model=str(tmp_path), depth_discount=0.5)
    module.configure_model()
    assert [gate.closable for gate in gates_of(module.model)] == [False, False, True]
    early, late = torch.zeros(3, 2), torch.zeros(3, 2)
    early[0], late[2] = 4.0, 4.0
    allowed = torch.full((3, 2), 8.0)
    # equal edges in the first and in the last layer, which counts half: the logs differ by log 2
    difference = module.edge_loss(EdgeCounts(early, early, allowed)) - module.edge_loss(EdgeCounts(late, late, allowed))
    torch.testing.assert_close(difference, torch.log(torch.tensor(2.0)) * module.objective.edges.weight)


def test_a_script_trains_as_the_command_line_does(llama_folder, text_files, tmp_path):
    run_dir = tmp_path / "script"
    train(str(llama_folder), text_files, steps=4, length=16, run_dir=str(run_dir))
    assert {"checkpoints", "model", "plots", "record", "report.html", "summary.json"} <= {
        path.name for path in run_dir.iterdir()
    }
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 4
    assert any("val/kl" in row for row in read_history(run_dir / "metrics.csv"))
