"""What a model can do: tasks of lm-evaluation-harness, and cross-entropy and KL on any text, against its base."""

from lit_sparse.evaluate.harness import SHIPPED, load_tasks, run_tasks
from lit_sparse.evaluate.scores import Estimate, TaskComparison, TaskScore, TextScore, compare_tasks
from lit_sparse.evaluate.text import pack_text, score_text

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
