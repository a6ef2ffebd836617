"""Where results lie, and what machine they are from."""

import platform
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """Without the host's name or the kernel's version."""
    return f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}, {platform.system()}"
