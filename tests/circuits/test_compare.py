"""The statistics of a comparison, by hand and against scipy."""

import math
import statistics

import pytest
from scipy import stats

from lit_sparse.circuits.compare import comparison
from lit_sparse.circuits.measure import Scores
from lit_sparse.records.circuits import CircuitExample, ModelOnTask, SeedCurves, Shape, SizeCurve, TaskResult


def model(heads, edges, clean):
    """A model whose smallest circuits for 90 % have these sizes, by seed."""

    def curve(smallest):
        return SizeCurve(total=1000, sizes=[], values=[], smallest={0.9: smallest})

    return ModelOnTask(
        shape=Shape(layers=1, heads_per_layer=1, kv_heads_per_layer=1), accuracy=1, p_value=0, clean=clean, ablated=0,
        templates={}, attention_edges={}, circuit=None, example=CircuitExample(tokens=[], heads={}),
        runs=[
            SeedCurves(seed=seed, head=curve(of_heads), edge=curve(of_edges))
            for seed, (of_heads, of_edges) in enumerate(zip(heads, edges, strict=True))
        ],
    )  # fmt: skip


def compared(base, sparse):
    task = TaskResult(task="t", description="", base=base, sparse=sparse)
    return comparison([task, TaskResult(task="u", description="", skipped="no")], (0.9,))


def test_ratios_and_intervals_by_hand():
    base = model([8, 8, 8], [100, 200, 400], 3.0)
    head, edge = compared(base, model([4, 4, 4], [10, 20, None], 2.0))
    assert (head.base, head.sparse, head.ratio) == pytest.approx((8, 4, 2))
    assert (head.ratio_low, head.ratio_high) == pytest.approx((2, 2))
    assert (head.seeds, head.base_score, head.sparse_score) == (3, 3.0, 2.0)
    assert edge.ratio is None and edge.base is None
    edge = compared(base, model([4, 4, 4], [10, 20, 10], 2.0))[1]
    # Ratios 10, 10 and 40; t = 4.3027 for two degrees of freedom.
    half = 4.30265273 * math.log(4) / math.sqrt(3) / math.sqrt(3)
    assert edge.ratio == pytest.approx(4000 ** (1 / 3))
    assert edge.ratio_high == pytest.approx(4000 ** (1 / 3) * math.exp(half))


@pytest.mark.parametrize(("seeds", "quantile"), [(2, 12.706), (12, 2.201), (31, 2.042)])
def test_intervals_are_students_for_any_number_of_seeds(seeds, quantile):
    counts = [10 * 2**seed for seed in range(seeds)]
    row = compared(model(counts, counts, 1.0), model([10] * seeds, [10] * seeds, 1.0))[0]
    half = quantile * statistics.stdev(map(math.log, counts)) / math.sqrt(seeds)
    assert math.log(row.ratio_high / row.ratio) == pytest.approx(half, rel=3e-4)  # tables have four digits


def test_the_interval_of_12_seeds_is_scipys():
    base, sparse = [31, 29, 40, 52, 33, 28, 61, 45, 30, 38, 44, 50], [9, 8, 14, 12, 11, 7, 20, 9, 10, 12, 9, 17]
    row = compared(model(base, base, 1.0), model(sparse, sparse, 1.0))[0]
    logs = [math.log(b / s) for b, s in zip(base, sparse, strict=True)]
    low, high = stats.t.interval(0.95, 11, statistics.fmean(logs), stats.sem(logs))
    assert (math.log(row.ratio_low), math.log(row.ratio_high)) == pytest.approx((low, high))


def test_one_seed_has_no_interval():
    row = compared(model([8], [80], 1.0), model([4], [10], 1.0))[1]
    assert (row.ratio, row.ratio_low, row.ratio_high) == (pytest.approx(8), None, None)


@pytest.mark.parametrize(("right", "chance"), [(12, 1 / 4096), (10, 79 / 4096), (0, 1.0)])
def test_what_guessing_gives_is_the_binomial_tail(right, chance):
    scores = Scores([1.0] * right + [-1.0] * (12 - right), {})
    assert scores.p_value == pytest.approx(chance)
