"""A bar for what takes long."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for work outside of training; call what it yields with (done, total). The first of a run's processes
    shows it."""
    with tqdm(desc=description, leave=False, dynamic_ncols=True, disable=_rank() != 0) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield advance


def _rank() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", 0))))
