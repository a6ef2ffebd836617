"""`main.py graph`: what it writes, that a second call goes on where the first stopped, and what it refuses."""

import json

import pytest
import torch
import yaml

from lit_sparse import sparsify
from lit_sparse.attribution import Kind, build_graph, prune
from lit_sparse.attribution.prompt import prompt_graph
from lit_sparse.commands.options import graph
from lit_sparse.models.base import load_model, load_tokenizer
from lit_sparse.models.digest import digest_of
from lit_sparse.models.sparse_folder import export_sparse, load_sparse
from lit_sparse.records.graph import GraphFile
from lit_sparse.records.graph_summary import read_summary
from lit_sparse.transcoders import Transcoder, TranscoderConfig, load_transcoder, save_transcoder

PROMPT = "12+34=0"


def random_transcoder(folder, name, model, layers=2):
    torch.manual_seed(len(name))
    transcoder = Transcoder(TranscoderConfig(features=12, k=4), layers, width=16)
    with torch.no_grad():
        for decoder in transcoder.W_dec:
            decoder.normal_(std=0.1)
    save_transcoder(transcoder, folder, model_name=name, model_digest=digest_of(model), measured={})
    return folder


@pytest.fixture(scope="module")
def models(llama_folder, character_tokenizer, tmp_path_factory):
    """A sparse model and its base, by folder, and the folders of their transcoders."""
    folder = tmp_path_factory.mktemp("graph")
    sparse = sparsify(load_model(str(llama_folder)), {"threshold": 0.15})
    export_sparse(sparse, folder / "sparse", measured={"model": str(llama_folder)}, tokenizer=character_tokenizer)
    random_transcoder(folder / "sparse-transcoder", "sparse", sparse)
    random_transcoder(folder / "base-transcoder", "base", load_model(str(llama_folder)))
    # what training writes beside the weights
    context = {"tokens": ["a", " </script><script>"], "values": [0.5, 2.0], "peak": 1}
    features = {f"{layer}_{feature}": [context] for layer in range(2) for feature in range(12)}
    (folder / "sparse-transcoder" / "examples.json").write_text(json.dumps({"features": features}))
    return {
        "--model": folder / "sparse",
        "--transcoders": folder / "sparse-transcoder",
        "--against_transcoders": folder / "base-transcoder",
    }


def call(options, **more):
    words = {**options, **{f"--{name}": value for name, value in more.items()}}
    graph.COMMAND.call([str(part) for pair in words.items() for part in pair])


def test_the_same_graph_in_python(models, tmp_path):
    call(models, prompt=PROMPT, out=tmp_path / "out")
    folder, name = models["--transcoders"], str(models["--model"])
    sparse, tokenizer = load_sparse(name), load_tokenizer(name)
    made = prompt_graph(sparse, tokenizer, PROMPT, folder, name=name)
    written = GraphFile.load(tmp_path / "out" / "graph.json")
    assert (made.nodes, made.links) == (written.nodes, written.links)
    assert made.metadata.summary.model_copy(update={"seconds": 0.0}) == written.metadata.summary.model_copy(
        update={"seconds": 0.0}
    )
    with pytest.raises(ValueError, match="another model"):
        prompt_graph(sparse, tokenizer, PROMPT, models["--against_transcoders"])


def test_one_prompt_in_two_models(models, tmp_path, capsys):
    call(models, prompt=PROMPT, out=tmp_path / "out")
    graph = GraphFile.load(tmp_path / "out" / "graph.json")
    summary = read_summary(tmp_path / "out" / "summary.json").prompts[0]
    assert summary.sparse and summary.against is not None and not summary.against.sparse
    assert summary.model_digest == digest_of(load_sparse(models["--model"]))
    assert summary.against.model_digest.startswith("dense-")
    assert summary.prompt == PROMPT and summary.nodes == len(graph.nodes) and summary.links == len(graph.links)
    assert summary.attention_edges < summary.against.attention_edges == summary.against.allowed_attention_edges
    assert "".join(graph.metadata.prompt_tokens) == PROMPT
    page = (tmp_path / "out" / "graph.html").read_text()
    assert "</script><script>" not in page.partition('type="application/json"')[2].partition("</script>")[0]
    assert "Attribution graphs" in capsys.readouterr().out


def test_the_file_says_what_the_graph_says(models, tmp_path):
    """Every link of the file is an edge of the pruned graph, with its weight, between the nodes that it names."""
    call(models, prompt=PROMPT, out=tmp_path / "out")
    file = GraphFile.load(tmp_path / "out" / "against.json")
    tokenizer = load_tokenizer(str(models["--model"]))
    base = json.loads((models["--model"] / "sparse.json").read_text())["measured"]["model"]
    transcoder = load_transcoder(models["--against_transcoders"])
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    graph = prune(build_graph(load_model(base), transcoder, ids), 0.8, 0.98)
    names = [node.node_id for node in file.nodes]
    assert len(names) == len(graph.nodes)
    links = {(link.source, link.target): link.weight for link in file.links}
    assert len(links) == len(graph.edges)
    for source, target, weight in zip(graph.edges.source, graph.edges.target, graph.edges.weight, strict=True):
        assert links[names[source], names[target]] == pytest.approx(float(weight), rel=1e-5, abs=1e-7)
    heads = [node for node, kind in zip(file.nodes, graph.nodes.kind, strict=True) if kind == Kind.HEAD]
    assert heads and all(node.feature_type == "lorsa" for node in heads)
    for node in heads:
        assert sum(weight for _, weight in node.attention) == pytest.approx(1, rel=1e-5)  # dense: a softmax
        traced = node.qk_tracing_results
        assert traced is not None and traced.key == node.attention[0][0]
        pairs = sum(value for *_, value in traced.pair_wise_contributors)
        assert pairs + traced.remainder == pytest.approx(traced.attention_logit, abs=1e-4)


def test_many_prompts_and_a_second_call(models, tmp_path, monkeypatch, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("12+34=0\n\n99+01=1\n55+55=\n")
    out = tmp_path / "out"
    call(models, prompts=prompts, out=out)
    result = read_summary(out / "summary.json")
    assert [one.prompt for one in result.prompts] == ["12+34=0", "99+01=1", "55+55="]
    counts = [one.heads_for_80 for one in result.prompts]
    assert result.models[0].measured["heads_for_80"].mean == pytest.approx(sum(counts) / 3)
    assert result.fewer_heads is not None and (out / "heads.png").stat().st_size > 1000
    assert all((out / one.page).is_file() for one in result.prompts)
    assert "mean (spread)" in capsys.readouterr().out
    (out / "001" / "summary.json").unlink()  # as if interrupted before the second prompt was finished
    before = (out / "000" / "graph.json").stat().st_mtime_ns
    call(models, prompts=prompts, out=out)
    assert (out / "000" / "graph.json").stat().st_mtime_ns == before
    assert (out / "001" / "summary.json").is_file()
    again = read_summary(out / "summary.json")
    assert [one.heads_for_80 for one in again.prompts] == counts
    call({**models, "--node_share": 0.5}, prompts=prompts, out=out)
    assert (out / "000" / "graph.json").stat().st_mtime_ns > before, "other settings are other graphs"


def test_a_dense_model_by_itself(models, tmp_path):
    base = json.loads((models["--model"] / "sparse.json").read_text())["measured"]["model"]
    call({"--model": base, "--transcoders": models["--against_transcoders"]}, prompt=PROMPT, out=tmp_path, answer="7")
    summary = read_summary(tmp_path / "summary.json").prompts[0]
    assert summary.against is None and not summary.sparse and summary.answer == "7"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--prompts": "nothing.txt"}, "no file of prompts"),
        ({"--prompt": ""}, "prompt is empty"),
        ({"--prompt": "7"}, "needs at least two tokens, .*; '7' became one: '7'"),
        ({"--prompt": PROMPT, "--prompts": "x"}, "either --prompt TEXT or --prompts FILE"),
        ({"--prompt": PROMPT, "--node_share": "0"}, "share of the influence"),
        ({"--prompt": PROMPT, "--explained_heads": "-1"}, "number of head nodes"),
        ({"--prompt": PROMPT, "--transcoders": "nowhere"}, "no transcoder folder"),
        ({"--prompt": "1" * 40}, "the model reads 32 at most"),
        ({"--prompt": PROMPT, "--answer": "12"}, "answer"),
    ],
)
def test_mistakes(models, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        call({**models, **changes}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing is written before everything is known to fit"


@pytest.mark.parametrize("side", ["--transcoders", "--against_transcoders"])
def test_transcoders_of_another_model(models, tmp_path, side):
    """Of the same shape: only what they record tells them apart."""
    other = {"--transcoders": "--against_transcoders", "--against_transcoders": "--transcoders"}[side]
    with pytest.raises(ValueError, match=r"trained on another model \((base|sparse)\) than .*; name or train"):
        call({**models, side: models[other]}, prompt=PROMPT, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_transcoders_of_another_shape(models, tmp_path):
    other = random_transcoder(tmp_path / "other", "other", load_sparse(models["--model"]), layers=3)
    with pytest.raises(ValueError, match="trained on another model"):
        call({**models, "--transcoders": other}, prompt=PROMPT, out=tmp_path / "out")


def test_transcoders_that_do_not_say_whose_they_are(models, tmp_path, monkeypatch):
    other = random_transcoder(tmp_path / "other", "other", load_sparse(models["--model"]))
    config = yaml.safe_load((other / "config.yaml").read_text())
    del config["lit_sparse"]["model_digest"]
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr("lit_sparse.models.compared.load_any", lambda *args, **keys: pytest.fail("too early"))
    with pytest.raises(ValueError, match=r"older version.*make it again"):
        call({**models, "--transcoders": other}, prompt=PROMPT, out=tmp_path / "out")
