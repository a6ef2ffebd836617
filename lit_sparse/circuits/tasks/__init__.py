"""Tasks with known right answers, made offline from templates for any tokenizer."""

from collections.abc import Callable

from lit_sparse.circuits.tasks.addition import Addition
from lit_sparse.circuits.tasks.agreement import SubjectVerbAgreement
from lit_sparse.circuits.tasks.docstring import Docstring
from lit_sparse.circuits.tasks.gendered_pronoun import GenderedPronoun
from lit_sparse.circuits.tasks.greater_than import GreaterThan
from lit_sparse.circuits.tasks.induction import Induction
from lit_sparse.circuits.tasks.ioi import IOI
from lit_sparse.circuits.tasks.ioi_long import IOILong
from lit_sparse.circuits.tasks.letters import LetterSequence
from lit_sparse.circuits.tasks.task import Draft, Pair, Task, Template
from lit_sparse.circuits.tasks.vocabulary import NotExpressible, Tokenizer, Vocabulary

TASKS: dict[str, Callable[[], Task]] = {
    task.name: task
    for task in (
        IOI,
        IOILong,
        GreaterThan,
        Induction,
        LetterSequence,
        GenderedPronoun,
        Docstring,
        SubjectVerbAgreement,
        Addition,
    )
}
"""Every task by name."""


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in TASKS:
        raise ValueError(f"no task {name!r}; there are {', '.join(sorted(TASKS))}")
    return TASKS[name]()


__all__ = [
    "IOI",
    "TASKS",
    "Addition",
    "Docstring",
    "Draft",
    "GenderedPronoun",
    "GreaterThan",
    "IOILong",
    "Induction",
    "LetterSequence",
    "NotExpressible",
    "Pair",
    "SubjectVerbAgreement",
    "Task",
    "Template",
    "Tokenizer",
    "Vocabulary",
    "get_task",
]
