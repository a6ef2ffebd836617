"""The sparse model folder: what is in it, that it comes back as it went, and that anybody can load it densely."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_sparse import GateConfig, sparsify
from lit_sparse.adapters import LoraConfig, add_lora
from lit_sparse.attention import dense, gates_of
from lit_sparse.calibration import Calibration
from lit_sparse.candidates import find_candidates
from lit_sparse.export import continue_from, export_adapters, export_sparse, load_sparse
from lit_sparse.models import load_model
from lit_sparse.module import SparseAttentionModule

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


@pytest.mark.parametrize("family", ["logit", "probability"])
@pytest.mark.parametrize("normalisation", ["all", "open"])
def test_every_kind_of_gate_survives(llama_folder, ids, tmp_path, family, normalisation):
    config = GateConfig(family=family, normalisation=normalisation, sharpness=3.0, bias=0.5, learnable=False)
    model = sparsify(load_model(str(llama_folder)), config)
    export_sparse(model, tmp_path / "sparse", measured={})
    loaded = load_sparse(tmp_path / "sparse", backend="reference")
    assert gates_of(loaded)[0].config == config
    torch.testing.assert_close(logits(loaded, ids), logits(model, ids), rtol=1e-5, atol=1e-5)  # two operators, float32


def test_half_precision_weights_keep_float32_gates(llama_folder, ids, tmp_path):
    model = sparsify(load_model(str(llama_folder), dtype=torch.bfloat16), {"threshold": 0.1})
    gates_of(model)[1].set_cutoff(torch.tensor([-1.1, -2.2, -3.3, -1.7]))
    export_sparse(model, tmp_path / "sparse", measured={})
    assert load_file(tmp_path / "sparse" / "model.safetensors")["model.norm.weight"].dtype is torch.bfloat16
    gates = load_file(tmp_path / "sparse" / "gates.safetensors")
    assert all(tensor.dtype is torch.float32 for tensor in gates.values())
    loaded = load_sparse(tmp_path / "sparse", dtype=torch.bfloat16)
    assert torch.equal(gates_of(loaded)[1].log_threshold, torch.tensor([-1.1, -2.2, -3.3, -1.7]))
    assert torch.equal(logits(loaded, ids), logits(model, ids))


def test_transformers_alone_loads_the_dense_model(model, exported, ids):
    plain, report = AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert plain.config._attn_implementation == "sdpa"
    with dense(model):
        assert torch.equal(logits(plain, ids), logits(model, ids))
    assert AutoTokenizer.from_pretrained(exported).decode(ids[0]).strip()


def test_tied_weights_stay_tied(llama_folder, ids, tmp_path):
    base = load_model(str(llama_folder))
    base.config.tie_word_embeddings = True
    base.tie_weights()
    model = sparsify(base, {"threshold": 0.1})
    export_sparse(model, tmp_path / "sparse", measured={})
    loaded = load_sparse(tmp_path / "sparse")
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    assert "lm_head.weight" not in load_file(tmp_path / "sparse" / "model.safetensors")


def test_the_folder_holds_no_pickle_and_no_more_than_it_says(exported):
    names = {path.name for path in exported.iterdir()}
    assert {"config.json", "model.safetensors", "gates.safetensors", "sparse.json", "README.md"} <= names
    assert "tokenizer.json" in names
    assert not [name for name in names if not name.endswith((".json", ".safetensors", ".md", ".jinja"))]
    assert not [name for name in load_file(exported / "model.safetensors") if "edge_gate" in name]
    assert "lit_sparse" not in (exported / "config.json").read_text()
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
    assert "| open edges per query and head | not measured; at the start - |" in card
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


def test_a_dense_folder_is_no_sparse_one(llama_folder):
    with pytest.raises(ValueError, match=r"no sparse model folder: it lacks sparse\.json or gates\.safetensors"):
        load_sparse(llama_folder)


def change(exported, **keys):
    path = exported / "sparse.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"format": 2}, "has format 2, this code reads 1"),
        ({"format": None}, "has format None"),
        ({"gate": {"family": "unheard of"}}, "unknown gate family 'unheard of'"),
        ({"gate": {"family": "logit"}}, "gates in .* do not fit"),
        ({"gate": {"colour": 1}}, "unknown gate key.*colour"),
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
    (copy_ / "model.safetensors").unlink()
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
    assert not (tmp_path / "small" / "config.json").exists()
    assert load_file(tmp_path / "small" / "adapter_model.safetensors").keys()
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
    file = tmp_path / "small" / "adapter_model.safetensors"
    save_file({name: torch.zeros(3, 3) for name in load_file(file)}, file)
    with pytest.raises(ValueError, match=r"adapters in .* do not fit llama"):
        load_sparse(tmp_path / "small")
    with pytest.raises(ValueError, match="no adapters"):
        export_adapters(sparsify(make_model("llama"), {}), tmp_path / "other", measured=MEASURED)


def test_training_goes_on_from_adapters(llama_folder, ids, tmp_path):
    """What `start_from` does: the same outputs as the written model, adapters and gates still to be trained."""
    name = str(llama_folder)
    model = add_lora(sparsify(load_model(name), {"threshold": 0.1}), LoraConfig(r=2))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key or "edge_gate" in key:
                parameter += 0.1 * torch.randn_like(parameter)
    export_adapters(model, tmp_path / "first", measured=MEASURED | {"model": name})
    later = add_lora(sparsify(load_model(name), {"threshold": 0.5}), LoraConfig(r=2))
    continue_from(tmp_path / "first", later, name)
    expected = load_sparse(tmp_path / "first")
    torch.testing.assert_close(logits(later.eval(), ids), logits(expected, ids), rtol=1e-4, atol=1e-4)  # merged or not
    trained = {key for key, parameter in later.named_parameters() if parameter.requires_grad}
    assert trained == {key for key, parameter in model.named_parameters() if parameter.requires_grad}


def test_adapters_that_training_cannot_go_on_from(llama_folder, tmp_path):
    name = str(llama_folder)

    def build(gate=None, rank=2):
        return add_lora(sparsify(load_model(name), gate or {"threshold": 0.1}), LoraConfig(r=rank))

    export_adapters(build(), tmp_path / "first", measured=MEASURED | {"model": name})
    for model, base, message in (
        (build(rank=4), name, "do not fit the ones to train"),
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
    with pytest.raises(ValueError, match="set calibration to null"):
        SparseAttentionModule(name, calibration=Calibration(kl=0.1), start_from=str(tmp_path / "first"))
