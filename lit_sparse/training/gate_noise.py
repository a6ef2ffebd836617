"""Seeds of a training step's noise.

Noise is a function of (seed, step, micro-batch, index in the batch of all ranks). So a resumed run draws the same
gates, and so does a run on another number of processes. Other random draws do not change them.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lit_sparse.attention.noise import draw_seeds


def seed_of(*numbers: int) -> int:
    """One seed below 2^63 from several whole numbers. Python's own `hash` may change from one version to the next."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def draw_step_seeds(
    layers: int, noise: tuple[int, int, int], sequences: int, ranks: int, rank: int, device: torch.device
) -> Int[Tensor, "layer batch"]:
    """Seeds of this rank's sequences in each attention layer. It also seeds the default generator for dropout.

    Args:
        noise: the run's seed, the step, the micro-batch.
        sequences: number of sequences in this rank's batch. The sampler gives sequences to ranks in turn.
    """
    torch.manual_seed(seed_of(*noise, 0))
    seeds = draw_seeds(layers * sequences * ranks, "cpu").view(layers, -1)[:, rank::ranks].contiguous()
    torch.manual_seed(seed_of(*noise, 1 + rank))
    if device.type == "cuda":  # from pageable memory, the copy would wait for the GPU
        seeds = seeds.pin_memory()
    return seeds.to(device, non_blocking=True)


def give_seeds(layers: Sequence[Any], seeds: Int[Tensor, "layer batch"] | None) -> None:
    """Sets each attention module's seeds, which a recomputed layer uses too. None lets a pass draw its own."""
    for index, module in enumerate(layers):
        module.edge_seeds = None if seeds is None else seeds[index]
