"""Progress of long work."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from tqdm import tqdm

from lit_sparse.common.rank import process_rank

if TYPE_CHECKING:
    Bar = tqdm[Any]
else:
    Bar = tqdm  # older versions are generic for type checkers only


@runtime_checkable
class Counter(Protocol):
    """Counter of work: a bar of tqdm, or a `Stage`."""

    def update(self, n: float = 1, /) -> object: ...


class Stage:
    """Counter of one stage of some work.

    Args:
        advance: called with the name of the stage and the share of the whole work that is done.
        what: name of the stage.
        total: final value of the count.
        start, end: shares of the whole work that are done before and after the stage.
    """

    def __init__(
        self, advance: Callable[[str, float], object], what: str, total: float, *, start: float = 0.0, end: float = 1.0
    ) -> None:
        self._advance, self._what, self._total, self._start, self._end = advance, what, total, start, end
        self._done = 0.0
        self.update(0)

    def update(self, n: float = 1, /) -> None:
        self._done = min(self._done + n, self._total)
        self._advance(self._what, self._start + (self._end - self._start) * self._done / self._total)


def is_terminal() -> bool:
    """True if stderr is a terminal, where bars can move. In a log file they would fill line after line."""
    return sys.stderr.isatty()


_LOGGED = 60.0
"""Seconds between the lines that stand for a bar in a log."""


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Context with a progress bar for work outside of training. It yields a function to call with (done, total). Only
    the first process of a run shows the bar. In a log it is one line per minute."""
    is_first = process_rank() == 0
    last = time.monotonic()
    with tqdm(desc=description, leave=False, dynamic_ncols=True, disable=not (is_first and is_terminal())) as bar:

        def advance(done: int, total: int) -> None:
            nonlocal last
            bar.total = total
            bar.update(done - bar.n)
            if is_first and bar.disable and time.monotonic() - last >= _LOGGED:
                last = time.monotonic()
                print(f"{description}: {done} of {total}", file=sys.stderr, flush=True)

        yield advance
