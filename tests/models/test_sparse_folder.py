"""The sparse model folder: what is in it, that it comes back as it went, and that nothing loads it as a dense model."""

import copy
import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, pipeline

from lit_sparse import Contribution, Logit, Probability, desparsify, sparsify
from lit_sparse.attention import dense, gates_of
from lit_sparse.models.adapters import LoraConfig, add_lora
from lit_sparse.models.base import load_model
from lit_sparse.models.compared import find_candidates
from lit_sparse.models.sparse_folder import continue_from, export_adapters, export_sparse, load_sparse

MEASURED = {
    "model": "somebody/base", "edge_fraction": 0.0371, "edge_fraction_start": 0.341, "edges_per_query": 4.77,
    "edges_per_query_start": 43.84, "sequence_length": 256, "ce": 2.8841, "base_ce": 2.8612, "kl": 0.0978,
    "constraint": "kl", "constraint_described": "KL divergence from the base model <= 0.1 nats per token",
    "constraint_value": 0.0978, "tolerance": 0.1, "satisfied": True,
    "steps": 60, "tokens": 82000, "seconds": 723.4,
}  # fmt: skip


@pytest.fixture
def model(llama_folder):
    """A sparse model whose heads all have cutoffs of their own, and whose first layer is dense."""
    model = sparsify(load_model(str(llama_folder)), {"threshold": 0.1}, layers=lambda index: index == 1)
    gates_of(model)[1].set_cutoff(torch.tensor([-1.1, -2.2, -3.3, -1.7]))
    return model


@pytest.fixture
def exported(model, character_tokenizer, tmp_path):
    export_sparse(model, tmp_path / "sparse", measured=MEASURED, tokenizer=character_tokenizer)
    return tmp_path / "sparse"


def with_adapters(folder):
    """Weights and cutoffs as after training, the same each time."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = add_lora(sparsify(load_model(str(folder)), {"threshold": 0.1}), LoraConfig(r=2))
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "edge_gate" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def adapters(llama_folder, character_tokenizer, tmp_path):
    measured = MEASURED | {"model": str(llama_folder)}
    model = with_adapters(llama_folder)
    export_adapters(model, tmp_path / "adapters", measured=measured, tokenizer=character_tokenizer)
    return tmp_path / "adapters"


@pytest.fixture
def ids():
    return torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model, ids):
    return model(ids, use_cache=False).logits


def test_what_goes_out_comes_back(model, exported, ids):
    loaded = load_sparse(exported)
    assert not loaded.training
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    for before, after in zip(gates_of(model), gates_of(loaded), strict=True):
        assert after.config == before.config and after.closable == before.closable
        assert torch.equal(after.log_threshold, before.log_threshold)
        assert after.log_threshold.requires_grad == before.log_threshold.requires_grad
    with dense(model):
        assert (logits(model, ids) - logits(loaded, ids)).abs().max() > 0.01, "the gates must matter here"
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    assert torch.equal(loaded.generate(ids, **options), model.generate(ids, **options))


def test_exporting_leaves_the_model_as_it_was(llama_folder, ids, tmp_path):
    model = sparsify(load_model(str(llama_folder)), {"threshold": 0.1}).train()
    before, names = copy.deepcopy(model.state_dict()), list(model.state_dict())
    export_sparse(model, tmp_path / "sparse", measured={})
    assert list(model.state_dict()) == names and model.training
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert model.config._attn_implementation == "lit_sparse"
    assert torch.equal(logits(model.eval(), ids), logits(load_sparse(tmp_path / "sparse"), ids))


@pytest.mark.parametrize(
    "config",
    [
        Logit(bias=0.5, learnable=False),
        Logit(bias=0.5, normalisation="open"),
        Probability(sharpness=3.0, normalisation="open", learnable=False),
        Contribution(threshold=0.1, sharpness=3.0, sharpness_end=9.0),
    ],
    ids=str,
)
def test_every_kind_of_gate_survives(llama_folder, ids, tmp_path, config):
    model = sparsify(load_model(str(llama_folder)), config)
    export_sparse(model, tmp_path / "sparse", measured={})
    loaded = load_sparse(tmp_path / "sparse", backend="reference")
    assert gates_of(loaded)[0].config == config
    torch.testing.assert_close(logits(loaded, ids), logits(model, ids), rtol=1e-5, atol=1e-5)  # two operators, float32


def test_half_precision_weights_keep_float32_gates(llama_folder, ids, tmp_path):
    model = sparsify(load_model(str(llama_folder), dtype=torch.bfloat16), {"threshold": 0.1})
    gates_of(model)[1].set_cutoff(torch.tensor([-1.1, -2.2, -3.3, -1.7]))
    export_sparse(model, tmp_path / "sparse", measured={})
    assert load_file(tmp_path / "sparse" / "model.sparse.safetensors")["model.norm.weight"].dtype is torch.bfloat16
    gates = load_file(tmp_path / "sparse" / "gates.safetensors")
    assert all(tensor.dtype is torch.float32 for tensor in gates.values())
    loaded = load_sparse(tmp_path / "sparse", dtype=torch.bfloat16)
    assert torch.equal(gates_of(loaded)[1].log_threshold, torch.tensor([-1.1, -2.2, -3.3, -1.7]))
    assert torch.equal(logits(loaded, ids), logits(model, ids))


ALONE = """
import sys
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, pipeline
assert AutoTokenizer.from_pretrained(sys.argv[1])("one + two").input_ids
assert "lit_sparse" not in sys.modules
for load in (
    AutoModelForCausalLM.from_pretrained,
    AutoModel.from_pretrained,
    LlamaForCausalLM.from_pretrained,
    lambda folder: pipeline("text-generation", model=folder),
):
    try:
        load(sys.argv[1])
    except Exception as error:
        print(type(error).__name__, str(error).splitlines()[0])
    else:
        sys.exit(f"{load} took it")
"""


@pytest.mark.parametrize("form", ["whole", "adapters"])
def test_transformers_alone_refuses_it(exported, adapters, form):
    """In a process of its own, in which lit_sparse was never imported. The tokenizer is there for everybody."""
    folder = exported if form == "whole" else adapters
    result = subprocess.run([sys.executable, "-c", ALONE, folder], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert sum("model type `lit_sparse`" in line for line in lines) == 3 and len(lines) == 4


@pytest.mark.parametrize("form", ["whole", "adapters"])
def test_auto_classes_load_it_sparse_once_lit_sparse_is_imported(exported, adapters, form, ids):
    folder = exported if form == "whole" else adapters
    expected = logits(load_sparse(folder), ids)
    for loaded in (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="cpu"),
        pipeline("text-generation", model=str(folder), tokenizer=AutoTokenizer.from_pretrained(folder)).model,
    ):
        assert len(gates_of(loaded)) == 2
        assert torch.equal(logits(loaded, ids), expected)
    assert AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).dtype is torch.bfloat16
    for options in ({"attn_implementation": "sdpa"}, {"quantization_config": {"load_in_8bit": True}}):
        with pytest.raises(ValueError, match=f"cannot be loaded with {next(iter(options))}"):
            AutoModelForCausalLM.from_pretrained(folder, **options)
    with pytest.raises(ValueError, match="one device"):
        AutoModelForCausalLM.from_pretrained(folder, device_map={"model.layers.0": "cpu", "model.layers.1": "meta"})
    with pytest.raises(ValueError, match="loaded from its folder"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize("form", ["whole", "adapters"])
def test_nothing_else_takes_it_for_a_dense_model(exported, adapters, form, llama_folder):
    import peft

    folder = exported if form == "whole" else adapters
    with pytest.raises(ValueError, match=r"lit_sparse\.from_pretrained"):
        load_model(str(folder))
    with pytest.raises(OSError, match=r"model\.safetensors"):
        LlamaForCausalLM.from_pretrained(folder)
    with pytest.raises(ValueError, match="adapter_config"):
        peft.PeftModel.from_pretrained(load_model(str(llama_folder)), str(folder))


def test_save_pretrained_writes_a_sparse_folder(model, exported, ids, tmp_path):
    expected = logits(model, ids)
    model.save_pretrained(tmp_path / "first")
    assert torch.equal(logits(load_sparse(tmp_path / "first"), ids), expected)
    again = load_sparse(exported)
    again.save_pretrained(tmp_path / "first")  # over an earlier save
    assert torch.equal(logits(load_sparse(tmp_path / "first"), ids), expected)
    described = json.loads((tmp_path / "first" / "sparse.json").read_text())
    assert described["dense_layers"] == [0] and described["measured"] == {"model": "somebody/base"}
    again.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("model.sparse-*.safetensors"))) > 1
    assert torch.equal(logits(load_sparse(tmp_path / "shards"), ids), expected)
    again.save_pretrained(tmp_path / "elsewhere", is_main_process=False)
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(ValueError, match="push_to_hub"):
        again.save_pretrained(tmp_path / "hub", push_to_hub=True)
    desparsify(again).save_pretrained(tmp_path / "dense")
    with dense(model):
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "dense"), ids), logits(model, ids))


def test_save_pretrained_leaves_other_files_alone(model, ids, tmp_path):
    """Of the folder it replaces what a model's earlier save wrote, and nothing else."""
    load_model(model.edge_base_name).save_pretrained(tmp_path)
    for name in ("W_enc_0.safetensors", "notes.txt"):
        (tmp_path / name).write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "W_enc_0.safetensors").read_text() == (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "model.safetensors").exists()
    assert torch.equal(logits(load_sparse(tmp_path), ids), logits(model, ids))
    with pytest.raises(TypeError, match="variant"):
        model.save_pretrained(tmp_path, variant="fp16")


@pytest.mark.parametrize("lora", [False, True])
def test_a_state_that_is_given_is_what_is_saved(llama_folder, model, ids, tmp_path, lora):
    """As trainers do that shard a model: weights, adapters and gates are those of the state, not the model's own."""
    other = with_adapters(llama_folder) if lora else model
    other.save_pretrained(tmp_path / "own")
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    other.save_pretrained(tmp_path / "given", state_dict=state)
    given, own = (load_sparse(tmp_path / name) for name in ("given", "own"))
    assert torch.equal(logits(given, ids), logits(own, ids))
    assert not torch.allclose(logits(other, ids), logits(own, ids), atol=0.1)


def test_a_copy_saves_itself(model, ids, tmp_path):
    other = copy.deepcopy(model)
    gates_of(other)[1].set_cutoff(torch.full((4,), -0.5))
    other.save_pretrained(tmp_path / "other")
    assert torch.equal(logits(load_sparse(tmp_path / "other"), ids), logits(other, ids))
    assert not torch.equal(logits(other, ids), logits(model, ids))


def test_save_pretrained_with_adapters_writes_both(llama_folder, ids, tmp_path):
    wrapped = with_adapters(llama_folder)
    (tmp_path / "saved").mkdir()
    wrapped.save_pretrained(tmp_path / "saved")
    export_adapters(wrapped, tmp_path / "exported", measured={"model": str(llama_folder)})
    assert json.loads((tmp_path / "saved" / "sparse.json").read_text())["measured"]["model"] == str(llama_folder)
    saved, exported = (load_sparse(tmp_path / name) for name in ("saved", "exported"))
    assert torch.equal(logits(saved, ids), logits(exported, ids))
    base = sparsify(load_model(str(llama_folder)), {"threshold": 0.1})
    assert (logits(saved, ids) - logits(base, ids)).abs().max() > 0.1, "the adapters must matter here"
    merged = wrapped.merge_and_unload()
    merged.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "adapters.json").exists()
    assert torch.equal(logits(load_sparse(tmp_path / "saved"), ids), logits(merged, ids))


def test_adapters_of_peft_alone_name_no_dense_base(model, tmp_path):
    """Whoever trains a sparse model with peft himself: what he saves must not be put on the dense base."""
    import peft

    peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "peft")
    with pytest.raises(OSError):
        peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "peft")


def test_sharpness_is_what_training_left(model, tmp_path):
    for gate in gates_of(model):
        gate.set_sharpness(11.5)
    export_sparse(model, tmp_path / "sparse", measured={})
    assert [float(gate.form().sharpness) for gate in gates_of(load_sparse(tmp_path / "sparse"))] == [11.5, 11.5]
    assert "edge_gate.sharpness" in " ".join(model.state_dict())


def test_tied_weights_stay_tied(llama_folder, ids, tmp_path):
    base = load_model(str(llama_folder))
    base.config.tie_word_embeddings = True
    base.tie_weights()
    model = sparsify(base, {"threshold": 0.1})
    export_sparse(model, tmp_path / "sparse", measured={})
    loaded = load_sparse(tmp_path / "sparse")
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    assert "lm_head.weight" not in load_file(tmp_path / "sparse" / "model.sparse.safetensors")


def test_the_folder_holds_no_pickle_and_no_more_than_it_says(exported):
    names = {path.name for path in exported.iterdir()}
    weights = {"base_config.json", "model.sparse.safetensors"}
    assert weights | {"config.json", "gates.safetensors", "sparse.json", "README.md"} <= names
    assert "tokenizer.json" in names
    assert not [name for name in names if not name.endswith((".json", ".safetensors", ".md", ".jinja"))]
    assert not [name for name in load_file(exported / "model.sparse.safetensors") if "edge_gate" in name]
    assert json.loads((exported / "config.json").read_text()) == {"model_type": "lit_sparse"}
    assert "lit_sparse" not in (exported / "base_config.json").read_text()
    described = json.loads((exported / "sparse.json").read_text())
    assert described["measured"] == MEASURED and described["dense_layers"] == [0]


def test_the_model_card_has_the_figures(exported):
    card = (exported / "README.md").read_text()
    edges = (
        "| open edges per query and head | 4.77 (3.71 % of the allowed ones, T = 256); at the start 43.84 (34.1 %) |"
    )
    constraint = "| constraint: KL divergence from the base model <= 0.1 nats per token | 0.0978, tolerance 0.1000, "
    for figure in ["somebody/base", edges, constraint, "2.8841", "2.8612", "82,000", "723 s", "satisfied: yes"]:
        assert figure in card
    assert card.startswith("---\n") and "probability gates" in card


def test_a_card_without_figures_says_so(model, tmp_path):
    export_sparse(model, tmp_path / "sparse", measured={"kl": None})
    card = (tmp_path / "sparse" / "README.md").read_text()
    assert "| open edges per query and head | not measured |" in card
    assert "KL from the base model, nats per token | not measured" in card and "unnamed base model" in card


def test_a_folder_in_use_is_refused(model, exported, tmp_path):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    with pytest.raises(ValueError, match="exists and is not empty"):
        export_sparse(model, exported, measured={})
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    (tmp_path / "empty").mkdir()
    export_sparse(model, tmp_path / "empty", measured={})


def test_a_model_without_gates_is_refused(llama_folder, tmp_path):
    with pytest.raises(ValueError, match="no gates"):
        export_sparse(load_model(str(llama_folder)), tmp_path / "sparse", measured={})
    assert not (tmp_path / "sparse").exists()


def test_folders_that_are_no_sparse_ones(llama_folder, exported, tmp_path):
    for folder, complaint in (
        (llama_folder, r"has no sparse\.json; it is a dense model, which lit_sparse\.sparsify gives gates"),
        (tmp_path / "nope", "no folder .*nope'; lit_sparse.from_pretrained loads"),
        ("somebody/model", "no folder 'somebody/model'; lit_sparse.from_pretrained loads"),
        (shutil.copytree(exported, tmp_path / "run" / "model").parent, r"the model of that run is .*run/model"),
        (tmp_path, r"is no sparse model folder: it has no sparse\.json$"),
    ):
        with pytest.raises(ValueError, match=complaint):
            load_sparse(folder)


def change(exported, **keys):
    path = exported / "sparse.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"format": 1}, "has format 1, and this version of lit_sparse reads 2"),
        ({"format": None}, "has format None"),
        ({"gate": {"family": "unheard of"}}, "unknown gate family 'unheard of'"),
        ({"gate": {"family": "logit"}}, "gates in .* do not fit"),
        ({"gate": {"colour": 1}}, "unknown gate key.*colour"),
        ({"gate": {"family": "logit", "threshold": 0.1}}, "threshold of family 'logit'; known keys:.*bias"),
    ],
)
def test_a_description_that_does_not_fit(exported, keys, complaint):
    change(exported, **keys)
    with pytest.raises(ValueError, match=complaint):
        load_sparse(exported)


def test_a_description_that_is_no_json(exported):
    (exported / "sparse.json").write_text("{")
    with pytest.raises(ValueError):
        load_sparse(exported)


@pytest.mark.parametrize("damage", ["heads", "missing", "left over", "corrupt"])
def test_gates_that_do_not_fit(exported, damage):
    path = exported / "gates.safetensors"
    tensors = load_file(path)
    if damage == "heads":
        tensors["1.log_threshold"] = torch.zeros(3)
    elif damage == "missing":
        del tensors["1.log_threshold"]
    elif damage == "left over":
        tensors["2.log_threshold"] = torch.zeros(4)
    save_file(tensors, path)
    if damage == "corrupt":
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=f"gates in {exported}"):
        load_sparse(exported)


def test_weights_that_are_gone(exported, tmp_path):
    copy_ = shutil.copytree(exported, tmp_path / "copy")
    (copy_ / "model.sparse.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot load the base model"):
        load_sparse(copy_)


def test_what_was_trained_is_enough(llama_folder, character_tokenizer, ids, tmp_path):
    """Adapters and gates, without the base: the same model, from a small folder that every command finds its way in."""
    character_tokenizer.save_pretrained(llama_folder)
    gated = sparsify(load_model(str(llama_folder)), {"family": "contribution", "threshold": 0.1})
    model = add_lora(gated, LoraConfig(r=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "edge_gate" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    measured = MEASURED | {"model": str(llama_folder)}
    export_adapters(model, tmp_path / "small", measured=measured)
    export_sparse(model, tmp_path / "whole", measured=measured)
    assert not list((tmp_path / "small").glob("model*.safetensors"))
    assert load_file(tmp_path / "small" / "adapters.safetensors").keys()
    small, whole = load_sparse(tmp_path / "small"), load_sparse(tmp_path / "whole")
    base = load_model(str(llama_folder)).state_dict()
    for name, weight in whole.state_dict().items():
        change = (weight - base[name]).abs().max() if name in base else 0.0  # float16 keeps 11 bits of each factor
        torch.testing.assert_close(small.state_dict()[name], weight, rtol=0, atol=2e-3 * float(change))
    assert not torch.equal(whole.model.layers[1].mlp.up_proj.weight, base["model.layers.1.mlp.up_proj.weight"])
    assert torch.isfinite(small(ids).logits).all()
    candidate, base = find_candidates(str(tmp_path / "small"), None)
    assert candidate.is_sparse and base is not None and base.name == str(llama_folder)
    assert candidate.positions == base.positions


def test_adapters_that_do_not_fit(llama_folder, make_model, tmp_path):
    model = add_lora(sparsify(load_model(str(llama_folder)), {}), LoraConfig(r=2))
    export_adapters(model, tmp_path / "small", measured=MEASURED | {"model": str(llama_folder)})
    file = tmp_path / "small" / "adapters.safetensors"
    save_file({name: torch.zeros(3, 3) for name in load_file(file)}, file)
    with pytest.raises(ValueError, match=r"adapters in .* do not fit llama"):
        load_sparse(tmp_path / "small")
    with pytest.raises(ValueError, match="no adapters"):
        export_adapters(sparsify(make_model("llama"), {}), tmp_path / "other", measured=MEASURED)


def test_training_goes_on_from_adapters(llama_folder, ids, tmp_path):
    """What `start_from` does: the same outputs as the written model, adapters and gates still to be trained."""
    name = str(llama_folder)
    model = with_adapters(llama_folder)
    for gate in gates_of(model):
        gate.set_sharpness(12.0)
    export_adapters(model, tmp_path / "first", measured=MEASURED | {"model": name})
    later = add_lora(sparsify(load_model(name), {"threshold": 0.5}), LoraConfig(r=2))
    continue_from(tmp_path / "first", later, name)
    expected = load_sparse(tmp_path / "first")
    torch.testing.assert_close(logits(later.eval(), ids), logits(expected, ids), rtol=1e-4, atol=1e-4)  # merged or not
    trained = {key for key, parameter in later.named_parameters() if parameter.requires_grad}
    assert trained == {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert float(gates_of(later)[1].sharpness) == 2.0  # where this run's own schedule starts


def test_training_goes_on_with_adapters_of_a_larger_rank(llama_folder, ids, tmp_path):
    name = str(llama_folder)
    export_adapters(with_adapters(llama_folder), tmp_path / "first", measured=MEASURED | {"model": name})
    wider = add_lora(sparsify(load_model(name), {"threshold": 0.5}), LoraConfig(r=5, lora_alpha=80))
    continue_from(tmp_path / "first", wider, name)
    torch.testing.assert_close(
        logits(wider.eval(), ids), logits(load_sparse(tmp_path / "first"), ids), rtol=1e-4, atol=1e-4
    )
    wider(ids).logits.square().sum().backward()
    learns = {key: p.grad for key, p in wider.named_parameters() if "lora_B" in key}
    assert all(grad[:, 2:].abs().max() > 0 for grad in learns.values())  # what was added can learn
    of_another_scale = add_lora(sparsify(load_model(name), {"threshold": 0.5}), LoraConfig(r=4, lora_alpha=4))
    with pytest.raises(ValueError, match="set lora_alpha to 64"):
        continue_from(tmp_path / "first", of_another_scale, name)


def test_adapters_that_training_cannot_go_on_from(llama_folder, tmp_path):
    name = str(llama_folder)

    def build(gate=None, rank=2, alpha=32):
        lora = LoraConfig(r=rank, lora_alpha=alpha)
        return add_lora(sparsify(load_model(name), gate or {"threshold": 0.1}), lora)

    export_adapters(build(), tmp_path / "first", measured=MEASURED | {"model": name})
    for model, base, message in (
        (build(rank=1, alpha=16), name, "rank 2, more than is to be trained"),
        (build({"family": "logit"}), name, "family 'probability', the config says 'logit'"),
        (build(), "somebody/else", "belong to"),
        (sparsify(load_model(name), {"threshold": 0.1}), name, "set lora"),
    ):
        with pytest.raises(ValueError, match=message):
            continue_from(tmp_path / "first", model, base)
    with pytest.raises(ValueError, match="no sparse model folder"):
        continue_from(tmp_path, build(), name)
    with pytest.raises(ValueError, match="run that one first"):
        continue_from(tmp_path / "not there yet", build(), name)
    export_sparse(build(), tmp_path / "whole", measured=MEASURED | {"model": name})
    with pytest.raises(ValueError, match="has no adapters"):
        continue_from(tmp_path / "whole", build(), name)
