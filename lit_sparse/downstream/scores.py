"""Scores of tasks and their comparison, with standard errors."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from lit_sparse.records.evaluation import Estimate, TaskComparison


class TaskScore(NamedTuple):
    """One metric of one task, or of a group of tasks.

    Args:
        metric: name of the metric, with the answer filter in brackets if the task has one.
        questions: number of questions; None for a group.
        chance: expected accuracy of guessing; None if the metric is not the accuracy of a multiple choice.
        higher_is_better: as the task declares; None if it does not.
        by_question: the metric of each question if `score` is their mean, else None.
    """

    task: str
    metric: str
    score: Estimate
    questions: int | None
    chance: float | None
    higher_is_better: bool | None
    by_question: tuple[float, ...] | None


def mean_of(values: Sequence[float], weights: Sequence[float] | None = None) -> Estimate:
    """The mean of `values`, or sum(values) / sum(weights) of clusters with as many members as `weights` says.

    The standard error of such a ratio treats the clusters as independent (Cochran, Sampling Techniques, eq. 6.9).
    """
    sizes = [1.0] * len(values) if weights is None else list(weights)
    total = sum(sizes)
    mean = sum(values) / total
    count = len(values)
    if count < 2:
        return Estimate(mean, None)
    squares = sum((value - mean * size) ** 2 for value, size in zip(values, sizes, strict=True))
    return Estimate(mean, math.sqrt(squares * count / (count - 1)) / total)


def perplexity(ce: Estimate) -> Estimate:
    """exp(CE), with its standard error to first order."""
    value = math.exp(ce.value)
    return Estimate(value, None if ce.stderr is None else value * ce.stderr)


def compare_tasks(model: Sequence[TaskScore], base: Sequence[TaskScore] | None) -> list[TaskComparison]:
    """Compares each metric of the model with the same one of the base, which answered the same questions."""
    found = {(score.task, score.metric): score for score in base or ()}
    return [_compare(score, found.get((score.task, score.metric))) for score in model]


def _compare(model: TaskScore, base: TaskScore | None) -> TaskComparison:
    difference = None
    if base is not None:
        difference = Estimate(model.score.value - base.score.value, None)
        if model.by_question and base.by_question and len(model.by_question) == len(base.by_question):
            difference = mean_of(
                [ours - theirs for ours, theirs in zip(model.by_question, base.by_question, strict=True)]
            )
    return TaskComparison(
        task=model.task,
        metric=model.metric,
        questions=model.questions,
        chance=model.chance,
        higher_is_better=model.higher_is_better,
        model=model.score,
        base=base.score if base is not None else None,
        difference=difference,
    )
