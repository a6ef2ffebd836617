"""Attribution graphs and transcoders between lit_sparse and circuit-tracer: its published models read our graph.json,
its local viewer serves and reads it, and transcoders of either load in the other with equal outputs."""

import functools
import json
import os
import shutil
import subprocess
import threading
import urllib.request

import pytest
import torch
import yaml

from lit_sparse import sparsify
from lit_sparse.attribution import build_graph
from lit_sparse.attribution.prompt import prompt_graph
from lit_sparse.models.base import load_model
from lit_sparse.models.digest import digest_of
from lit_sparse.records.graph import ERROR, FEATURE, HEAD, LOGIT, TOKEN, GraphFile
from lit_sparse.transcoders import Transcoder, TranscoderConfig, load_transcoder, save_transcoder
from tests.interop.packages import needed
from tests.report.graph_example import make_graph

graph_models = needed("circuit_tracer.frontend.graph_models")


def drawn(transcoder):
    """Weights at random, thresholds positive; its width is 16, that of the tiny llama."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in transcoder.named_parameters():
            parameter.normal_(std=0.3)
            if "threshold" in name:
                parameter.abs_()
    return transcoder


@pytest.fixture(scope="module")
def graph(llama_folder, character_tokenizer, tmp_path_factory):
    """The graph of a prompt in a sparse model."""
    model = sparsify(load_model(str(llama_folder)), {"threshold": 0.15})
    transcoder = drawn(Transcoder(TranscoderConfig(features=40, k=6), 2, 16))
    folder = tmp_path_factory.mktemp("transcoders") / "t"
    save_transcoder(transcoder, folder, model_name="tiny", model_digest=digest_of(model), measured={})
    return prompt_graph(model, character_tokenizer, "12+34=0", folder)


@pytest.fixture(scope="module")
def data(graph, tmp_path_factory):
    """A folder for the viewer, as the how-to guide makes it: a real graph, and a larger one of random numbers."""
    from circuit_tracer.frontend.utils import add_graph_metadata

    folder = tmp_path_factory.mktemp("viewer")
    for one in (graph, make_graph(nodes=80, links=300)):
        path = one.write(folder / f"{one.metadata.slug}.json")
        theirs = graph_models.Model.model_validate_json(path.read_bytes())
        add_graph_metadata(theirs.metadata.model_dump(), str(folder))
    return folder


@pytest.fixture(scope="module")
def viewer(data, tmp_path_factory):
    """serve(**pages) -> the address of their server with these pages beside the viewer's own, on this machine only."""
    from circuit_tracer.frontend.local_server import DEFAULT_FRONTEND_DIR, CircuitGraphHandler, ReusableTCPServer

    servers = []

    def serve(**pages):
        folder = tmp_path_factory.mktemp("frontend") / "assets"
        shutil.copytree(str(DEFAULT_FRONTEND_DIR), folder)
        for name, text in pages.items():
            (folder / f"{name}.html").write_text(text)
        handler = functools.partial(CircuitGraphHandler, frontend_dir=folder, data_dir=str(data))
        servers.append(ReusableTCPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_their_models_read_our_file(graph, data):
    content = (data / f"{graph.metadata.slug}.json").read_bytes()
    theirs = graph_models.Model.model_validate_json(content)
    assert len(theirs.nodes) == len(graph.nodes) and len(theirs.links) == len(graph.links)
    ids = {node.node_id for node in theirs.nodes}
    assert all(
        set(link) == {"source", "target", "weight"} and {link["source"], link["target"]} <= ids for link in theirs.links
    )
    # what they read and write again is a graph of ours
    back = GraphFile.model_validate_json(theirs.model_dump_json())
    assert [node.node_id for node in back.nodes] == [node.node_id for node in graph.nodes]


def test_nodes_are_as_theirs(graph):
    """Features, tokens and logits, as their own functions make them."""
    make = graph_models.Node
    layers = 2
    kinds = set()
    for ours in graph.nodes:
        parts = ours.node_id.split("_")
        kinds.add(ours.feature_type)
        if ours.feature_type == FEATURE:
            theirs = make.feature_node(
                int(parts[0]), int(parts[2]), int(parts[1]), influence=ours.influence, activation=ours.activation
            )
        elif ours.feature_type == TOKEN:
            theirs = make.token_node(int(parts[2]), int(parts[1]), influence=ours.influence)
        elif ours.feature_type == LOGIT:
            theirs = make.logit_node(
                int(parts[2]), int(parts[1]), ours.clerp.split('"')[1], layers, ours.is_target_logit, ours.token_prob
            )
        else:
            continue
        written = theirs.model_dump()
        if ours.feature_type != LOGIT:
            written["clerp"] = ours.clerp  # they have no labels for these
        else:
            written |= {"activation": ours.activation, "influence": ours.influence}
        if ours.feature_type == TOKEN:
            written["activation"] = ours.activation
        assert {name: getattr(ours, name) for name in written} == written
    assert kinds == {FEATURE, TOKEN, LOGIT, ERROR, HEAD}


def test_nothing_that_pruning_kept_is_hidden_at_first(graph):
    """The viewer begins with the nodes whose influence is at most node_threshold."""
    body = [node for node in graph.nodes if node.feature_type in (FEATURE, ERROR, HEAD)]
    assert max(node.influence for node in body) <= graph.metadata.node_threshold
    assert 0.8 <= graph.metadata.node_threshold < 0.95


def test_it_is_served(graph, data, viewer):
    address = viewer()
    with urllib.request.urlopen(f"{address}/data/graph-metadata.json", timeout=10) as answer:
        graphs = json.load(answer)["graphs"]
    assert [one["slug"] for one in graphs] == [graph.metadata.slug, "example"]
    with urllib.request.urlopen(f"{address}/graph_data/{graph.metadata.slug}.json", timeout=10) as answer:
        assert json.load(answer) == graph.as_json()
    with urllib.request.urlopen(f"{address}/index.html", timeout=10) as answer:
        assert b"Attribution Graphs" in answer.read()


def test_what_is_saved_there_is_read_here(graph, data, viewer):
    """The viewer's button sends its address's parameters, which are text or null."""
    first, second = (node.node_id for node in graph.nodes[:2])
    parameters = {
        "pinnedIds": f"{first},{second}", "supernodes": json.dumps([["both", first, second]]), "linkType": None,
        "clickedId": first, "sg_pos": None, "pruningThreshold": "0.7", "clerps": "[]",
    }  # fmt: skip
    path = data / f"{graph.metadata.slug}.json"
    before = path.read_bytes()
    try:
        body = json.dumps({"qParams": parameters, "timestamp": "now"}).encode()
        request = urllib.request.Request(f"{viewer()}/save_graph/{graph.metadata.slug}", body, method="POST")
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200
        saved = GraphFile.load(path)
    finally:
        path.write_bytes(before)
    assert saved.qParams.pinnedIds == [first, second] and saved.qParams.supernodes == [["both", first, second]]
    assert saved.qParams.linkType == "both" and saved.qParams.clickedId == first
    assert saved.nodes == graph.nodes


# Their page loads d3 from the network. The part that reads graphs needs four functions of it, which are here.
READER = """<!DOCTYPE html><meta charset="utf-8"><pre id="result"></pre><script>
window.isLocalServing = true
const key = (by) => by ?? ((d) => d)
window.d3 = {
  max: (all, by) => Math.max(...all.map(key(by)).filter((d) => !isNaN(d))),
  sum: (all, by) => all.map(key(by)).reduce((a, b) => a + (+b || 0), 0),
  sort: (all, by) => [...all].sort((a, b) => key(by)(a) - key(by)(b)),
  nestBy: (all, by) => [...all.reduce((m, d) => m.set(by(d), [...(m.get(by(d)) ?? []), d]), new Map()).values()],
}
</script>
<script src="./util.js"></script><script src="./attribution_graph/util-cg.js"></script><script>
async function read({slug, node_threshold}) {
  const file = await util.getFile(`./graph_data/${slug}.json`)
  const visState = {pruningThreshold: node_threshold, pinnedIds: [], isHideLayer: false}
  const data = await utilCg.formatData(file, visState)
  return {
    nodes: data.nodes.map((d) => d.nodeId), features: data.features.length, links: data.links.length,
    labels: data.nodes.filter((d) => d.feature_type == "cross layer transcoder")
      .map((d) => [d.nodeId, util.cantorUnpair(d.featureIndex)]),
    logits: data.nodes.filter((d) => d.feature_type == "logit").map((d) => [d.logitToken, d.logitPct]),
  }
}
(async () => {
  const {graphs} = await util.getFile("./data/graph-metadata.json", false)
  const found = await Promise.all(graphs.map(read)).catch((error) => String(error.stack))
  document.getElementById("result").textContent = JSON.stringify(found)
})()
</script>"""


def test_their_viewer_reads_it(graph, viewer, tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    if browser is None:
        assert os.environ.get("LIT_SPARSE_REQUIRE_CHROMIUM") != "1", "no Chromium on the PATH"
        pytest.skip("no Chromium on the PATH")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-dev-shm-usage", f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000", "--dump-dom",
        f"{viewer(reader=READER)}/reader.html",
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout.decode()
    found = json.loads(
        dom.split('<pre id="result">')[1]
        .split("</pre>")[0]
        .replace("&amp;", "&")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
    )
    assert isinstance(found, list), found
    for file, read in zip((graph, make_graph(nodes=80, links=300)), found, strict=True):
        shown = {
            node.node_id for node in file.nodes
            if node.feature_type in (TOKEN, LOGIT) or node.influence <= file.metadata.node_threshold
        }  # fmt: skip
        assert set(read["nodes"]) == shown and read["features"] == len(shown), "two nodes are taken for one"
        assert read["links"] == sum(link.source in shown and link.target in shown for link in file.links)
        for node_id, (layer, feature) in read["labels"]:
            assert node_id.startswith(f"{layer}_{feature}_")
        assert len(read["logits"]) == sum(node.feature_type == LOGIT for node in file.nodes)
    assert set(found[0]["nodes"]) == {node.node_id for node in graph.nodes}


def write_config(folder, kind, reads="mlp.hook_in", writes="hook_mlp_out"):
    """config.yaml of a repository of transcoders."""
    description = {
        "model_name": "some/model", "model_kind": kind, "scan": "some/transcoders", "feature_input_hook": reads,
        "feature_output_hook": writes,
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(description))


@pytest.mark.parametrize("jump", [True, False], ids=["jumprelu", "relu"])
@torch.no_grad()
def test_their_set_of_transcoders_loads(jump, tmp_path, llama_folder):
    from circuit_tracer.transcoder.activation_functions import JumpReLU
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet

    theirs = {
        layer: SingleLayerTranscoder(
            16, 40, JumpReLU(torch.zeros(40)) if jump else torch.nn.functional.relu, layer, dtype=torch.float32
        )
        for layer in range(2)
    }
    whole = TranscoderSet(theirs, "mlp.hook_in", "mlp.hook_out")
    drawn(whole).to_safetensors(str(tmp_path))
    write_config(tmp_path, "transcoder_set", writes="mlp.hook_out")
    ours = load_transcoder(tmp_path)
    inputs = torch.randn(2, 7, 16)
    torch.testing.assert_close(ours.encode(inputs), whole.encode(inputs))
    torch.testing.assert_close(ours(inputs), whole.decode(whole.encode(inputs), inputs))
    model = sparsify(load_model(str(llama_folder)), {"threshold": 0.15})
    assert len(build_graph(model, ours, torch.tensor([[1, 2, 10, 3, 11]])).nodes)


@pytest.mark.parametrize("jump", [True, False], ids=["jumprelu", "relu"])
@pytest.mark.parametrize("reads", ["mlp.hook_in", "hook_resid_mid"])
@torch.no_grad()
def test_their_cross_layer_transcoder_loads(jump, reads, tmp_path, llama_folder):
    from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder

    theirs = CrossLayerTranscoder(
        2, 40, 16, activation_function="jump_relu" if jump else "relu", lazy_decoder=False, dtype=torch.float32
    )
    drawn(theirs).to_safetensors(str(tmp_path))
    write_config(tmp_path, "cross_layer_transcoder", reads=reads)
    ours = load_transcoder(tmp_path)
    assert ours.reads == reads
    inputs = torch.randn(2, 7, 16)
    torch.testing.assert_close(ours.encode(inputs), theirs.encode(inputs))
    torch.testing.assert_close(ours(inputs), theirs(inputs), rtol=1e-4, atol=1e-5)
    model = sparsify(load_model(str(llama_folder)), {"threshold": 0.15})
    assert len(build_graph(model, ours, torch.tensor([[1, 2, 10, 3, 11]])).nodes)


@torch.no_grad()
def test_what_ours_has_no_place_for_is_refused(tmp_path):
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet

    skipping = SingleLayerTranscoder(16, 40, torch.nn.functional.relu, 0, skip_connection=True, dtype=torch.float32)
    drawn(TranscoderSet({0: skipping}, "mlp.hook_in", "hook_mlp_out")).to_safetensors(str(tmp_path))
    write_config(tmp_path, "transcoder_set")
    with pytest.raises(ValueError, match="W_skip_0"):
        load_transcoder(tmp_path)


@torch.no_grad()
def test_our_cross_layer_transcoder_loads_there(tmp_path):
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt

    ours = drawn(Transcoder(TranscoderConfig(features=40, activation="jumprelu"), 2, 16))
    save_transcoder(ours, tmp_path / "t", model_name="m", model_digest="", measured={})
    theirs = load_clt(str(tmp_path / "t"), dtype=torch.float32, lazy_decoder=False, device=torch.device("cpu"))
    inputs = torch.randn(2, 7, 16)
    torch.testing.assert_close(theirs(inputs), ours(inputs), rtol=1e-4, atol=1e-5)
