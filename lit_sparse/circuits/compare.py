"""Comparison of two models on the same tasks and prompts, by the heads and edges that a share of behaviour needs."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from scipy.stats import t as student_t

from lit_sparse.records.circuits import LEVELS, Behaviour, ComparisonRow, ModelOnTask, SeedCurves, TaskResult, TaskRun


def comparison(tasks: Sequence[TaskResult], shares: Sequence[float]) -> list[ComparisonRow]:
    """Rows of `comparison.json`, for each task, level and share.

    A row has the geometric mean over seeds of both models' smallest circuits, their ratio (base / sparse), and its 95 %
    interval: Student's t on the logarithm of the seeds' ratios. Numbers are None if some seed's circuit never keeps the
    share. The interval is None also if there is only one seed.
    """
    rows = []
    for task in tasks:
        if task.base is None or task.sparse is None:
            continue
        for level in LEVELS:
            for share in shares:
                base, sparse = (
                    [run.of(level).smallest[share] for run in model.runs] for model in (task.base, task.sparse)
                )
                row = ComparisonRow(
                    task=task.task,
                    level=level,
                    fraction=share,
                    base_score=task.base.clean,
                    sparse_score=task.sparse.clean,
                    seeds=len(base),
                )
                rows.append(row.model_copy(update=_ratio(base, sparse)))
    return rows


def _ratio(base: Sequence[int | None], sparse: Sequence[int | None]) -> dict[str, float]:
    """Known numbers of a row."""
    # A circuit of no heads at all counts as one, so that a ratio exists.
    logs = [
        (math.log(max(b, 1)), math.log(max(s, 1)))
        for b, s in zip(base, sparse, strict=True)
        if b is not None and s is not None
    ]
    if len(logs) < len(base):
        return {}
    ratios = [b - s for b, s in logs]
    count, mean = len(ratios), fmean(ratios)
    known = {
        "base": math.exp(fmean(b for b, _ in logs)),
        "sparse": math.exp(fmean(s for _, s in logs)),
        "ratio": math.exp(mean),
    }
    if count > 1:
        half = float(student_t.ppf(0.975, count - 1)) * stdev(ratios) / math.sqrt(count)
        known |= {"ratio_low": math.exp(mean - half), "ratio_high": math.exp(mean + half)}
    return known


def together(runs: Sequence[TaskRun]) -> ModelOnTask:
    """Results of one model on a task, over all seeds. The drawn circuit and the example are the first seed's."""
    first = runs[0]
    return ModelOnTask(
        shape=first.shape,
        accuracy=fmean(run.accuracy for run in runs),
        p_value=max(run.p_value for run in runs),
        clean=fmean(run.clean for run in runs),
        ablated=fmean(run.ablated for run in runs),
        templates={name: _behaviour([run.templates[name] for run in runs]) for name in first.templates},
        runs=[SeedCurves(seed=run.seed, head=run.head, edge=run.edge) for run in runs],
        attention_edges={
            share: _mean_if_known([run.attention_edges[share] for run in runs]) for share in first.attention_edges
        },
        circuit=first.circuit,
        example=first.example,
    )


def _behaviour(found: Sequence[Behaviour]) -> Behaviour:
    return Behaviour(
        accuracy=fmean(one.accuracy for one in found),
        clean=fmean(one.clean for one in found),
        prompts=sum(one.prompts for one in found),
    )


def _mean_if_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None
