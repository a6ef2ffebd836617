import json
import re

import numpy as np
import pytest

from lit_sparse.records.run import RunRecord
from lit_sparse.records.run_summary import RunSummary
from lit_sparse.report.run.explorer import encode_attention
from lit_sparse.report.run.page import page_html, write_page
from lit_sparse.report.shared.page_data import json_for_html

# What a reader does with keyboard and mouse; runs in a test's copy of the page, after its own script.
DRIVER = """<script>
const at = (id) => document.getElementById(id);
const cell = (l, h) => document.querySelector(`.cell[data-layer="${l}"][data-head="${h}"]`);
const all = (selector) => [...document.querySelectorAll(selector)];
const buttons = all(".tokens button");
const key = (name) => document.activeElement.dispatchEvent(
  new KeyboardEvent("keydown", {key: name, bubbles: true})
);
const weights = (side) => all(".tokens output." + side).map((one) => one.textContent);
const state = () => ({
  layer: at("layer").value, head: at("head").value, focus: buttons.indexOf(document.activeElement),
  before: weights("before"), after: weights("after"), reading: at("reading").textContent,
  arcs: ["before", "after"].map((side) => all(`svg.${side} path`).length),
  on: ["before", "after"].map((side) => all(`svg.${side} path.on`).length),
  checked: all('.cell[aria-checked="true"]').map(({dataset}) => dataset.layer + "." + dataset.head),
  stops: all(".cell, .tokens button").filter((one) => one.tabIndex === 0).length,
});
const seen = {};
seen.start = state();
cell(1, 1).click(); seen.clicked = state();
at("layer").value = "2"; at("layer").dispatchEvent(new Event("change")); seen.selected = state();
cell(2, 1).focus(); key("ArrowLeft"); key("ArrowUp"); key("ArrowUp"); seen.arrows = state();
buttons[5].focus(); seen.focused = state();
key("ArrowDown"); seen.down = state();
key("End"); key("ArrowDown"); seen.end = state();
key("Escape"); seen.escaped = state();
all(".tokens li")[3].dispatchEvent(new MouseEvent("mouseenter")); seen.hovered = state();
document.querySelector(".tokens").dispatchEvent(new MouseEvent("mouseleave")); seen.left = state();
all(".chip")[1].click(); seen.chip = state();
const result = document.createElement("pre");
result.id = "result";
result.textContent = btoa(encodeURIComponent(JSON.stringify(seen)));
document.body.append(result);
</script>"""


def shown(weight: float) -> str:
    """As beside a token, without the leading zero."""
    if weight >= 0.9995:
        return "1"
    return "" if weight <= 0 else "<.001" if weight < 0.0005 else f"{weight:.3f}"[1:]


@pytest.fixture
def hostile_record(make_record, hostile) -> RunRecord:
    record = make_record(hostile, model=hostile[1])
    foreign = {"note</script>" + hostile[0]: hostile[2]}
    record.summary = RunSummary.model_validate(record.summary.as_json() | foreign)
    record.example.title = hostile[1] + hostile[2]
    return record


def test_page_is_one_file_that_loads_nothing(tmp_path, make_record):
    path = write_page(make_record(), tmp_path / "deep" / "report.html")
    html = path.read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in html
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', html))
    assert len(re.findall(r'<img [^>]*alt="[^"]{40,}"', html)) == 3
    title = "4.77 open edges per query and head (3.71 % of the allowed ones, T = 256), within the tolerance"
    assert f"<h1>{title}</h1>" in html and "43.84 (34.1 %) at the start of training" in html
    assert "The constraint is satisfied" in html
    assert "+0.023" in html and "2.861 → 2.884" in html
    assert all(f"<dt>{term}</dt>" in html for term in ("Edge", "Constraint", "Lambda (λ)"))
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("satisfied", "words"), [(False, "is not satisfied"), (None, "is not known"), (True, "is satisfied")]
)
def test_verdict(satisfied, words, make_record):
    record = make_record()
    record.summary.satisfied = satisfied
    assert words in page_html(record, {})


@pytest.mark.parametrize(
    ("centered", "words"),
    [
        (True, " Where an edge is closed, the head's mean value replaces the value of that key."),
        (False, " Where an edge is closed, that key adds nothing to the head's output."),
        (None, ""),
    ],
)
def test_what_a_closed_edge_gives_is_said_as_far_as_it_is_known(centered, words, make_record):
    record = make_record()
    record.summary.centered = centered
    assert f"the head reads the key.{words}</dd>" in page_html(record, {})


def test_the_split_of_the_figures_is_named(make_record):
    record = make_record()
    assert page_html(record, {}).count("on the test split") == 1
    record.summary.test_tokens = None  # an older record, whose start was measured on the validation split
    assert "on the test split" not in page_html(record, {})


def test_hostile_text_is_escaped(hostile_record):
    html = page_html(hostile_record, {"<b>.png": b""})
    scripts = re.findall(r"<script[^>]*>", html)
    assert scripts == ['<script type="application/json" id="attention-data">', "<script>"]
    assert html.count("</script>") == 2
    assert "<img src=x" not in html and "<b>" not in html.replace("<b>Base model</b>", "").replace(
        "<b>Sparse model</b>", ""
    )
    assert "&lt;/script&gt;" in html


def test_json_cannot_leave_its_element():
    value = ["</script><!--", "&amp;", "\u2028\u2029"]
    text = json_for_html(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="JSON compliant"):
        json_for_html(float("nan"))


def test_attention_is_encoded_sparsely(make_example):
    example = make_example(["a", "b", "c", "d"], layers=2, heads=2)
    example.after[0, 0, 3, 1] = 1e-5  # open, however small
    example.after[0, 0, 1, 3] = 1.0  # above the diagonal: not an edge
    data = encode_attention(example)
    assert data["floor"] == 0.01
    for name, weights, floor in (("before", example.before, 0.01), ("after", example.after, 0.0)):
        for index, flat in enumerate(data[name]):
            matrix = np.tril(weights[index // 2, index % 2]).ravel()
            assert flat[::2] == [i for i, w in enumerate(matrix) if w > 0 and w >= floor]
            np.testing.assert_allclose(np.array(flat[1::2]) / 1000, matrix[flat[::2]], atol=5.1e-4)


def test_page_stays_small(make_record):
    record = make_record([f" w{i}" for i in range(64)], layers=30, heads=9)
    data = encode_attention(record.example)
    assert data["floor"] > 0.01
    assert len(page_html(record, {})) < 1_600_000


def test_page_in_chromium(tmp_path, drive_page, make_record):
    record = make_record()
    path = write_page(record, tmp_path / "report.html", plots={})
    seen = drive_page(path, DRIVER)
    example = record.example
    weights = {"before": np.where(example.before >= 0.01, example.before, 0), "after": example.after}

    def check(name: str, layer: int, head: int, token: int | None) -> None:
        state = seen[name]
        assert (state["layer"], state["head"]) == (str(layer), str(head)), name
        assert state["checked"] == [f"{layer}.{head}"], name
        assert state["stops"] == 2, name  # one head and one token are in the tab order
        for side, arcs, on in zip(("before", "after"), state["arcs"], state["on"], strict=True):
            here = weights[side][layer, head]
            assert arcs == np.count_nonzero(here), name
            assert on == (0 if token is None else np.count_nonzero(here[token])), name
            expected = [""] * 7 if token is None else [shown(weight) for weight in here[token]]
            assert state[side] == expected, name

    top = encode_attention(example)["top"]
    check("start", *top[0], None)
    assert "Point at a token" in seen["start"]["reading"]
    check("clicked", 1, 1, None)
    check("selected", 2, 1, None)
    check("arrows", 1, 0, None)
    check("focused", 1, 0, 5)
    assert seen["focused"]["reading"].startswith("mat (token 5): tokens that layer 1, head 0 reads here")
    check("down", 1, 0, 6)
    check("end", 1, 0, 6)
    assert (seen["down"]["focus"], seen["end"]["focus"], seen["escaped"]["focus"]) == (6, 6, -1)
    check("escaped", 1, 0, None)
    check("hovered", 1, 0, 3)
    check("left", 1, 0, None)
    check("chip", *top[1], None)


def test_hostile_page_in_chromium(tmp_path, open_page, hostile_record):
    page = open_page(write_page(hostile_record, tmp_path / "report.html", plots={}))
    assert page.console == []
    assert 'data-ready="yes"' in page.dom
    assert "<title>pwned" not in page.dom and "<title>Sparse attention: " in page.dom
    tokens = re.findall(r'<button type="button" tabindex="[-0-9]+"[^>]*>([^<]*)</button>', page.dom)
    assert len(tokens) == len(hostile_record.example.tokens)
    assert tokens[0] == "&lt;script&gt;document.title='pwned'&lt;/script&gt;"
    assert tokens[5] == "↵"
    assert not re.search(r"<img[^>]*onerror", page.dom)


def test_page_of_an_empty_record_in_chromium(tmp_path, open_page):
    nan = np.full((1, 1), np.nan)
    page = open_page(write_page(RunRecord(RunSummary(), [], nan, nan), tmp_path / "report.html"))
    assert page.console == []
    assert "<h1>Sparse attention</h1>" in page.dom
    assert page.dom.count("<figure>") == 2
    assert 'id="attention-data"' not in page.dom


# Scrolls from end to end with a head of the lowest row chosen, and measures the box and the cell at every step.
SCROLL = """<script>
const box = document.getElementById("reading"), rows = document.querySelectorAll(".cell");
const cell = rows[rows.length - 1], seen = {places: 0, overlaps: 0, covered: 0};
cell.click();
const shared = (a, b, from, to) => Math.min(a[to], b[to]) - Math.max(a[from], b[from]);
const meet = (a, b) => shared(a, b, "left", "right") > 1 && shared(a, b, "top", "bottom") > 1;
for (let y = 0; y < document.documentElement.scrollHeight; y += 20) {
  window.scrollTo(0, y);
  const there = box.getBoundingClientRect();
  if (there.bottom < 0 || there.top > innerHeight) continue;
  seen.places++;
  if (meet(there, cell.getBoundingClientRect())) seen.overlaps++;
  for (let x = there.left + 4; x < there.right; x += 20) {
    const on = document.elementFromPoint(x, Math.min(innerHeight - 1, there.top + 4));
    if (on && !box.contains(on)) seen.covered++;
  }
}
const result = document.createElement("pre");
result.id = "result";
result.textContent = btoa(encodeURIComponent(JSON.stringify(seen)));
document.body.append(result);
</script>"""


@pytest.mark.parametrize("width", [480, 1200])
def test_nothing_lies_over_the_sticky_box(tmp_path, drive_page, make_record, width):
    record = make_record([f" word{i}" for i in range(30)], layers=30, heads=9)
    path = write_page(record, tmp_path / "report.html", plots={})
    seen = drive_page(path, SCROLL, size=(width, 800))
    assert seen["places"] > 10
    assert (seen["overlaps"], seen["covered"]) == (0, 0)
