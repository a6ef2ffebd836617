"""How much work there is, and how long it will take."""

import copy
from itertools import pairwise

import pytest

from lit_sparse import sparsify
from lit_sparse.anatomy.component_graph import ComponentGraph
from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits import Pair, Settings, measure
from lit_sparse.circuits.edge_scores import exact
from lit_sparse.circuits.faithfulness import most_evaluations, sizes
from lit_sparse.circuits.measure import score_edges
from lit_sparse.circuits.prompts import group
from lit_sparse.circuits.work import (
    EDGES,
    HEADS,
    SCORES,
    Passes,
    estimated_seconds,
    passes,
    scoring_passes,
    time_passes,
)
from lit_sparse.common.formatting import roughly
from lit_sparse.common.progress import Stage

SMOLLM2 = ComponentGraph((9,) * 30, (3,) * 30, (False,) * 30)


class Letters:
    """The second of eight letters, as token ids."""

    def pairs(self, tokenizer, number, seed):
        clean = [tuple((5 * i + j * (1 + i % 3)) % 16 for j in range(8)) for i in range(number)]
        other = [(ids[0], (ids[1] + 1) % 16, *ids[2:]) for ids in clean]
        return [Pair(a, b, (a[1],), (b[1],), "only") for a, b in zip(clean, other, strict=True)]


def test_a_larger_task_takes_longer():
    each = Passes(forward=0.01, gradient=0.05, edges=0.02)
    ig, eap = Settings(), Settings(method="eap")
    seconds = estimated_seconds(SMOLLM2, eap, 100, each)
    heads = most_evaluations(sizes("head", 270, 270), eap.shares)
    edges = most_evaluations(sizes("edge", 70651, 70651), eap.shares)
    assert 20 < heads < edges < 60
    assert seconds == pytest.approx(100 * (0.01 * (8 + heads) + 0.05 + 0.02 * edges))
    assert estimated_seconds(SMOLLM2, ig, 100, each) == pytest.approx(seconds + 100 * 4 * 0.05)
    assert estimated_seconds(SMOLLM2, eap, 300, each) == pytest.approx(3 * seconds)
    assert estimated_seconds(SMOLLM2, Settings(method="exact"), 100, each) > 100 * seconds


def test_curves_measure_no_more_circuits_than_that():
    """Bisection as `curve` does it, for the worst of answers."""
    for level, total in (("head", 12), ("head", 270), ("edge", 82), ("edge", 70651)):
        grid = sizes(level, total, total)
        worst = 0
        for start, end in pairwise(grid):
            ways = [(start, end, 0)]
            while ways:
                low, high, steps = ways.pop()
                if high - low > max(1, high // 20):
                    middle = (low + high) // 2
                    ways += [(low, middle, steps + 1), (middle, high, steps + 1)]
                worst = max(worst, steps)
        assert len(grid) + 4 * worst <= most_evaluations(grid, (0.5,) * 4) <= len(grid) + 4 * (worst + 2)
    assert most_evaluations([0], (0.5,)) == 1


@pytest.mark.parametrize("method", ["eap", "eap-ig", "exact"])
def test_scores_count_to_what_is_told(copier, method):
    done = []

    class Counted:
        def update(self, n=1, /):
            done.append(n)

    settings = Settings(method=method, prompts=6, batch_size=4)
    with Stack(copy.deepcopy(copier)) as stack:
        batches = group(Letters().pairs(None, 6, 0), stack.vocabulary, size=4)
        score_edges(stack, batches, settings, Counted())
        assert sum(done) == pytest.approx(6 * scoring_passes(stack.graph, settings))
        if method == "exact":
            done.clear()
            batch = batches[0]
            exact(stack, batch.clean, batch.corrupted, batch.metric, bar=Counted())
            assert sum(done) < len(batch) * 82, "most edges begin above the first layer"


@pytest.mark.parametrize("sparse", [False, True])
def test_progress_of_a_measurement(copier, letters, sparse):
    model, told = copy.deepcopy(copier), []
    if sparse:
        sparsify(model, {"threshold": 0.2})
    with Stack(model) as stack:
        measure(stack, letters, Letters(), 0, Settings(prompts=8), lambda what, share: told.append((what, share)))
        each = time_passes(stack, group(Letters().pairs(None, 8, 0), stack.vocabulary)[0])
    assert min(each) > 0
    shares = [share for _, share in told]
    assert shares == sorted(shares) and shares[0] == 0 and 0.7 < shares[-1] <= 1
    assert list(dict.fromkeys(what for what, _ in told)) == ["accuracy", SCORES, HEADS, EDGES]


def test_a_stage_stays_in_its_share():
    told = []
    stage = Stage(lambda what, share: told.append(share), "work", 4, start=0.2, end=0.6)
    for _ in range(5):
        stage.update(1)
    assert told == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.6])


def test_passes_are_by_stage():
    assert passes(SMOLLM2, Settings(interpolations=7))[SCORES] == Passes(8, 7, 0)


def test_an_estimate_is_told_roughly():
    assert [roughly(seconds) for seconds in (0.1, 99, 130, 725, 9000)] == ["1 s", "99 s", "2 min", "12 min", "2.5 h"]
