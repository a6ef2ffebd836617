"""A model's digest: the same however the model was loaded, another for every other model."""

import copy

import pytest
import torch

from lit_sparse import sparsify
from lit_sparse.attention import gates_of
from lit_sparse.models.adapters import LoraConfig, add_lora
from lit_sparse.models.base import load_model
from lit_sparse.models.digest import digest_of
from lit_sparse.models.sparse_folder import export_adapters, export_sparse, load_sparse
from lit_sparse.records.digest import require_same, same_model


@pytest.fixture
def model(make_model):
    return sparsify(make_model("llama"), {"threshold": 0.1, "centered": True})


def test_it_is_the_same_on_every_machine():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape) - index)
    assert same_model(digest_of(model), "dense-be5be01b3e44500e3f9b7c033dac7e2cbfb6933b3f447b70bf9e00fe3f6e00f0")


def test_a_models_two_forms_and_a_second_loading(llama_folder, tmp_path):
    """What a run exports: whole, and as adapters in half precision."""
    torch.manual_seed(0)
    model = add_lora(sparsify(load_model(str(llama_folder)), {"centered": True}), LoraConfig(r=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "edge_gate" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    returned = export_sparse(model, tmp_path / "whole", measured={"model": str(llama_folder)})
    export_adapters(model, tmp_path / "small", measured={"model": str(llama_folder)})
    small, whole = (digest_of(load_sparse(tmp_path / name)) for name in ("small", "whole"))
    assert returned == whole == digest_of(load_sparse(tmp_path / "whole"))
    assert small != whole and same_model(small, whole), "adapters are rounded to half precision"
    assert not same_model(whole, digest_of(load_model(str(llama_folder))))


def test_sharpness_does_not_count(model):
    before = digest_of(model)
    for gate in gates_of(model):
        gate.set_sharpness(9.0)
    assert digest_of(model) == before


def cutoff(model):
    gates_of(model)[1].log_threshold[2] += 1e-6


def center(model):
    gates_of(model)[1].center[0, 0] += 1e-6


def one_weight_in_a_hundred(model):
    weight = model.model.layers[0].mlp.up_proj.weight
    weight += 0.01 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))


def norm(model):
    model.model.norm.weight[0] *= 1.1


def swapped(model):
    first, second = (layer.mlp.up_proj for layer in model.model.layers)
    first.weight, second.weight = second.weight, first.weight


@pytest.mark.parametrize("change", [cutoff, center, one_weight_in_a_hundred, norm, swapped])
def test_every_change_counts(model, change):
    other = copy.deepcopy(model)
    assert same_model(digest_of(model), digest_of(other))
    with torch.no_grad():
        change(other)
    assert not same_model(digest_of(model), digest_of(other))


@pytest.mark.parametrize("gate", [{"family": "contribution"}, {"normalisation": "open"}, {"centered": False}])
def test_every_kind_of_gate_counts(make_model, model, gate):
    other = sparsify(make_model("llama"), {"threshold": 0.1, "centered": True, **gate})
    assert not same_model(digest_of(model), digest_of(other))
    assert not same_model(digest_of(model), digest_of(make_model("llama")))


def test_refusals(model, make_model):
    digest = digest_of(model)
    require_same("the page", digest, digest, "make it again")
    with pytest.raises(ValueError, match="the page belongs to another model: name another"):
        require_same("the page", digest, digest_of(make_model("llama")), "name another")
    with pytest.raises(ValueError, match=r"the page does not record which model .*older version.*: make it again"):
        require_same("the page", None, digest, "name another")
