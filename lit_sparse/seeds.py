"""Seeds of a training step's noise.

Noise is a function of (seed, step, micro-batch, place in the batch of all ranks): a resumed run sees the same gates,
and so does one on another number of processes. Nothing else that draws can shift them.
"""

import torch
from torch import nn

from lit_sparse.attention.bridge import attention_modules
from lit_sparse.attention.noise import draw_seeds


def seed_step(
    model: nn.Module, noise: tuple[int, int, int], sequences: int, ranks: int, rank: int, device: torch.device
) -> None:
    """Gives each attention layer the seeds of this rank's sequences, and the default generator one for dropout.

    Args:
        noise: the run's seed, the step, the micro-batch.
        sequences: in this rank's batch. The sampler deals sequences out to ranks in turn.
    """
    torch.manual_seed(hash((*noise, 0)) % 2**63)
    for module in attention_modules(model):
        # A recomputed layer finds its seeds where they are.
        module.edge_seeds = draw_seeds(sequences * ranks, "cpu")[rank::ranks].to(device)
    torch.manual_seed(hash((*noise, 1 + rank)) % 2**63)


def clear_seeds(model: nn.Module) -> None:
    """After the step: other passes draw their own."""
    for module in attention_modules(model):
        module.edge_seeds = None
