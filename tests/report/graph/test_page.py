"""The explorer of attribution graphs, used in Chromium."""

import base64
import json
import re
import urllib.parse
from pathlib import Path

import pytest

from lit_sparse.records.graph import FEATURE, HEAD, GraphFile
from lit_sparse.report.graph.page import graph_html, write_graph_page
from tests.report.graph_example import make_examples, make_graph

# What a reader does with mouse and keyboard; runs in a test's copy of the page, after its own scripts.
DRIVER = """<script>
(async () => {
const section = document.querySelector(".graph"), graph = GraphPage.graphs[0];
const at = (selector) => section.querySelector(selector);
const all = (selector) => [...section.querySelectorAll(selector)];
const canvas = at("canvas"), list = at("[role=listbox]"), search = at("input[type=search]");
const frame = () => new Promise((done) => setTimeout(done, 20));
const key = (name, target = document.activeElement) => {
  target.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true, cancelable: true}));
};
const mouse = (kind, id, more = {}) => {
  const box = canvas.getBoundingClientRect(), node = graph.model.byId.get(id);
  const place = node.box ? {x: node.box.x + 6, y: node.box.y + 6} : node.group ? node.group : node;
  const there = {clientX: box.left + place.x, clientY: box.top + place.y};
  canvas.dispatchEvent(new MouseEvent(kind, {...there, bubbles: true, ...more}));
};
const state = () => ({
  selected: graph.state.selected && graph.state.selected.id,
  panel: at(".panel").textContent, live: at(".live").textContent,
  pinned: [...graph.state.pinned].map((node) => node.id), groups: graph.now().supernodes, hash: location.hash,
  shown: section.dataset.shown, options: all("[role=option]").filter((one) => !one.hidden).length,
  active: list.getAttribute("aria-activedescendant"), focus: document.activeElement.tagName,
  pins: at(".pins").textContent,
  cursor: graph.state.cursor && graph.state.cursor.id, says: document.getElementById("floor-says").textContent,
});
const seen = {};
const step = async (name) => { await frame(); seen[name] = state(); };
%s
const result = document.createElement("pre");
result.id = "result";
result.textContent = btoa(encodeURIComponent(JSON.stringify(seen)));
document.body.append(result);
})().catch((error) => console.error(error.stack));
</script>"""


@pytest.fixture
def graph() -> GraphFile:
    return make_graph()


def drive(open_page, path: Path, script: str, fragment: str = "") -> dict:
    """What `seen` holds after the script ran in a copy of the page."""
    driven = path.with_name("driven.html")
    early = "window.requestAnimationFrame = (work) => setTimeout(work, 0);"  # virtual time may wait long for a frame
    early += f"location.hash = {json.dumps(fragment)};" if fragment else ""
    text = path.read_text().replace("<main>", f"<script>{early}</script><main>", 1)
    driven.write_text(text.replace("</body>", DRIVER % script + "</body>"))
    page = open_page(driven)
    assert page.console == []
    return json.loads(urllib.parse.unquote(base64.b64decode(page.text_of("result")).decode()))


def test_page_is_one_file_that_loads_nothing(tmp_path, graph):
    html = write_graph_page([graph, make_graph(sparse=False, seed=1)], tmp_path / "new" / "graph.html").read_text()
    assert "default-src 'none'" in html
    assert not re.findall(r"https?://", html)
    assert not re.findall(r'(?:src|href)="', html)
    assert "80 % of the attention attribution to the answer comes from 5 heads in the sparse model" in html
    assert "from 41 heads in the dense model" in html
    assert "60 nodes (18 heads)" in html and "replacement error 0.310" in html


def test_number_of_graphs_and_examples_is_checked(graph):
    with pytest.raises(ValueError, match="one graph or two, not 0"):
        graph_html([])
    with pytest.raises(ValueError, match="one graph or two, not 3"):
        graph_html([graph] * 3)
    with pytest.raises(ValueError, match="2 graphs need as many examples, not 1"):
        graph_html([graph, graph], [None])


def test_examples_of_absent_features_stay_out(graph):
    examples = make_examples(graph)
    found = dict(examples.features)
    found["3_9999"] = found[next(iter(found))]
    html = graph_html([graph], [examples.model_copy(update={"features": found})])
    assert '"3_9999"' not in html and html.count('"peak"') == 3 * len(examples.features)


def test_clicks(tmp_path, open_page, graph):
    feature = next(node for node in graph.nodes if node.feature_type == FEATURE and node.own_influence > 0.01)
    heads = [node for node in graph.nodes if node.feature_type == HEAD]
    traced = next(node for node in heads if node.qk_tracing_results is not None)
    untraced = next(node for node in heads if node.qk_note)
    path = write_graph_page([graph], tmp_path / "graph.html", [make_examples(graph)])
    seen = drive(open_page, path, f"""
await step("start");
mouse("click", {feature.node_id!r}); await step("feature");
mouse("click", {feature.node_id!r}); await step("again");
mouse("click", {traced.node_id!r}); await step("head");
mouse("click", {untraced.node_id!r}); await step("untraced");
mouse("mousemove", {feature.node_id!r}); await frame(); seen.hover = graph.state.hover.id;
mouse("click", "E_100_0"); await step("token");
at(".panel .node").click(); await step("end");
for (const more of all(".panel .more")) more.click();
mouse("click", {feature.node_id!r}, {{shiftKey: true}}); await step("pinned");
canvas.dispatchEvent(new MouseEvent("click", {{clientX: 1, clientY: 1}})); await step("nothing");
""")  # fmt: skip
    assert seen["start"]["selected"] is None and "Choose a node" in seen["start"]["panel"]
    assert seen["start"]["shown"] == "60 240"
    assert seen["feature"]["selected"] == feature.node_id
    assert "Texts with the highest activation" in seen["feature"]["panel"] and "activation" in seen["feature"]["panel"]
    inputs = [link for link in graph.links if link.target == feature.node_id]
    outputs = [link for link in graph.links if link.source == feature.node_id]
    assert f"Inputs: {len(inputs)}" in seen["feature"]["panel"]
    assert f"Outputs: {len(outputs)}" in seen["feature"]["panel"]
    assert f"{len(inputs)} input" in seen["feature"]["live"] and "strongest" in seen["feature"]["live"]
    assert seen["again"]["selected"] is None
    position = {node.node_id: node.ctx_idx for node in graph.nodes}
    read = {position[link.source] for link in graph.links if link.target == traced.node_id}
    keys = len(read | {key for key, _ in traced.attention})
    assert f"Keys it reads: {keys}" in seen["head"]["panel"]
    assert "The gate is open: its logit is +2.10, with a cutoff of \u22124.60" in seen["head"]["panel"]
    assert "Pairs of writers: at the query" in seen["head"]["panel"]
    assert untraced.qk_note in seen["untraced"]["panel"]
    assert seen["hover"] == feature.node_id
    assert (
        seen["token"]["selected"] == "E_100_0" and "No node of the graph has a link into it" in seen["token"]["panel"]
    )
    assert seen["end"]["selected"] in {link.target for link in graph.links if link.source == "E_100_0"}
    assert seen["pinned"]["pinned"] == [feature.node_id] and seen["pinned"]["selected"] == seen["end"]["selected"]
    assert seen["nothing"]["selected"] is None


def test_keys_groups_and_address(tmp_path, open_page, graph):
    path = write_graph_page([graph], tmp_path / "graph.html", [make_examples(graph)])
    script = """
key("/", document.body); await step("searching");
search.value = "head 1."; search.dispatchEvent(new Event("input")); await step("found");
key("ArrowDown"); await step("first"); key("Enter"); await step("entered");
canvas.focus(); key("p"); await step("one");
key("g"); await step("few");
key("ArrowUp"); await step("up"); key("p"); await step("two");
key("g"); seen.asking = !at(".naming").hidden && document.activeElement.type;
document.activeElement.value = "say <b>small</b>"; at(".naming").requestSubmit(); await step("group");
seen.label = at(".panel h3").textContent;
window.Blob = class extends Blob { constructor(parts) { super(parts); seen.file = JSON.parse(parts[0]); } };
HTMLAnchorElement.prototype.click = function () { seen.download = this.download; };
at(".download").click();
at(".panel .actions .chip").click(); at(".naming input").value = "other"; at(".naming").requestSubmit(); await step("renamed");
canvas.focus(); key("Escape"); await step("escaped");
search.focus(); key("Escape"); await step("cleared");
document.getElementById("floor").value = 8; document.getElementById("floor").dispatchEvent(new Event("input")); await step("floor");
document.getElementById("reach").value = 30; document.getElementById("reach").dispatchEvent(new Event("input")); await step("reach");
"""  # noqa: E501
    seen = drive(open_page, path, script)
    assert seen["searching"]["focus"] == "INPUT"
    count = sum(node.feature_type == HEAD and node.layer == "1" for node in graph.nodes)
    assert seen["found"]["options"] == count > 1
    assert seen["first"]["active"] and seen["first"]["cursor"].startswith("1_h")
    assert seen["entered"]["selected"] == seen["first"]["cursor"]
    assert seen["one"]["pinned"] == [seen["entered"]["selected"]]
    assert "at least two" in seen["few"]["live"]
    assert seen["up"]["cursor"] != seen["entered"]["selected"] and seen["up"]["live"].count(".") >= 2
    assert len(seen["two"]["pinned"]) == 2 and "Group pinned" in seen["two"]["pins"]
    assert seen["asking"] == "text"
    members = seen["two"]["pinned"]
    assert seen["group"]["groups"] == [["say <b>small</b>", *members]] and seen["group"]["pinned"] == []
    assert seen["label"] == "group “say <b>small</b>” of 2 nodes"
    assert "say <b>small</b> (2)" in seen["group"]["pins"]
    assert int(seen["group"]["shown"].split()[0]) == 59
    assert seen["download"] == "example.json"
    file = GraphFile.model_validate(seen["file"])
    assert file.qParams.pinnedIds == members and file.qParams.supernodes == [["say <b>small</b>", *members]]
    assert file.nodes == graph.nodes and file.links == graph.links
    assert seen["renamed"]["groups"] == [["other", *members]]
    assert seen["escaped"]["selected"] is None
    assert seen["cleared"]["options"] == 60
    assert seen["floor"]["says"] == "at least 20 % of an input"
    assert int(seen["floor"]["shown"].split()[1]) < 120
    assert int(seen["reach"]["shown"].split()[0]) < 40
    # The address alone brings all of it back.
    again = drive(open_page, path, 'await step("start");', fragment=seen["reach"]["hash"].removeprefix("#"))["start"]
    assert {name: again[name] for name in ("groups", "pinned", "says", "shown")} == {
        name: seen["reach"][name] for name in ("groups", "pinned", "says", "shown")
    }


def test_file_brings_pins_and_groups(tmp_path, open_page, graph):
    ids = [node.node_id for node in graph.nodes[6:10]]
    graph.qParams.pinnedIds, graph.qParams.supernodes, graph.qParams.clickedId = ids, [["both", *ids[:2]]], ids[3]
    path = write_graph_page([graph], tmp_path / "graph.html")
    seen = drive(
        open_page, path, 'await step("start"); location.hash = "graph0=%7Bbroken&floor=abc"; await step("broken");'
    )
    for name in ("start", "broken"):
        assert seen[name]["groups"] == [["both", *ids[:2]]]
        assert seen[name]["pinned"] == ids[2:] and seen[name]["selected"] == ids[3]


def test_two_graphs_have_tabs(tmp_path, open_page, graph):
    path = write_graph_page([graph, make_graph(sparse=False, seed=1, nodes=90, links=600)], tmp_path / "graph.html")
    seen = drive(open_page, path, """
const tabs = [...document.querySelectorAll("[role=tab]")];
const tabState = () => [tabs.map((tab) => tab.getAttribute("aria-selected")), [...document.querySelectorAll(".graph")].map((one) => one.classList.contains("behind"))];
seen.names = tabs.map((tab) => tab.textContent); seen.first = tabState();
tabs[0].focus(); key("ArrowRight"); seen.second = tabState(); seen.moved = document.activeElement.textContent;
seen.counts = GraphPage.graphs.map((one) => one.section.dataset.shown.split(" ").length);
""")  # fmt: skip # noqa: E501
    assert seen["names"] == ["Sparse", "Dense"]
    assert seen["first"] == [["true", "false"], [False, True]]
    assert seen["second"] == [["false", "true"], [True, False]] and seen["moved"] == "Dense"


def test_hostile_text_does_nothing(tmp_path, open_page, hostile):
    graph = make_graph(hostile, answers=(hostile[1], hostile[2]))
    graph.nodes[10].clerp = hostile[1]
    graph.metadata.summary.model = hostile[2]
    graph.metadata.slug = "../../" + hostile[0]
    examples = make_examples(graph)
    html = graph_html([graph], [examples])
    assert html.count("</script>") == 2 and "<!--" not in html and "<img" not in html
    path = tmp_path / "hostile.html"
    path.write_text(html)
    script = "".join(
        f'mouse("click", {node.node_id!r}); await step({node.node_id!r});'
        for node in [*graph.nodes[:10:3], graph.nodes[10], graph.nodes[-1]]
    )
    seen = drive(open_page, path, script + "seen.title = document.title; seen.images = document.images.length;")
    assert seen["title"].startswith("Attribution graph: </script>")
    assert seen["images"] == 0
    assert seen[graph.nodes[0].node_id]["live"].startswith("token “<script>document.…” (0).")
    assert "</script><script>" in seen[graph.nodes[10].node_id]["panel"]


def test_large_graph_is_drawn_fast(tmp_path, open_page):
    graph = make_graph(
        [f" t{i}" for i in range(20)], nodes=2000, links=20_000, layers=30, heads=9, answers=(" a", " b")
    )
    path = write_graph_page([graph], tmp_path / "large.html")
    # Reading a pixel back makes the browser finish the picture, which otherwise waits for the next frame.
    script = """<script>
const graph = GraphPage.graphs[0], canvas = document.querySelector("canvas");
const probe = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const time = (work) => Math.min(...Array.from({length: 5}, () => {
  const began = performance.now(); work(); probe.drawImage(canvas, 0, 0, 1, 1); probe.getImageData(0, 0, 1, 1); return performance.now() - began;
}));
document.body.dataset.start = graph.section.dataset.shown;
const busiest = graph.model.nodes.reduce((a, b) => (a.inputs.length + a.outputs.length > b.inputs.length + b.outputs.length ? a : b));
document.body.dataset.look = time(() => graph.look(busiest));
document.body.dataset.usual = time(() => graph.refresh());
graph.settings.floor = 0;
document.body.dataset.whole = time(() => graph.refresh());
document.body.dataset.all = graph.section.dataset.shown;
</script>"""  # noqa: E501
    path.write_text(path.read_text().replace("</body>", script + "</body>"))
    page = open_page(path, clock="real")
    assert page.console == []
    found = dict(re.findall(r'data-(look|usual|whole|all|start)="([^"]*)"', page.dom))
    assert found["all"] == "2000 20000"
    # Milliseconds without a graphics card, best of five. What follows the pointer has to keep to 50 even where other
    # work takes most of the processor; all links drawn anew, as a slider does, took 90 on a busy core.
    assert float(found["look"]) < 50
    assert float(found["usual"]) < 500
    assert float(found["whole"]) < 1000
