"""The report that joins a run's whole story: what is there is shown, what is not is said."""

import json
import math
import re
from pathlib import Path

import pytest

from lit_sparse.commands.options import report
from lit_sparse.records.evaluation import Estimate, Evaluation, TaskComparison, TextComparison
from lit_sparse.records.graph_summary import GraphSummary, summarise
from lit_sparse.records.transcoder import TranscoderSummary
from lit_sparse.report.graph.page import write_graph_page
from lit_sparse.report.run.story import write_run_report
from tests.report.circuits_example import DIGEST, make_circuits
from tests.report.graph_example import make_graph


@pytest.fixture(autouse=True)
def quick_plots(monkeypatch):
    """Drawing plots takes a second, and test_plots.py looks at them."""
    plots = dict.fromkeys(("training.png", "edges.png"), b"no picture")
    monkeypatch.setattr("lit_sparse.report.run.story.render_plots", lambda record: plots)


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def make_run(folder: Path, record, hostile: str = "") -> Path:
    """A run's folder with everything in it."""
    run = folder / "my run"
    write(run / "config.yaml", "run_dir: x\n")
    record.save(run / "record")
    make_circuits().write(run / "circuits")
    write(run / "circuits" / "circuits.html", "<!doctype html>")
    task = TaskComparison(
        task="blimp" + hostile, metric="acc", questions=100, chance=0.5, higher_is_better=True,
        base=Estimate(0.81, 0.01), model=Estimate(0.8, 0.01), difference=Estimate(-0.01, 0.01),
    )  # fmt: skip
    text = TextComparison(
        tokens=4096, sequences=16, sequence_length=256, ce=Estimate(2.884, 0.01), base_ce=Estimate(2.861, 0.01),
        difference=Estimate(0.023, 0.01), kl=Estimate(math.nan, None), edge_fraction=0.02, edges_per_query=2.6,
        perplexity=Estimate(17.9, 0.2), base_perplexity=Estimate(17.5, 0.2),
    )  # fmt: skip
    Evaluation(
        complete=True, model="sparse" + hostile, against="base", settings={}, versions={}, tasks=[task], text=text
    ).write(run / "evaluation" / "evaluation.json")
    TranscoderSummary(
        model="sparse" + hostile, model_digest=DIGEST, layers=2, features=128, cross_layer=True, activation="topk",
        tokens=300_000, steps=1000, seconds=1500.0, l0=15.2, l0_by_layer=[15.0, 15.4], explained_variance=0.71,
        explained_variance_by_layer=[0.7, 0.72], dead_fraction=0.02, ce=2.884, replacement_ce=3.9,
        mean_ablation_ce=9.1,
    ).write(run / "transcoder" / "transcoder")  # fmt: skip
    write_graph_page([make_graph(nodes=20, links=30)], run / "graphs" / "000" / "graph.html")
    prompts = [
        GraphSummary(
            prompt=f"prompt {index}{hostile}", nodes=20, links=30, heads_for_80=5, replacement_error=0.3, seconds=9.0,
            model="sparse", model_digest=DIGEST, sparse=True, answer=" small", page=page,
            against=GraphSummary(
                prompt="same", nodes=50, links=90, heads_for_80=40 + index, replacement_error=0.3, seconds=20.0,
                model="base", sparse=False,
            ),
        )
        for index, page in enumerate(("000/graph.html", "001/graph.html", "../../../secret.html"))
    ]  # fmt: skip
    write(folder / "secret.html", "<!doctype html>")
    write(run / "graphs" / "summary.json", summarise(prompts).model_dump_json())
    return run


def test_whole_story(tmp_path, open_page, make_record):
    run = make_run(tmp_path, make_record())
    path = write_run_report(run)
    assert path == run / "story.html"
    page = open_page(path)
    assert page.console == []
    html = page.dom
    assert "default-src 'none'" in html and not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", html)
    for section in ("training", "edges", "abilities", "circuits", "transcoders", "graphs"):
        assert f'id="{section}"' in html and f'href="#{section}"' in html
    assert 'class="missing"' not in html
    assert "<h1>4.77 open edges per query and head (3.71 % of the allowed ones, T = 256)</h1>" in html
    assert "All figures are measured on the test split" in html
    assert "81.0 % <small>± 1.0</small>" in html and "-1.0 % <small>± 1.0</small>" in html
    assert "2.861 <small>± 0.010</small>" in html and "+0.023 <small>± 0.010</small>" in html
    assert "5 against 41" in html and "<b>8.20x fewer</b> heads in the sparse model than in the dense model" in html
    assert "cross-layer, <bdi>topk</bdi>" in html and "71 %" in html
    assert 'id="attention-data"' in html and html.count("data:image/png;base64,bm8gcGljdHVyZQ==") == 2
    links = re.findall(r'href="(\./[^"]*)"', html)
    # The page of the second prompt is not there, the third one's is outside the folder.
    assert links == ["./circuits/circuits.html", "./graphs/000/graph.html"]
    assert all((path.parent / link).is_file() for link in links)


def test_a_sparse_model_that_needs_more_is_not_praised(tmp_path, make_record):
    run = make_run(tmp_path, make_record())
    found = make_circuits()
    worse = {"ratio": 0.231, "ratio_low": 0.2, "ratio_high": 0.25}
    found.rows[:] = [row.model_copy(update=worse) for row in found.rows]
    found.write(run / "circuits")
    html = write_run_report(run).read_text()
    assert html.count('<dd class="no">4.33x more<small>than the base, by task') == 2
    assert '<b class="no">4.33x more</b> <small>4.0-5.0</small>' in html


def test_links_start_from_the_page(tmp_path, make_record):
    run = make_run(tmp_path, make_record())
    html = write_run_report(run, tmp_path / "elsewhere" / "a.html").read_text()
    assert 'href="./../my%20run/graphs/000/graph.html"' in html


def test_missing_parts_say_how_they_are_made(tmp_path, make_record):
    run = tmp_path / "run"
    write(run / "config.yaml", "run_dir: x\n")
    html = write_run_report(run).read_text()
    assert html.count('class="missing"') == 5
    for command in ("fit --config", "evaluate --model", "circuits --model", "transcoder_smollm2.yaml", "graph --model"):
        assert f"lit-sparse {command}" in html or command in html
    make_record().save(run / "record")
    assert write_run_report(run).read_text().count('class="missing"') == 4


def test_named_folders_must_hold_what_they_should(tmp_path, make_record):
    run = make_run(tmp_path, make_record())
    with pytest.raises(ValueError, match="no run at"):
        write_run_report(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no summary.json in .*circuits"):
        write_run_report(run, graphs=[run / "circuits"])
    with pytest.raises(ValueError, match=r"no circuits.json in .*graphs"):
        write_run_report(run, circuits=[run / "graphs"])
    write(tmp_path / "other" / "summary.json", {"edge_fraction": 0.1})
    with pytest.raises(ValueError, match=r"other.summary.json cannot be read by this version: prompt: Field required"):
        write_run_report(run, graphs=[tmp_path / "other"])


@pytest.mark.parametrize(
    ("file", "place", "field"),
    [
        ("circuits/circuits.json", ("models", "sparse", "name"), "models.sparse.name"),
        ("circuits/comparison.json", (3, "level"), "3.level"),
        ("evaluation/evaluation.json", ("tasks", 0, "difference"), "tasks.0.difference"),
        ("transcoder/transcoder/summary.json", ("l0",), "l0"),
    ],
)
def test_a_file_of_another_version_is_refused_by_its_field(tmp_path, make_record, file, place, field):
    run = make_run(tmp_path, make_record())
    content = json.loads((run / file).read_text())
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    del holder[place[-1]]
    write(run / file, content)
    with pytest.raises(ValueError, match=rf"{file} cannot be read by this version: {field}: Field required"):
        write_run_report(run)


@pytest.mark.parametrize(
    ("part", "file", "place"),
    [
        ("circuits", "circuits/circuits.json", lambda content: content["models"]["sparse"]),
        ("transcoders", "transcoder/transcoder/summary.json", lambda content: content),
        ("graphs", "graphs/summary.json", lambda content: content["prompts"][1]),
    ],
)
@pytest.mark.parametrize(
    ("digest", "message"),
    [("0123456789abcdef-" + "3f800000" * 8, "belongs to another model: make it with"), (None, "make it again")],
)
@pytest.mark.parametrize("named", [True, False])
def test_parts_of_another_model_are_refused(tmp_path, make_record, part, file, place, digest, message, named):
    run = make_run(tmp_path, make_record())
    content = json.loads((run / file).read_text())
    place(content)["model_digest"] = digest
    write(run / file, content)
    with pytest.raises(ValueError, match=rf"{(run / file).parent} .*{message}"):
        write_run_report(run, **({part: [(run / file).parent]} if named else {}))
    assert not (run / "story.html").exists()


def test_a_run_must_say_which_model_it_made(tmp_path, make_record):
    record = make_record()
    record.summary.model_digest = None
    run = make_run(tmp_path, record)
    with pytest.raises(
        ValueError, match=r"does not record which model it made.*: lit-sparse fit .* --on_existing resume"
    ):
        write_run_report(run)


def test_command_takes_several_folders(tmp_path, make_record, capsys):
    run = make_run(tmp_path, make_record())
    out = tmp_path / "two.html"
    folders = ["--transcoders", str(run / "transcoder"), str(run / "transcoder" / "transcoder")]
    report.COMMAND.call(["--run", str(run), *folders, "--out", str(out)])
    assert str(out) in capsys.readouterr().out
    assert out.read_text().count("cross-layer, <bdi>topk</bdi>") == 2


def test_hostile_text_does_nothing(tmp_path, open_page, make_record, hostile):
    texts = [text for text in hostile if text != "\udc80"]
    run = make_run(tmp_path, make_record(tokens=texts, model=hostile[1]), hostile="".join(texts))
    page = open_page(write_run_report(run))
    assert page.console == []
    assert "pwned" not in (re.search(r"<title>(.*?)</title>", page.dom) or [""])[0]
    assert not re.search(r"<img[^>]*onerror", page.dom)
    assert page.dom.count("<script") == 2
