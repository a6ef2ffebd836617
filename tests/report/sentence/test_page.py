"""The page of a sentence's circuit, looked at in Chromium."""

import ast
import re

import pytest

from lit_sparse.records.sentence_circuit import KeptEdge, SentenceCircuit, SentenceCircuits, by_strength
from lit_sparse.report.sentence.page import encode_circuit, sentence_html, write_sentence_page
from lit_sparse.report.sentence.plot import circuit_figure
from lit_sparse.report.sentence.snippet import snippet
from lit_sparse.report.shared import style
from tests.report.sentence_example import HOSTILE, make_circuit, make_two, many_edges

# What a reader does with keyboard and mouse; runs in a test's copy of the page, after its own script.
DRIVER = """<script>
const section = document.querySelector(".model");
const all = (selector) => [...section.querySelectorAll(selector)];
const at = (selector) => section.querySelector(selector);
const key = (name) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
const state = () => ({
  arcs: all(".arc").length, names: all(".name").length, on: all(".arc.on").length, reading: at(".reading").textContent,
  current: all(".kept tr.current").length, off: all(".axis .off").length, first: at(".kept tbody tr").textContent,
  focus: document.activeElement.textContent, stops: all("button, svg").filter((one) => one.tabIndex === 0).length,
  sorted: all("[aria-sort]").map((one) => one.textContent + " " + one.getAttribute("aria-sort")),
});
const seen = {};
seen.start = state();
at("svg").focus(); seen.edge = state();
key("ArrowUp"); seen.next = state();
key("Escape"); seen.escaped = state();
all(".axis button")[0].focus(); key("End"); seen.token = state();
key("Home"); seen.unused = state();
document.activeElement.blur();
all(".kept tbody button")[0].focus(); key("ArrowDown"); seen.row = state();
document.activeElement.blur();
all(".hit").at(-1).dispatchEvent(new MouseEvent("mouseenter")); seen.hover = state();
all(".hit").at(-1).dispatchEvent(new MouseEvent("mouseleave")); seen.left = state();
at("[data-sort=layer]").click(); seen.layer = state();
at("[data-sort=layer]").click(); seen.layerDown = state();
at("[data-sort=effect]").click(); seen.effect = state();
const result = document.createElement("pre");
result.id = "result";
result.textContent = btoa(encodeURIComponent(JSON.stringify(seen)));
document.body.append(result);
</script>"""


def circuits(*some: SentenceCircuit) -> SentenceCircuits:
    return SentenceCircuits(circuits=list(some))


@pytest.fixture
def hostile() -> SentenceCircuit:
    changes = {"answer": HOSTILE[1], "wrong": HOSTILE[4], "model": HOSTILE[0]}
    return make_circuit(many_edges(20, len(HOSTILE)), HOSTILE, layers=30, **changes)


def test_page_is_one_file_that_loads_nothing(tmp_path):
    two = make_two()
    picture = style.png(circuit_figure(two), dpi=40)
    html = write_sentence_page(two, tmp_path / "circuit.html", picture).read_text()
    assert "default-src 'none'" in html
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert not re.findall(r'(?:src|href)="(?!data:image/png)', html)
    assert "<noscript>" in html and html.index("data:image/png") < html.index("</noscript>")
    assert "Sparse model: 9 of 418 open attention edges are enough: f = 0.93 (asked for 0.9)" in html
    assert "Dense model: 20 of 15,120 open attention edges are enough" in html
    assert "The sparse model needs 9 attention edges, the dense one 20 (2.22 times as many)." in html


@pytest.mark.parametrize("count", [0, 1, 20, 150])
def test_page_lists_every_edge(count):
    circuit = make_circuit(many_edges(count, 14), layers=30)
    html = sentence_html(circuits(circuit, circuit))
    for edge in circuit.edges:
        key = "itself" if edge.key == edge.query else f"&#34;{circuit.tokens[edge.key]}&#34; ({edge.key})"
        row = f"L{edge.layer} H{edge.head}</button></th><td><bdi>&#34;{circuit.tokens[edge.query]}&#34; ({edge.query})"
        assert html.count(f"{row}</bdi></td><td><bdi>{key}</bdi></td>") == 2
    assert html.count("L1 H") == 2 * sum(edge.layer == 1 for edge in circuit.edges)
    data = encode_circuit(circuit)
    columns = [data[name] for name in ("layer", "head", "query", "key")]
    assert list(zip(*columns, strict=True)) == [edge[:4] for edge in by_strength(circuit.edges)]


def test_page_explains_what_off_and_the_goal_mean():
    assert "An edge that is off <bdi>passes nothing</bdi>." in sentence_html(circuits(make_circuit(off="zero")))
    other = make_circuit(off="corrupted", corrupted="<b>", corrupted_ids=[1] * len(make_circuit().ids))
    html = sentence_html(circuits(other))
    assert "off <bdi>passes its output from the prompt &#34;&lt;b&gt;&#34;</bdi>." in html
    assert "all edges from the other prompt" in html and "no edges<" not in html
    distribution = {"goal": "distribution", "nats": 0.2, "wrong": None, "keep": None, "faithfulness": None}
    html = sentence_html(circuits(make_circuit(**distribution)))
    assert "open attention edges are enough: KL 0.14 nats (at most 0.2)" in html
    assert "At 0 nats\nthey are the same" in html and "KL rises by 0.52" in html and "log-odds of" not in html
    missed = sentence_html(circuits(make_circuit(faithfulness=0.71, controls=[])))
    assert "are not enough: f = 0.71" in missed and 'class="claim no"' in missed and "No control was run" in missed


def test_page_in_chromium(tmp_path, drive_page):
    circuit = make_circuit()
    strong = by_strength(circuit.edges)
    seen = drive_page(write_sentence_page(circuits(circuit, *make_two().circuits[:1]), tmp_path / "a.html"), DRIVER)
    start = seen["start"]
    assert (start["arcs"], start["names"], start["on"], start["off"]) == (20, 20, 0, 9)
    assert start["stops"] == 3 + 4  # the drawing, a token, an edge; and four headings to sort by
    assert start["sorted"] == ["Without this edge descending"] and start["first"].startswith("L9 H9")
    assert seen["edge"]["reading"] == (
        'L0 H1: " John" (9) reads " John" (3) with attention weight 0.91; without this edge f falls by 0.22'
    )
    assert (seen["edge"]["on"], seen["edge"]["current"]) == (1, 1)
    assert seen["next"]["reading"].startswith("L0 H10: ")
    assert "A line is an edge" in seen["escaped"]["reading"] and seen["escaped"]["on"] == 0
    assert seen["token"]["focus"] == "to (13)" and seen["token"]["on"] == 11
    assert "to (13), where the answer is read" in seen["token"]["reading"] and "and 5 more" in seen["token"]["reading"]
    assert "When (0): no edge of the circuit" in seen["unused"]["reading"] and seen["unused"]["stops"] == 7
    assert seen["row"]["focus"] == f"L{strong[1].layer} H{strong[1].head}" and seen["row"]["on"] == 1
    assert seen["hover"]["reading"].startswith("L9 H9: ") and seen["left"]["on"] == 0
    assert seen["layer"]["sorted"] == ["Head ascending"] and seen["layer"]["first"].startswith("L0 H1")
    assert seen["layerDown"]["sorted"] == ["Head descending"] and seen["layerDown"]["first"].startswith("L11 H10")
    assert seen["effect"]["sorted"] == ["Without this edge descending"] and seen["effect"]["first"] == start["first"]
    assert seen["effect"]["stops"] == 7


@pytest.mark.parametrize("count", [0, 1, 150])
def test_other_sizes_in_chromium(tmp_path, open_page, count):
    page = open_page(write_sentence_page(circuits(make_circuit(many_edges(count, 14), layers=30)), tmp_path / "a.html"))
    assert page.console == [] and 'data-ready="yes"' in page.dom
    assert page.dom.count('class="hit"') == count
    assert page.dom.count('<g class="name') == (count if count <= 40 else 0)


def test_hostile_page_in_chromium(tmp_path, open_page, hostile):
    html = sentence_html(circuits(hostile, hostile))
    assert html.count("</script>") == 2 and "<img src=x" not in html and "{{ 7 * 7 }}" in html
    path = tmp_path / "hostile.html"
    path.write_bytes(html.encode())
    page = open_page(path)
    assert page.console == []
    assert 'data-ready="yes"' in page.dom and "<title>pwned" not in page.dom
    assert not re.search(r"<img[^>]*onerror", page.dom)
    assert len(re.findall(r'<li[^>]*><button type="button"[^>]*><bdi>', page.dom)) == 2 * len(HOSTILE)


def test_no_text_in_the_data(hostile):
    def leaves(value):
        if isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                yield from leaves(item)
        else:
            yield value

    assert all(isinstance(value, int | float | None) for value in leaves(encode_circuit(hostile)))


@pytest.mark.parametrize("count", [0, 1, 30])
def test_snippet_is_python_that_holds_the_claim(hostile, count):
    edges = many_edges(count, len(HOSTILE))
    text = snippet(hostile.model_copy(update={"edges": edges}), 1)
    literals = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    assert hostile.prompt in literals and hostile.model in literals and 1 in literals
    assert f"keeps its {count} edges" in text


NAMES = """<script>
const outside = [...document.querySelectorAll(".model")].map((model) => {
  const box = model.querySelector("svg").getBoundingClientRect();
  return [...model.querySelectorAll(".name rect")].map((name) => name.getBoundingClientRect())
    .filter((name) => name.left < box.left || name.right > box.right).length;
});
const result = document.createElement("pre");
result.id = "result";
result.textContent = btoa(encodeURIComponent(JSON.stringify(outside)));
document.body.append(result);
</script>"""


def test_names_of_edges_are_not_cut_off_in_a_narrow_window(tmp_path, drive_page):
    tokens = ["a"] * 14
    edges = [KeptEdge(11, 10, 13, 13, 0.9, 0.4), KeptEdge(3, 10, 0, 0, 0.9, 0.3)]
    path = write_sentence_page(circuits(make_circuit(edges, tokens)), tmp_path / "a.html")
    assert drive_page(path, NAMES, size=(480, 800)) == [0]
