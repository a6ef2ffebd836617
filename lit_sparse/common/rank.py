"""Rank of this process in a run."""

import os

import torch


def process_rank() -> int:
    """Rank of this process, 0 for the first, also before the processes are connected."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", 0))))
