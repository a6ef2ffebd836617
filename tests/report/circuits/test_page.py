import base64
import copy
import json
import re
import urllib.parse
import warnings
from io import BytesIO, StringIO

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from lit_sparse.records.circuits import Behaviour, CircuitExample, Comparison, TaskResult
from lit_sparse.report.circuits.component_graph import Grid, circuit_edges, curve
from lit_sparse.report.circuits.drawing import DRAWN, circuit_drawing
from lit_sparse.report.circuits.explorer import encode_example, encode_task
from lit_sparse.report.circuits.page import circuits_html, write_circuits_page
from lit_sparse.report.circuits.plots import ratio_plot, render_circuits
from lit_sparse.report.circuits.table import circuits_table
from lit_sparse.report.circuits.values import ratio_range, tile_class
from lit_sparse.report.shared import style
from tests.report.circuits_example import make_circuits

TOY = {"layers": 4, "heads_per_layer": 4, "kv_heads_per_layer": 2}
SKIPPED = TaskResult(task="docstring", description="d", skipped="no token for ' ***' [red]")

# What a reader does with keyboard and mouse; runs in a test's copy of the page, after its own script.
DRIVER = """<script>
(() => {
window.requestAnimationFrame = (draw) => draw();
const at = (id) => document.getElementById(id);
const node = (side, name) => document.querySelector(`#drawing-${side} [data-node="${name}"]`);
const all = (selector) => [...document.querySelectorAll(selector)];
const drawn = (part) => all(part + " path").map((one) => one.getAttribute("d")).join("").split("M").length - 1;
const key = (name) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
const sides = (what) => ["base", "sparse"].map(what);
const state = () => ({
  lines: sides((side) => drawn(`#drawing-${side} .lines:nth-of-type(1)`)),
  lit: sides((side) => drawn(`#drawing-${side} .lines:nth-of-type(2)`)),
  nodes: sides((side) => all(`#drawing-${side} .dots g:not([hidden])`).length),
  stops: sides((side) => all(`#drawing-${side} .dots g[tabindex="0"]:not([hidden])`).length),
  caption: sides((side) => at("shown-" + side).textContent), arcs: sides((side) => drawn(`.reads .${side}`)),
  focus: document.activeElement.dataset.node || null, label: document.activeElement.getAttribute("aria-label"),
  tokens: all(".reads li").map((one) => one.textContent), text: at("node").innerText,
});
const slide = (value) => {
  at("edges").value = value;
  at("edges").dispatchEvent(new Event("input"));
};
const seen = {};
seen.start = state();
at("more").click(); seen.more = state();
at("fewer").click(); seen.fewer = state();
slide(0); seen.one = state();
slide(1000); seen.all = state();
node("sparse", "head HEAD").dispatchEvent(new MouseEvent("mouseenter")); seen.hovered = state();
node("sparse", "head HEAD").dispatchEvent(new MouseEvent("mouseleave")); seen.left = state();
node("base", "embedding").focus(); seen.focused = state();
key("ArrowUp"); seen.up = state();
key("Escape"); seen.escaped = state();
at("task").value = "1"; at("task").dispatchEvent(new Event("change")); seen.other = state();
const result = document.createElement("pre");
result.id = "result";
result.textContent = btoa(encodeURIComponent(JSON.stringify(seen)));
document.body.append(result);
})();
</script>"""


@pytest.fixture(scope="module")
def made():
    return make_circuits()


@pytest.fixture
def toy():
    return make_circuits(("ioi", "add"), seeds=2, shape=TOY, edges=(90, 14), tokens=["a", " b", " c"])


def printed(found) -> str:
    output = StringIO()
    Console(width=80, file=output).print(circuits_table(found))
    return output.getvalue()


def test_table_has_every_size_and_fits_80_columns(made):
    found = copy.deepcopy(made)
    found.result.tasks.append(SKIPPED)
    found.result.models.sparse.name = "[red]name[/red]"
    numbers = {"base": 1_234_567.0, "sparse": 123_456.0, "ratio": 0.5, "ratio_low": 0.25, "ratio_high": 104.0}
    found.rows[6] = found.rows[6].model_copy(update=numbers)
    text = printed(found)
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"90 % +95 +40 +2\.38x fewer +1\.23M +123k +2\.00x more +12,025 +908", text)
    assert re.search(r"\n +1\.6-3\.5 +0\.0096-4\.0", text)
    assert re.search(r"95 % +- +64 +- ", text), "a share that is not reached"
    assert "[red]name[/red]" in text and "no token for ' ***' [red]" in text
    assert len(re.findall(r"\d x? *", text)) and text.count("effect") == 3


def test_plots_are_drawn_for_every_measured_task(toy):
    toy.result.tasks[1].base.circuit = None
    toy.result.tasks.append(SKIPPED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots = render_circuits(toy)
    assert set(plots) == {"ratios.png", "ioi_curves.png", "ioi_circuit_base.png", "ioi_circuit_sparse.png",
                          "add_curves.png", "add_circuit_sparse.png"}  # fmt: skip
    for content in plots.values():
        pixels = matplotlib.image.imread(BytesIO(content))
        assert min(pixels.shape[:2]) > 150 and float(np.ptp(pixels[..., :3])) > 0.5


def test_results_with_nothing_in_them_are_shown(toy):
    unknown = dict.fromkeys(("base", "sparse", "ratio", "ratio_low", "ratio_high"))
    toy.rows[:] = [row.model_copy(update=unknown) for row in toy.rows]
    first, second = toy.result.tasks
    for model in (first.base, first.sparse):
        model.runs, model.circuit, model.attention_edges = [], None, {}
    second.sparse = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots = render_circuits(toy)
    assert set(plots) == {"ratios.png", "ioi_curves.png", "add_curves.png", "add_circuit_base.png"}
    html = circuits_html(toy, plots)
    data = json.loads(re.search(r'id="circuits-data">(.*?)</script>', html)[1])
    assert [(task["task"], task["base"] is None, task["sparse"]) for task in data] == [("add", False, None)]
    assert "50 %" in printed(toy)
    nothing = Comparison(toy.result.model_copy(update={"tasks": [SKIPPED]}), [])
    assert render_circuits(nothing) == {}
    assert '<section class="circuits"' not in circuits_html(nothing, {})


def test_the_drawing_shows_the_strongest_edges(made):
    model = made.result.tasks[0].base
    axes = circuit_drawing("ioi", model.shape, model.circuit).axes[0]
    lines = axes.collections[0]
    assert len(lines.get_paths()) == DRAWN
    assert np.all(np.diff(lines.get_linewidths()) >= 0) and lines.get_linewidths()[-1] == 3.0
    assert axes.get_title(loc="left") == "The 60 strongest of 5,321 edges of a circuit that keeps 90 % of the effect"


def test_edges_go_up_and_end_where_they_are_read(made):
    model = made.result.tasks[0].base
    grid = Grid.of(model.shape)
    for edge in circuit_edges(grid, model.circuit):
        heights = [y for _, y in curve(edge)]
        assert heights == sorted(heights)
    assert grid.place("key 3.1").nodes == grid.place("value 3.1").nodes == ("head 3.3", "head 3.4", "head 3.5")
    assert grid.place("query 3.4").nodes == ("head 3.4",)
    assert grid.place("mlp 3").y < grid.place("head 4.0").y < grid.place("mlp 4").y < grid.place("logits").y
    for name in ("head 30.0", "key 3.3", "head 3", "nonsense 1.1", "embedding 0"):
        with pytest.raises(ValueError, match="no writer or reader"):
            grid.place(name)


def test_weak_attention_is_left_out_of_a_large_example():
    edges = [[q, k, (k + 1) / 1000] for q in range(40) for k in range(q + 1)]
    example = CircuitExample(tokens=["t"] * 40, heads={"0.0": edges, "9.9": edges})
    whole, cut = (encode_example(example, {"0.0", "1.1"}, budget) for budget in (10**6, 3000))
    assert whole["floor"] == 0 and whole["attention"]["0.0"][:5] == [820, 0, 1, 40, 1]
    assert cut["floor"] == 0.02 and cut["attention"]["0.0"][0] == 820
    assert cut["attention"]["0.0"][2::2] and min(cut["attention"]["0.0"][2::2]) == 20
    assert set(whole["attention"]) == {"0.0", "1.1"} and whole["attention"]["1.1"] == [0], "a head without open edges"


def test_page_is_one_file_that_loads_nothing(tmp_path, made):
    first = made.result.model_copy(update={"tasks": made.result.tasks[:1]})
    png = render_circuits(Comparison(first, made.rows))
    path = write_circuits_page(made, tmp_path / "deep" / "circuits.html", png)
    html = path.read_text(encoding="utf-8")
    assert (
        "content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\"" in html
    )
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', html))
    assert len(re.findall(r'<img [^>]*alt="[^"]{40,}"', html)) == 2
    assert "<td>95</td><td>40</td>" in html and '<b class="yes">2.38x fewer</b> <small>1.6-3.5</small>' in html
    assert '<b class="">1.92x fewer</b> <small>0.90-3.5</small>' in html, "an interval that holds 1 is no success"
    assert "<td>-</td><td>64</td>" in html and "accuracy 98 % → 95.3 %" in html
    assert '<dd class="">2.59<small>2.23 % of the allowed ones, T = 256</small>' in html
    assert len(html) < 1_500_000


@pytest.mark.parametrize(
    ("values", "words", "css"),
    [
        ([0.231], "4.33x more", "no"),
        ([0.231, 0.8], "1.25x to 4.33x more", "no"),
        ([0.231, 1.2], "4.33x more to 1.20x fewer", "no"),
        ([0.9999, 1.0], "as many", "no"),
        ([1.0, 2.0], "as many to 2.00x fewer", ""),
        ([1.4, 13.2], "1.40x to 13.2x fewer", ""),
        ([], "-", ""),
    ],
)
def test_a_ratio_below_one_is_called_more_and_warned_of(values, words, css):
    assert (ratio_range(values), tile_class(values)) == (words, css)


def test_a_larger_circuit_of_the_sparse_model_is_no_success(toy):
    worse = {"ratio": 0.231, "ratio_low": 0.2, "ratio_high": 0.25}
    toy.rows[:] = [row.model_copy(update=worse) for row in toy.rows]
    html = circuits_html(toy, {})
    assert html.count('<dd class="no">4.33x more<small>') == 2 and "x fewer" not in html
    assert '<b class="no">4.33x more</b> <small>4.0-5.0</small>' in html
    axes = ratio_plot(toy).axes[0]
    assert {text.get_text() for text in axes.texts} == {"4.33x more"}
    assert {line.get_color() for line in axes.lines[1:]} == {style.VERMILLION}


def hostile_circuits(hostile):
    found = make_circuits((hostile[1], "add"), seeds=1, shape=TOY, edges=(90, 14), tokens=hostile)
    found.result.models.sparse.name = hostile[0]
    first, second = found.result.tasks
    second.description = second.skipped = hostile[2]
    first.base.templates = {hostile[1]: Behaviour(accuracy=1.0, clean=1.0, prompts=1)}
    return found


def test_hostile_text_is_escaped(hostile):
    html = circuits_html(hostile_circuits(hostile), {})
    assert re.findall(r"<script[^>]*>", html) == ['<script type="application/json" id="circuits-data">', "<script>"]
    assert html.count("</script>") == 2 and "<img" not in html


def in_browser(open_page, path, made, head="0.0"):
    write_circuits_page(made, path, {})
    path.write_text(path.read_text().replace("</body>", DRIVER.replace("HEAD", head) + "</body>"))
    page = open_page(path)
    assert page.console == [] and 'data-ready="yes"' in page.dom
    assert "<title>Circuits, base against sparse</title>" in page.dom
    return json.loads(urllib.parse.unquote(base64.b64decode(page.text_of("result")).decode()))


def test_page_in_chromium(tmp_path, open_page, made):
    task = encode_task(made.result.tasks[0])
    sparse = made.result.tasks[0].sparse
    edges = circuit_edges(Grid.of(sparse.shape), sparse.circuit)
    head = edges[0].writer.name.removeprefix("head ")
    seen = in_browser(open_page, tmp_path / "page.html", made, head)
    assert seen["start"]["lines"] == [30, 30], "few enough to be read"
    assert seen["more"]["lines"] == [60, 60] and seen["fewer"]["lines"] == [30, 30]
    assert seen["all"]["lines"] == [2000, 402]
    assert "These 30 alone keep about" in seen["start"]["caption"][0]
    assert seen["all"]["nodes"] == [len(task[side]["nodes"]) for side in ("base", "sparse")]
    assert seen["all"]["caption"][0].startswith("2,000 of 5,321 edges that keep 90 % of the effect. These 2,000 alone")
    assert seen["all"]["caption"][0].endswith("The page has no more of them.")
    assert seen["all"]["caption"][1] == "all 402 edges that keep 90 % of the effect."
    assert seen["one"]["lines"] == [1, 1]
    assert seen["one"]["nodes"][1] == len({edges[0].writer.name, *edges[0].reader.nodes, "embedding", "logits"})
    assert all(state["stops"] == [1, 1] for state in seen.values()), "one node of each drawing is in the tab order"

    reads = sum(f"head {head}" in edge.reader.nodes for edge in edges)
    writes = sum(edge.writer.name == f"head {head}" for edge in edges)
    hovered = seen["hovered"]
    assert hovered["lit"][1] == min(reads, 20) + min(writes, 20)
    assert hovered["text"].startswith(f"Head {head}")
    own = [edge for edge in edges if edge.writer.name == f"head {head}"]
    assert f"{sum(edge.score for edge in own):.2g}".replace("-", "\N{MINUS SIGN}") in hovered["text"]
    assert hovered["arcs"][1] == len(sparse.example.heads[head])
    assert f"Sparse model: {hovered['arcs'][1]} of 120 edges open" in hovered["text"]
    assert hovered["tokens"] == [token.strip() for token in sparse.example.tokens]
    assert seen["left"]["lit"] == [0, 0] and seen["left"]["tokens"] == []
    assert seen["focused"]["focus"] == "embedding" and re.match(
        "base: embedding, score \N{MINUS SIGN}[0-9.]+, reads 0 edges, writes [0-9]+ edges", seen["focused"]["label"]
    )
    assert seen["up"]["focus"].startswith("head 0.")
    assert (seen["escaped"]["focus"], seen["escaped"]["lit"]) == (None, [0, 0])
    assert seen["other"]["lines"] == [30, 30]


def test_hostile_page_in_chromium(tmp_path, open_page, hostile):
    found = hostile_circuits(hostile)
    first, second = found.result.tasks
    second.skipped = second.base.circuit = None
    head = next(iter(first.sparse.example.heads))
    seen = in_browser(open_page, tmp_path / "page.html", found, head)
    assert seen["hovered"]["tokens"][:2] == ["<script>document.title='pwned'</script>", hostile[1]]
    assert seen["other"]["caption"][0] == "no circuit of this model keeps this much of the effect"
    assert seen["other"]["lines"][0] == 0 < seen["other"]["lines"][1]
