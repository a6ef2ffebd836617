"""Evaluation of a model against its base: tasks of lm-evaluation-harness, and cross-entropy and KL on any text."""

from lit_sparse.downstream.harness import SHIPPED, load_tasks, run_tasks
from lit_sparse.downstream.scores import TaskScore, compare_tasks
from lit_sparse.downstream.text import pack_text, score_text
from lit_sparse.records.evaluation import Estimate, TaskComparison, TextScore

__all__ = [
    "SHIPPED",
    "Estimate",
    "TaskComparison",
    "TaskScore",
    "TextScore",
    "compare_tasks",
    "load_tasks",
    "pack_text",
    "run_tasks",
    "score_text",
]
