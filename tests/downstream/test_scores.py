"""Means, their standard errors and paired differences, by hand and by resampling."""

import math

import numpy as np
import pytest

from lit_sparse.downstream import Estimate, TaskScore, compare_tasks
from lit_sparse.downstream.scores import mean_of


def test_standard_errors():
    generator = np.random.default_rng(0)
    values = generator.normal(size=50)
    assert mean_of(values.tolist()) == pytest.approx((values.mean(), values.std(ddof=1) / math.sqrt(50)))
    assert mean_of([3.0], [2.0]) == (1.5, None)
    # A ratio of sums over clusters of different sizes: against resampling the clusters.
    sizes = generator.integers(5, 20, size=80)
    sums = sizes * generator.normal(2.0, 0.5, size=80)
    picks = generator.integers(80, size=(4000, 80))
    resampled = sums[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    mean, stderr = mean_of(sums.tolist(), sizes.tolist())
    assert mean == pytest.approx(sums.sum() / sizes.sum()) and stderr == pytest.approx(resampled.std(), rel=0.1)


def test_differences_are_paired_only_where_questions_are_the_same():
    def score(value, by_question):
        return TaskScore("t", "acc", Estimate(value, 0.25), 4, 0.5, True, by_question)

    ours, base = (1.0, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)
    assert compare_tasks([score(0.5, ours)], [score(0.25, base)])[0].difference == pytest.approx((0.25, 0.25))
    assert compare_tasks([score(0.5, None)], [score(0.25, base)])[0].difference == (0.25, None)
    assert compare_tasks([score(0.5, ours)], None)[0].difference is None
