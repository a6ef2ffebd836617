"""Speed of a run, and the time that its remaining work will take.

Work is counted in tokens, by kind. The speed of a kind is measured as soon as some of it is done. Before that it is
estimated from the kinds that are measured, by the passes through the model that a token takes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

from lit_sparse.common.progress import progress_bar

Advance = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


class Work(StrEnum):
    """Kinds of work that a run does."""

    SENSITIVITY = "sensitivity"  # of calibration: the cost of closing each edge
    SEARCH = "search"  # of calibration: cutoffs that meet a KL
    TRAINING = "training"
    VALIDATION = "validation"
    EVALUATION = "evaluation"  # of the start and of the end, on the test split


_PASSES = {Work.SENSITIVITY: 6.0, Work.SEARCH: 2.0, Work.TRAINING: 5.0, Work.VALIDATION: 2.0, Work.EVALUATION: 2.0}
"""Forward passes that take as long as this work on a token, measured on SmolLM2-135M on two cores. A backward pass is
about two; student and base model both run."""

_MEMORY = 0.98
"""Weight of the past against the next measurement of the same kind: steps change their speed as edges close."""


def unheard(is_over: bool) -> None:
    """Ignores a measurement. It is not a lambda, so that a module can be pickled."""


class Pace:
    """Speed of a run's work and what is left of it."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.expected: dict[Work, float] = dict.fromkeys(Work, 0.0)
        """Tokens that are still to do outside of the training loop, as far as they are known."""
        self.on_measured: Callable[[bool], None] = unheard
        """Called after each measurement outside of the training loop, with whether its stage is over."""
        self._tokens: dict[Work, float] = {}
        self._seconds: dict[Work, float] = {}

    def measured(self, work: Work, tokens: float, seconds: float) -> None:
        """Takes a measurement into the average of its kind."""
        self._tokens[work] = _MEMORY * self._tokens.get(work, 0.0) + tokens
        self._seconds[work] = _MEMORY * self._seconds.get(work, 0.0) + seconds

    def is_measured(self, work: Work) -> bool:
        return work in self._tokens

    def seconds(self, work: Work, tokens: float) -> float | None:
        """Seconds that so many tokens take; None before anything was measured."""
        if work in self._tokens:
            return tokens * self._seconds[work] / self._tokens[work]
        passes = sum(_PASSES[kind] * done for kind, done in self._tokens.items())
        return None if passes == 0 else tokens * _PASSES[work] * sum(self._seconds.values()) / passes

    @contextmanager
    def stage(self, work: Work, tokens: float, description: str) -> Iterator[Advance]:
        """A progress bar for work outside of the training loop, which is measured as it goes on.

        Args:
            tokens: of the whole stage. They leave `expected`, and all of them when the stage ends early.
        """
        before = self.expected[work]
        last, done_before = time.perf_counter(), 0.0
        with progress_bar(description) as advance:

            def counted(done: int, total: int) -> None:
                nonlocal last, done_before
                now, fraction = time.perf_counter(), done / max(total, 1)
                self.measured(work, (fraction - done_before) * tokens, now - last)
                self.expected[work] = max(before - fraction * tokens, 0.0)
                last, done_before = now, fraction
                advance(done, total)
                self.on_measured(False)

            yield counted
        self.expected[work] = max(before - tokens, 0.0)
        self.on_measured(True)
