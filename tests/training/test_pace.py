"""A run's pace: speeds that are measured, and those that are estimated from them."""

import time

import pytest

from lit_sparse.training.pace import Pace, Work


def test_nothing_is_known_before_a_measurement():
    assert Pace().seconds(Work.TRAINING, 100) is None


def test_a_kind_is_estimated_from_another_until_it_is_measured():
    pace = Pace()
    pace.measured(Work.EVALUATION, 100, 4.0)
    assert pace.seconds(Work.EVALUATION, 50) == pytest.approx(2.0)
    assert pace.seconds(Work.VALIDATION, 50) == pytest.approx(2.0)
    assert pace.seconds(Work.TRAINING, 100) == pytest.approx(10.0), "five passes where an evaluation has two"
    pace.measured(Work.TRAINING, 100, 7.0)
    assert pace.seconds(Work.TRAINING, 100) == pytest.approx(7.0)


def test_the_average_follows_a_change_of_speed():
    pace = Pace()
    for _ in range(300):
        pace.measured(Work.TRAINING, 10, 1.0)
    for _ in range(300):
        pace.measured(Work.TRAINING, 10, 3.0)
    assert pace.seconds(Work.TRAINING, 10) == pytest.approx(3.0, rel=0.01)


def test_a_stage_is_measured_as_it_goes_on_and_leaves_nothing_to_do(monkeypatch):
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    pace, seen = Pace(), []
    pace.expected[Work.SEARCH] = 120.0
    pace.on_measured = lambda is_over: seen.append((is_over, pace.expected[Work.SEARCH]))
    with pace.stage(Work.SEARCH, 60.0, "searching") as advance:
        advance(1, 6)
        advance(2, 6)
    assert seen == [(False, 110.0), (False, 100.0), (True, 60.0)]
    assert pace.seconds(Work.SEARCH, 10.0) == pytest.approx(2.0), "two seconds each for ten tokens"
    assert pace.expected[Work.SEARCH] == 60.0, "it ended early: what it did not do is not to come"
