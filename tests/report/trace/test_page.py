"""The page of a trace, looked at in Chromium."""

import re

import numpy as np
import pytest

from lit_sparse.common.formatting import visible_token
from lit_sparse.records.trace import Ablation, Trace, TraceEdges
from lit_sparse.report.trace.page import encode_trace, trace_html, write_trace_page
from lit_sparse.report.trace.plot import merged, trace_figure

LAYERS, HEADS = 3, 2

# What a reader does with keyboard and mouse; runs in a test's copy of the page, after its own script.
DRIVER = """<script>
const section = document.querySelector(".model");
const all = (selector) => [...section.querySelectorAll(selector)];
const at = (selector) => section.querySelector(selector);
const [svg, slider] = [at("svg"), at("input")];
const key = (name) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
const state = () => ({
  step: Number(slider.value), text: at(".state").textContent, arcs: all(".arc").length, on: all(".arc.on").length,
  off: all(".axis .off").length, reading: at(".reading").textContent, way: all(".way").length,
  focus: all(".axis button").indexOf(document.activeElement), pressed: at(".chip").getAttribute("aria-pressed"),
  stops: all(".axis button").filter((one) => one.tabIndex === 0).length, cursor: all(".cursor").length,
});
const seen = {};
seen.start = state();
slider.value = slider.max; slider.dispatchEvent(new Event("input")); seen.whole = state();
slider.value = 0; slider.dispatchEvent(new Event("input")); seen.none = state();
at(".chip").click(); seen.shown = state();
slider.value = slider.max; slider.dispatchEvent(new Event("input"));
all(".axis button")[0].focus(); seen.token = state();
key("ArrowRight"); seen.right = state();
key("End"); key("ArrowRight"); seen.end = state();
key("Escape"); seen.escaped = state();
svg.focus(); seen.top = state();
key("ArrowUp"); key("ArrowDown"); seen.down = state();
svg.blur();
at("details").open = true;
all(".edges button")[0].focus(); seen.edge = state();
document.activeElement.blur();
const end = all(".axis button").at(-1).getBoundingClientRect(), box = svg.getBoundingClientRect();
svg.dispatchEvent(new MouseEvent("mousemove", {clientX: end.left + end.width / 2, clientY: box.top + 40}));
seen.hover = state();
svg.dispatchEvent(new MouseEvent("mouseleave")); seen.left = state();
const result = document.createElement("pre");
result.id = "result";
result.textContent = btoa(encodeURIComponent(JSON.stringify(seen)));
document.body.append(result);
</script>"""


def make_trace(tokens: list[str], answer: str = " mat", seed: int = 0, sparse: bool = True) -> Trace:
    """Random edges, all of them on a walk back: every layer reads from every position into the last one."""
    draw = np.random.default_rng(seed)
    size = len(tokens)
    layer, key = (grid.ravel() for grid in np.meshgrid(np.arange(LAYERS), np.arange(size - 1), indexing="ij"))
    contribution = draw.normal(size=len(layer))
    order = np.argsort(-np.abs(contribution))
    head, query = draw.integers(0, HEADS, len(layer)), np.full(len(layer), size - 1)
    edges = TraceEdges(layer, head, query, key, draw.uniform(0, 1, len(layer)), contribution)[order]
    number = len(edges)
    needed = [int(np.flatnonzero(edges.key == token)[0]) + 1 for token in range(size - 1)]
    ablations = [
        Ablation(count, count, len({*edges.key[:count].tolist()}) + 1, 0.8 * count / number)
        for count in sorted({0, 1, number // 2, number})
    ]
    return Trace(
        "tiny", sparse, "".join(tokens), tokens, answer, 7, LAYERS, HEADS, 0.8, [(answer, 0.8), (" hat", 0.1)],
        500, 100, edges, [True] * size, [*needed, 0], [*draw.normal(size=size - 1), 0.0],
        [*([count - 1] for count in needed), []], ablations, 0.9, ablations[-2],
        draw.uniform(0, 0.3, number // 2).tolist(), 1.5,
    )  # fmt: skip


@pytest.fixture
def result() -> Trace:
    return make_trace([" The", " cat", " sat", " on", " the", " mat"])


def test_page_is_one_file_that_loads_nothing(tmp_path, result):
    html = write_trace_page([result, make_trace(result.tokens, seed=1, sparse=False)], tmp_path / "a.html").read_text()
    assert "default-src 'none'" in html
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert not re.findall(r'(?:src|href)="(?!data:image/png)', html)
    assert "The sparse model needs 7 of its 100 open edges for this answer" in html
    assert "with these alone the answer has a probability of 0.373, with all of them 0.800" in html
    assert "gates and softmax normalisers also see the keys of closed edges" in html


def test_page_in_chromium(tmp_path, drive_page, result):
    path = write_trace_page([result, make_trace(result.tokens, seed=1, sparse=False)], tmp_path / "trace.html")
    seen = drive_page(path, DRIVER)
    edges, shown = result.edges, result.shown
    number = len(edges)

    def arcs(count: int) -> int:
        return len(merged(edges[:count]))

    assert seen["start"]["arcs"] == arcs(shown.edges) and seen["start"]["pressed"] == "true"
    assert f"only the first {shown.edges} edges" in seen["start"]["text"]
    assert f"from {shown.tokens} of 6 tokens" in seen["start"]["text"]
    assert seen["start"]["off"] == 6 - shown.tokens
    assert seen["whole"]["arcs"] == arcs(number) == number and seen["whole"]["off"] == 0
    assert seen["whole"]["text"].startswith("p = 0.800 (with all edges 0.800)")
    assert (seen["none"]["arcs"], seen["none"]["off"]) == (0, 5)
    assert seen["shown"]["step"] == seen["start"]["step"]

    assert seen["token"]["on"] == LAYERS and seen["token"]["way"] == 1
    along = "edge" if result.needed[0] == 1 else f"{result.needed[0]} edges"
    assert seen["token"]["reading"].startswith(f"The (0): reaches the answer along the first {along}.")
    assert (seen["right"]["focus"], seen["end"]["focus"], seen["escaped"]["focus"]) == (1, 5, -1)
    assert "the answer is read here" in seen["end"]["reading"] and seen["end"]["stops"] == 1
    assert "mat (5) after the last layer" in seen["top"]["reading"] and seen["top"]["on"] == 5
    assert f"mat (5) before layer {LAYERS - 1}" in seen["down"]["reading"] and seen["down"]["cursor"] == 1
    assert seen["edge"]["on"] == 1
    key = visible_token(result.tokens[edges.key[0]])
    assert f"{edges.layer[0]}.{edges.head[0]}: mat (5) ← {key} ({edges.key[0]})" in seen["edge"]["reading"]
    assert f"circuit without this edge: p = {result.without[0]:.3f}" in seen["edge"]["reading"]
    assert "mat (5) after the last layer" in seen["hover"]["reading"]
    assert "A line is an edge" in seen["left"]["reading"]


def test_hostile_page_in_chromium(tmp_path, open_page, hostile):
    result = make_trace(hostile, answer=hostile[1])
    result.model = hostile[2]
    html = trace_html([result], trace_figure_png(result))
    assert html.count("</script>") == 2 and "<img src=x" not in html
    path = tmp_path / "hostile.html"
    path.write_bytes(html.encode())
    page = open_page(path)
    assert page.console == []
    assert 'data-ready="yes"' in page.dom and "<title>pwned" not in page.dom
    assert not re.search(r"<img[^>]*onerror", page.dom)
    tokens = re.findall(r'<button type="button" tabindex="[-0-9]+"[^>]*>([^<]*)</button>', page.dom)
    assert len(tokens) == len(hostile) and tokens[0] == "&lt;script&gt;document.title='pwned'&lt;/script&gt;"


def test_no_text_in_the_data(result):
    def leaves(value):
        if isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                yield from leaves(item)
        else:
            yield value

    assert all(isinstance(value, int | float) for value in leaves(encode_trace(result)))


def test_figure_draws_every_shown_arc(result):
    other = make_trace(result.tokens, seed=3, sparse=False)
    figure = trace_figure([result, other])
    graphs = [axes for part in figure.subfigs for axes in part.axes if axes.collections]
    for axes, trace in zip(graphs, (result, other), strict=True):
        drawn = {tuple(map(tuple, segment)) for segment in axes.collections[0].get_segments()}
        assert drawn == {((k, la), (q, la + 1)) for la, q, k, _ in merged(trace.edges[: trace.shown.edges])}


def trace_figure_png(result: Trace) -> bytes:
    from lit_sparse.report.shared import style

    return style.png(trace_figure([result]), dpi=40)
