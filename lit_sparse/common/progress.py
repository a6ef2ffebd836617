"""A bar for what takes long."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lit_sparse.common.rank import process_rank

if TYPE_CHECKING:
    Bar = tqdm[Any]
else:
    Bar = tqdm  # older versions are generic for type checkers only


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for work outside of training; call what it yields with (done, total). The first of a run's processes
    shows it."""
    with tqdm(desc=description, leave=False, dynamic_ncols=True, disable=process_rank() != 0) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield advance
