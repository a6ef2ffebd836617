"""Losses of a transcoder, all on scaled activations (`scaling`)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_sparse.transcoders.scaling import MASSIVE
from lit_sparse.transcoders.transcoder import Transcoder


def reconstruction_loss(
    error: Float[Tensor, "layer token model"], outputs: Float[Tensor, "layer token model"]
) -> Float[Tensor, ""]:
    """Normalised mean squared error, summed over layers: 1 per layer for a transcoder that writes the mean output.

    A massive token's error is divided by the token's own size.
    """
    size = outputs.pow(2).mean(-1) / MASSIVE
    return (error.pow(2).mean(-1) / size.clamp_min(1.0)).mean(1).sum()


def revival_loss(
    transcoder: Transcoder,
    preactivations: Float[Tensor, "layer token feature"],
    error: Float[Tensor, "layer token model"],
    outputs: Float[Tensor, "layer token model"],
    dead: Bool[Tensor, "layer feature"],
) -> Float[Tensor, ""]:
    """Auxiliary loss that revives dead features (AuxK, arXiv 2406.04093, appendix A.2). A token's k strongest dead
    features learn the error that the other features leave in their own layer's output.
    """
    k = min(transcoder.config.k, dead.shape[1])
    best = preactivations.masked_fill(~dead[:, None], 0.0).topk(k, dim=-1)
    acts = torch.zeros_like(preactivations).scatter(-1, best.indices, best.values.relu())
    own_layer = torch.stack([decoder[:, 0] for decoder in transcoder.W_dec])
    return reconstruction_loss(error.detach() - acts @ own_layer, outputs)


@dataclass(frozen=True)
class SparsityLoss:
    """Sparsity loss of a JumpReLU transcoder ("Circuit Tracing", transformer-circuits.pub 2025, appendix D).

    Args:
        weight: lambda of the sum over features of tanh(steepness x decoder norm x activation), which is ramped up.
        steepness: c; the larger it is, the closer is the sum to the number of active features.
        preactivations: weight of the distance of inactive features from their threshold, which keeps them from dying.
        ramp: share of the run's steps over which lambda rises from 0.

    Raises:
        ValueError: a weight is below 0, or a steepness or ramp is out of range.
    """

    weight: float = 0.01
    steepness: float = 4.0
    preactivations: float = 3e-6
    ramp: float = 1.0

    def __post_init__(self) -> None:
        if self.weight < 0 or self.preactivations < 0:
            raise ValueError("sparsity: weight and preactivations must not be negative")
        if not self.steepness > 0 or not 0 <= self.ramp <= 1:
            raise ValueError("sparsity: steepness must be positive, and ramp a share between 0 and 1")

    def __call__(
        self,
        transcoder: Transcoder,
        preactivations: Float[Tensor, "layer token feature"],
        acts: Float[Tensor, "layer token feature"],
        done: float,
    ) -> Float[Tensor, ""]:
        """The loss of a batch, summed over layers and features.

        Args:
            done: share of the run's steps that are over.
        """
        assert transcoder.threshold is not None
        norms = torch.stack([decoder.flatten(1).norm(dim=1) for decoder in transcoder.W_dec])[:, None]
        ramped = self.weight * (min(1.0, done / self.ramp) if self.ramp else 1.0)
        active = torch.tanh(self.steepness * norms * acts).sum(-1).mean(1).sum()
        below = (transcoder.threshold[:, None] - preactivations).relu() * norms
        return ramped * active + self.preactivations * below.sum(-1).mean(1).sum()
