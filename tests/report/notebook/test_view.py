"""What Jupyter gets of records: a frame that holds the page and lets nothing out, or a small table."""

import base64
import html
import json
import re
import urllib.parse
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lit_sparse import side_by_side
from lit_sparse.records.attention import ModelAttention, SentenceAttention
from lit_sparse.records.run_summary import RunSummary
from lit_sparse.records.sentence_circuit import SentenceCircuits
from lit_sparse.records.trace import Ablation, Trace, TraceEdges
from lit_sparse.report.notebook import frame
from lit_sparse.report.notebook.attention import attention_html
from lit_sparse.report.notebook.graph import most_influential, small_graphs
from tests.report.circuits_example import make_circuits
from tests.report.graph_example import make_graph
from tests.report.sentence_example import HOSTILE, make_circuit, make_two

PLAIN = [f" word{place}" for place in range(len(HOSTILE))]

# Runs in the frame, after the page's own script, and tells the notebook what it can reach.
INSIDE = """<script>
const reached = {ready: document.documentElement.dataset.ready, title: document.title};
try { reached.parent = parent.document.title; } catch (error) { reached.parent = error.name; }
try { reached.stored = String(localStorage); } catch (error) { reached.stored = error.name; }
const send = (network) => parent.postMessage(JSON.stringify({...reached, network}), "*");
fetch("http://127.0.0.1:9/").then(() => send("reached"), (error) => send(error.name));
</script>"""
NOTEBOOK = """<!doctype html><meta charset="utf-8"><title>notebook</title><p id="result"></p><script>
const said = (event) => { document.getElementById("result").textContent = btoa(encodeURIComponent(event.data)); };
addEventListener("message", said);
</script>"""


def make_trace(tokens: list[str] = PLAIN, edges: int = 4, seed: int = 0) -> Trace:
    draw = np.random.default_rng(seed)
    size = len(tokens)
    query, key = np.full(edges, size - 1), draw.integers(0, size - 1, edges)
    columns = [draw.integers(0, 3, edges), draw.integers(0, 2, edges), query, key]
    weights = [draw.uniform(size=edges), draw.normal(size=edges)]
    shown = Ablation(2, 2, 2, 0.5)
    return Trace(
        "tiny", True, "".join(tokens), tokens, tokens[-1], 7, 3, 2, 0.8, [(tokens[0], 0.8)], 500, 100,
        TraceEdges(*columns, *weights), [True] * size, [1] * size, [0.0] * size, [None] * size,
        [Ablation(0, 0, 1, 0.1), shown], 0.9, shown, [0.1, 0.2], 1.0,
    )  # fmt: skip


def make_attention(tokens: list[str] = PLAIN, against: bool = True, layers: int = 2, heads: int = 3, seed: int = 0):
    draw, size = np.random.default_rng(seed), len(tokens)
    dense = np.tril(draw.dirichlet(np.full(size, 0.3), (layers, heads, size)))
    sparse = np.where(dense > 0.3, dense, 0.0)
    beside = ModelAttention(tokens[0], False, dense) if against else None
    return SentenceAttention(tokens, ModelAttention(tokens[1], True, sparse), beside)


MAKERS = {
    "trace": make_trace,
    "graph": make_graph,
    "circuit": lambda tokens: make_circuit(tokens=tokens, answer=tokens[0], wrong=tokens[1]),
    "circuits": lambda tokens: SentenceCircuits(circuits=[make_circuit(tokens=tokens)] * 2),
    "comparison": lambda tokens: make_circuits(seeds=1, edges=(40, 10), tokens=tokens),
    "attention": make_attention,
}


@pytest.fixture
def in_frame(tmp_path: Path, open_page: Callable) -> Callable[[str, str], dict]:
    """What a script that runs in a view's frame, after the page's own, tells the notebook; and the console."""

    def run(view: str, script: str) -> dict:
        before, _, after = view.rpartition("</body>")
        script = script.replace("&", "&amp;").replace("'", "&#39;")
        path = tmp_path / "notebook.html"
        path.write_text(f"{NOTEBOOK}{before}{script}</body>{after}", encoding="utf-8", errors="replace")
        page = open_page(path)
        told = json.loads(urllib.parse.unquote(base64.b64decode(page.text_of("result")).decode()))
        return told | {"console": page.console}

    return run


class Elements(HTMLParser):
    """Tags with their attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def page_of(view: str) -> str:
    """The page in a view's only element, a frame."""
    ((tag, attributes),) = Elements(view).found
    assert tag == "iframe"
    return attributes["srcdoc"] or ""


@pytest.mark.parametrize("kind", MAKERS)
def test_a_view_is_one_frame_that_loads_nothing(kind):
    view = MAKERS[kind](PLAIN)._repr_html_()
    ((tag, attributes),) = Elements(view).found
    assert tag == "iframe" and attributes["title"]
    assert attributes["sandbox"] == ("allow-scripts allow-downloads" if kind == "graph" else "allow-scripts")
    page = page_of(view)
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert "default-src 'none'" in page
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page)


@pytest.mark.parametrize("kind", MAKERS)
def test_text_of_models_runs_nowhere(kind):
    """Neither the notebook nor the page gets an element more from tokens that are HTML."""
    plain, hostile = (MAKERS[kind](tokens)._repr_html_() for tokens in (PLAIN, HOSTILE))
    pages = page_of(plain), page_of(hostile)
    plain_tags, hostile_tags = ([tag for tag, _ in Elements(page).found] for page in pages)
    assert hostile_tags.count("script") == plain_tags.count("script")
    assert "img" not in hostile_tags
    assert "<script>document.title" not in pages[1]


@pytest.mark.parametrize("kind", MAKERS)
def test_the_page_runs_in_its_frame_and_reaches_nothing(kind, in_frame):
    seen = in_frame(MAKERS[kind](HOSTILE)._repr_html_(), INSIDE)
    assert seen["ready"] == "yes" and seen["title"] != "pwned"
    assert seen["parent"] == "SecurityError" and seen["stored"] == "SecurityError"
    assert seen["network"] == "TypeError"
    assert [line for line in seen["console"] if "Content Security Policy" not in line] == []


def test_a_graph_can_be_explored_in_its_frame(in_frame):
    """The script of the graph remembers clicks in the page's address, and a frame has none."""
    click = """<script>
    document.querySelector("[role=option]").click();
    parent.postMessage(JSON.stringify({panel: document.querySelector(".panel").textContent.length}), "*");
    </script>"""
    seen = in_frame(make_graph()._repr_html_(), click)
    assert seen["panel"] > 10 and seen["console"] == []


def test_a_summary_is_a_table():
    summary = RunSummary(model="<script>alert(1)</script>", base_ce=2.5, ce=2.6, edges_per_query=1.5)
    view = summary._repr_html_()
    assert {tag for tag, _ in Elements(view).found} == {"table", "caption", "tr", "th", "td", "bdi"}
    assert html.escape("<script>alert(1)</script>") in view and "2.500 → 2.600 (+0.100)" in view


def test_a_run_shows_its_report(make_record, hostile):
    record = make_record(tokens=hostile)
    page = page_of(record._repr_html_())
    assert page.count("data:image/png") >= 3 and 'id="attention-data"' in page
    assert "<script>document.title" not in page and "reached" not in page
    assert len(repr(record)) < 200


def test_text_beside_a_view_is_short():
    """Jupyter stores it too, and shows it where HTML is not trusted."""
    for kind, make in MAKERS.items():
        assert str(make(PLAIN)) == repr(make(PLAIN)) and len(repr(make(PLAIN))) < 700, kind
    assert repr(make_graph(nodes=60, links=240)).endswith("60 nodes, 240 links>")
    assert "2 of 100 open edges keep 0.500" in repr(make_trace())


def test_a_large_graph_keeps_its_most_influential_nodes(monkeypatch):
    graph = make_graph(nodes=3000, links=40_000, layers=12)
    small, left_out = small_graphs([graph])
    assert len(small[0].model_dump_json()) <= 2_000_000 < len(graph.model_dump_json())
    assert f"of 3,000 nodes, {len(small[0].links):,} of 40,000 links" in left_out
    view = graph._repr_html_()
    assert len(view) < 2_600_000
    assert left_out in view and "save(&#39;page.html&#39;)" in view

    few = most_influential(graph, 5)
    rest = [node for node in few.nodes if node.feature_type not in ("embedding", "logit")]
    influences = sorted(node.influence for node in graph.nodes if node.influence is not None)
    assert sorted(node.influence for node in rest) == influences[:5]
    same, nothing = small_graphs([few])
    assert same == [few] and nothing == ""


def test_a_page_too_large_for_a_notebook_is_not_put_into_it(monkeypatch):
    monkeypatch.setattr("lit_sparse.report.notebook.view.LARGEST", 20_000)
    view = make_trace()._repr_html_()
    assert "iframe" not in view and "too large for a notebook" in view and frame.SAVE.split("'")[0] in view


def test_side_by_side(tmp_path):
    view = side_by_side(make_trace(), make_trace(seed=1))
    assert page_of(view._repr_html_()).count('class="model"') == 2
    assert repr(view).count("<Trace") == 2
    saved = view.save(tmp_path / "page.html").read_text()
    assert saved.count('class="model"') == 2 and "iframe" not in saved
    assert page_of(side_by_side(*make_two().circuits)._repr_html_()).count('class="model"') == 2
    for records, message in [
        ([make_trace(), make_graph()], "records of one kind"),
        ([make_trace()] * 3, "2 of Trace at most"),
        ([], "not nothing"),
        (["text"], "not str"),
    ]:
        with pytest.raises(ValueError, match=message):
            side_by_side(*records)


def data_of(page: str) -> dict:
    (text,) = re.findall(r'id="attention-data">(.*?)</script>', page)
    return json.loads(text)


def test_attention_shows_open_edges_beside_dense_weights():
    attention = make_attention()
    data = data_of(attention_html(attention))
    assert data["sides"] == {
        "before": {"name": "Dense", "whole": False},
        "after": {"name": "Sparse", "whole": True},
    }
    assert sum(map(len, data["after"])) // 2 == attention.model.open
    dense = np.asarray(attention.against.weights)
    assert sum(map(len, data["before"])) // 2 == int((dense >= data["floor"]).sum())


def test_attention_of_one_model():
    page = attention_html(make_attention(against=False))
    assert list(data_of(page)["sides"]) == ["after"]
    assert "count-before" not in page


def test_attention_of_a_model_with_many_open_edges_is_of_its_strongest():
    size = 256
    weights = np.tril(np.full((4, 4, size, size), 0.02))
    tokens = [" a"] * size
    page = attention_html(SentenceAttention(tokens, ModelAttention("tiny", True, weights)))
    assert data_of(page)["sides"]["after"]["whole"] is False
    assert len(page) < 1_200_000
