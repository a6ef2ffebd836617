import sys
import warnings
from io import BytesIO

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from lit_sparse.records.run import AttentionExample, RunRecord
from lit_sparse.records.run_summary import RunSummary
from lit_sparse.report.run.attention_maps import attention_example, strongest_heads
from lit_sparse.report.run.plots import edges_by_head, render_plots, training_curves, write_plots
from lit_sparse.report.shared.style import log_ticks, percent_tick, png


def quick(figure: Figure) -> bytes:
    return png(figure, dpi=60)


def drawn(content: bytes) -> bool:
    """Whether a PNG is larger than a thumbnail and not of one colour."""
    pixels = matplotlib.image.imread(BytesIO(content))
    return min(pixels.shape[:2]) > 200 and float(np.ptp(pixels[..., :3])) > 0.5


def test_plots_are_written_and_global_state_is_left_alone(tmp_path, make_record):
    settings = dict(matplotlib.rcParams)
    had_pyplot = "matplotlib.pyplot" in sys.modules
    paths = write_plots(make_record(), tmp_path / "plots")
    assert sorted(paths) == ["attention.png", "edges.png", "training.png"]
    assert all(path == tmp_path / "plots" / name and drawn(path.read_bytes()) for name, path in paths.items())
    assert dict(matplotlib.rcParams) == settings
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


def test_a_realistic_size_is_drawn(make_record):
    record = make_record([f" word{i}" for i in range(25)], layers=30, heads=9, steps=200)
    assert all(drawn(content) for content in render_plots(record).values())


NAN = float("nan")


@pytest.mark.parametrize(
    ("history", "summary"),
    [
        ([], {}),
        ([{"step": 1.0}], {"tolerance": None, "base_ce": NAN}),
        (
            [{"step": 1.0, "train/ce": NAN, "train/lambda": NAN, "train/edge_fraction": NAN}],
            {"tolerance": 0.1},
        ),
        ([{"step": 1.0, "train/ce": 2.0, "train/lambda": 0.0, "train/edge_fraction": 0.0}], {"base_ce": 2.0}),
        ([{"step": 1.0, "val/edge_fraction": 0.5, "val/base_ce": 2.0}], {"constraint": "paired"}),
        (
            [{"step": float(s), "train/ce": NAN if s % 3 else 1.0, "train/lambda": 10.0**-s} for s in range(80)],
            {},
        ),
        ([{"step": 1e6, "train/lambda": 1e-8, "train/edge_fraction": 1.0, "train/constraint": np.inf}], {}),
    ],
)
def test_training_curves_of_odd_histories(history, summary):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert drawn(quick(training_curves(history, RunSummary.model_validate(summary))))


def test_the_curves_and_their_lines_are_of_one_split(make_record):
    """The summary is the test split's: neither its cross-entropies nor its tolerance belong beside the validation's."""
    record = make_record()
    summary = record.summary.model_copy(update={"base_ce": 2.5, "tolerance": 2.55, "tolerance_in_training": 3.02})
    ce, constraint = (
        {line.get_label(): line.get_ydata() for line in axes.lines}
        for axes in training_curves(record.history, summary).axes[:2]
    )
    assert list(ce["base model, validation"]) == [2.97, 2.97] and list(ce["validation"]) == [3.0, 3.0, 3.0]
    assert list(constraint["tolerance"]) == [3.02, 3.02] and "validation" in constraint


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (np.ones((1, 1)), np.zeros((1, 1))),
        (np.zeros((2, 3)), np.zeros((2, 3))),
        (np.full((2, 3), NAN), np.full((2, 3), NAN)),
        (np.ones((1, 32)), np.full((1, 32), 1e-6)),
        (np.ones((80, 64)), np.full((80, 64), 0.004)),
    ],
)
def test_edges_by_head_of_odd_shapes(start, end):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert drawn(quick(edges_by_head({"Before": start, "After": end})))


@pytest.mark.parametrize("tokens", [["a"], None, [f"t{i}" for i in range(100)], ["日本", "🙂", "x" * 300]])
def test_attention_of_odd_sentences(tokens, make_example, hostile):
    example = make_example(tokens or hostile, layers=1, heads=1)
    example.after[0, 0, -1, 0] = NAN
    figure = attention_example(example)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        assert drawn(quick(figure))


def test_attention_shows_the_heads_asked_for(make_example):
    titles = [axes.get_title(loc="left") for axes in attention_example(make_example(["a", "b"]), [(2, 1)]).axes]
    assert "Layer 2, head 1, sparse model" in titles
    assert sum("head 1" in title for title in titles) == 2


def test_strongest_heads_ignore_the_sink():
    after = np.zeros((2, 2, 3, 3))
    after[0, 0, :, 0] = 1.0  # all on the first token
    after[0, 1] = np.eye(3)  # all on itself
    after[1, 0, 2, 1] = 0.2
    after[1, 1, 0, 2] = 9.0  # above the diagonal: not attention
    example = AttentionExample(["a", "b", "c"], after, after)
    assert strongest_heads(example, 3) == [(1, 0), (0, 0), (0, 1)]


def test_ticks():
    assert log_ticks(0.009, 0.6) == pytest.approx([0.01, 0.02, 0.05, 0.1, 0.2, 0.5])
    assert len(log_ticks(1e-30, 1.0)) <= 7
    assert log_ticks(0.31, 0.32) == [0.31, 0.32]
    assert [percent_tick(value) for value in (1.0, 0.25, 0.005, 2e-5)] == [
        "100 %",
        "25 %",
        "0.5 %",
        "0.002 %",
    ]


def test_record_without_example_has_two_plots():
    record = RunRecord(RunSummary(), [], np.ones((1, 1)), np.zeros((1, 1)))
    assert sorted(render_plots(record)) == ["edges.png", "training.png"]
