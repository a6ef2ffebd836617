"""What sharded runs can do besides training: offload, go on elsewhere, evaluate, be built where nobody has room."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lit_sparse.training.checkpoint_io import recover, replacing_folder
from lit_sparse.training.strategies import Sharding, SparseDeepSpeedStrategy, SparseFSDPStrategy
from tests.training.strategies.test_strategies import SAVED_AT, TOLERANCE, read, start_ranks, tied_folder, weights

SHARDED = ["zero2", "zero3", "fsdp2"]
OFFLOADED = ["zero2_offload", "zero3_offload"]
__all__ = ["tied_folder"]  # a fixture


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory):
    """A llama of 210 MB in float32, of many small parts. Its file is in bfloat16, so that none can just be mapped."""
    folder = tmp_path_factory.mktemp("models") / "large"
    config = LlamaConfig(
        vocab_size=2000, hidden_size=512, intermediate_size=1376, num_hidden_layers=16, num_attention_heads=8,
        num_key_value_heads=8, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tied_folder, large_folder, tmp_path_factory):
    """Runs on two processes, what was evaluated from them there, and one that went on alone; {name: folder}."""
    root = tmp_path_factory.mktemp("sharded")
    common = {"accumulate": 2, "model": str(tied_folder), "optimizer": "adamw"}
    found, plans = {}, {"runs": [], "building": []}

    def add(name, plan="runs", **case):
        found[name] = root / name
        plans[plan].append({**common, "folder": str(found[name]), **case})

    for strategy in ["ddp", *SHARDED, *OFFLOADED]:
        add(strategy, strategy=strategy)
    for strategy in OFFLOADED:
        add(strategy, strategy=strategy, resume=True)
    for strategy in ["ddp", *SHARDED]:
        for kind in ("weights", "full") if strategy != "ddp" else ("weights",):
            add(f"{strategy}-{kind}", strategy=strategy, evaluate=str(root / strategy / f"{kind}.ckpt"))
    adapters = {"lora": True, "calibrate": True}  # whose checkpoints leave the base model out
    for strategy in ["ddp", *SHARDED]:
        add(f"{strategy}-lora", strategy=strategy, **adapters)
        for kind in ("weights", "full") if strategy != "ddp" else ("weights",):
            saved = str(root / f"{strategy}-lora" / f"{kind}.ckpt")
            add(f"{strategy}-lora-{kind}", strategy=strategy, evaluate=saved, **adapters)
    for strategy in ("ddp", "zero3", "fsdp2"):
        add(f"{strategy}-large", "building", strategy=strategy, evaluate=True, model=str(large_folder))
    plans["alone"] = [{**common, "folder": str(root / "fsdp2"), "strategy": "fsdp2", "resume": True}]
    for name, cases in plans.items():
        plan, world_size = root / f"{name}.json", 1 if name == "alone" else 2
        plan.write_text(json.dumps({"cases": cases, "world_size": world_size}))
        # What is freed is no longer held: without this malloc keeps some of it.
        start_ranks(plan, world_size, **({"MALLOC_MMAP_THRESHOLD_": "200000"} if name == "building" else {}))
    found["log"] = root / "runs.0.log"
    return found


def evaluated(folder):
    return [json.loads((folder / f"evaluated{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", OFFLOADED)
def test_offloaded_steps_are_the_same(folders, strategy):
    means, lambdas, _ = read(folders["ddp"])
    own_means, own_lambdas, own_steps = read(folders[strategy])
    assert own_lambdas[0] == pytest.approx(lambdas[0], abs=TOLERANCE)
    assert own_means["loss"] == pytest.approx(means["loss"], abs=TOLERANCE)
    own, expected = weights(folders[strategy]), weights(folders["ddp"])
    assert own.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(own[name], value, rtol=0, atol=5 * TOLERANCE)
    cut_means, cut_lambdas, cut_steps = read(folders[strategy], "resumed")
    assert cut_steps == [step for step in own_steps if step >= SAVED_AT]
    assert cut_means["loss"] == own_means["loss"][-len(cut_steps) :]
    assert cut_lambdas[0][-1] == own_lambdas[0][-1]


@pytest.mark.slow
def test_fsdp2_goes_on_with_another_number_of_processes(folders):
    means, lambdas, steps = read(folders["fsdp2"])
    alone, alone_lambdas, alone_steps = read(folders["fsdp2"], "resumed")
    rest = len(alone_steps)
    assert alone_steps == steps[-rest:] and alone_steps[0] == SAVED_AT
    assert alone["loss"] == pytest.approx(means["loss"][-rest:], abs=TOLERANCE)
    assert alone_lambdas[0] == pytest.approx(lambdas[0][-rest - 1 :], abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", SHARDED)
@pytest.mark.parametrize("kind", ["weights", "full"])
@pytest.mark.parametrize("trained", ["", "-lora"])
def test_evaluation_is_that_of_ddp(folders, trained, kind, strategy):
    expected = evaluated(folders[f"ddp{trained}-weights"])[0]
    ranks = evaluated(folders[f"{strategy}{trained}-{kind}"])
    for rank in ranks:
        for what in ("validated", "tested"):
            assert rank[what] == pytest.approx(expected[what], abs=20 * TOLERANCE)
    assert ranks[0]["validated"] == ranks[1]["validated"]
    assert "sync_dist" not in folders["log"].read_text()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_no_rank_holds_a_whole_model_while_it_is_built(folders, large_folder, strategy):
    """Student and teacher: half of each, and a layer or a tensor on its way. DDP shows that the measure sees them."""
    whole = 2 * 2 * sum(file.stat().st_size for file in large_folder.glob("*.safetensors"))
    assert all(rank["growth"] > 0.95 * whole for rank in evaluated(folders["ddp-large"]))
    for rank in evaluated(folders[f"{strategy}-large"]):
        assert 0.45 * whole < rank["growth"] < 0.65 * whole
    expected = evaluated(folders["ddp-large"])[0]["validated"]
    assert evaluated(folders[f"{strategy}-large"])[0]["validated"] == pytest.approx(expected, rel=1e-4)


def test_what_training_cannot_go_on_from_is_refused(tmp_path):
    zero, fsdp = tmp_path / "zero.ckpt", tmp_path / "fsdp.ckpt"
    (zero / "checkpoint").mkdir(parents=True)
    for rank in range(2):
        (zero / "checkpoint" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    fsdp.mkdir()
    (fsdp / "meta.pt").touch()
    SparseFSDPStrategy().check_resumable(fsdp)
    with pytest.raises(ValueError, match=r"written by 2 processes.* this run has 1"):
        SparseDeepSpeedStrategy(stage=2).check_resumable(zero)
    for strategy, path in ((SparseDeepSpeedStrategy(), fsdp), (SparseFSDPStrategy(), zero), (Sharding(), fsdp)):
        with pytest.raises(ValueError, match="resume under the strategy that wrote it"):
            strategy.check_resumable(path)


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_replacement_cut_off_between_its_renames_is_ended(tmp_path, monkeypatch, moved):
    target = tmp_path / "last.ckpt"

    def replace(text):
        with replacing_folder(target, True, lambda: None) as folder:
            folder.mkdir()
            (folder / "text").write_text(text)

    replace("old")
    renames, rename = [], type(target).rename

    def cut_off(self, to):
        if len(renames) == moved:
            raise KeyboardInterrupt
        renames.append(to)
        return rename(self, to)

    monkeypatch.setattr(type(target), "rename", cut_off)
    if moved < 2:
        with pytest.raises(KeyboardInterrupt):
            replace("new")
    else:
        replace("new")
    monkeypatch.undo()
    assert target.exists() == (moved != 1)
    assert (recover(target) / "text").read_text() == ("old" if moved == 0 else "new")
    replace("newest")
    assert (target / "text").read_text() == "newest" and not list(tmp_path.glob(".*"))
