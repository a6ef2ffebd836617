"""Seeds of a training step's noise.

Noise is a function of (seed, step, micro-batch, place in the batch of all ranks): a resumed run sees the same gates,
and so does one on another number of processes. Nothing else that draws can shift them.
"""

from collections.abc import Sequence
from typing import Any

import torch

from lit_sparse.attention.noise import draw_seeds


def seed_step(
    layers: Sequence[Any],
    noise: tuple[int, int, int],
    sequences: int,
    ranks: int,
    rank: int,
    device: torch.device,
) -> None:
    """Gives each attention layer the seeds of this rank's sequences, and the default generator one for dropout.

    Args:
        layers: a sparsified model's attention modules.
        noise: the run's seed, the step, the micro-batch.
        sequences: in this rank's batch. The sampler deals sequences out to ranks in turn.
    """
    torch.manual_seed(hash((*noise, 0)) % 2**63)
    seeds = draw_seeds(len(layers) * sequences * ranks, "cpu").view(len(layers), -1)[:, rank::ranks].contiguous()
    if device.type == "cuda":  # from pageable memory, the copy would wait for the GPU
        seeds = seeds.pin_memory()
    # A recomputed layer finds its seeds where they are.
    for module, own in zip(layers, seeds.to(device, non_blocking=True).unbind(), strict=True):
        module.edge_seeds = own
    torch.manual_seed(hash((*noise, 1 + rank)) % 2**63)


def clear_seeds(layers: Sequence[Any]) -> None:
    """After the step: other passes draw their own."""
    for module in layers:
        module.edge_seeds = None
