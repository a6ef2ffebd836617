"""What a model can do: tasks of lm-evaluation-harness, and cross-entropy and KL on any text, against its base."""

from lit_sparse.downstream.harness import SHIPPED, load_tasks, run_tasks
from lit_sparse.downstream.scores import Estimate, TaskComparison, TaskScore, TextScore, compare_tasks
from lit_sparse.downstream.text import pack_text, score_text

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
