"""Quality of a transcoder on held-out text, accumulated over batches and ranks."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from lit_sparse.transcoders.fidelity import CrossEntropies
from lit_sparse.transcoders.scaling import massive


class TranscoderEvaluation(NamedTuple):
    """Quality of a transcoder by layer, and cross-entropies in nats per scored token.

    Attributes:
        explained_variance: explained share of the variance of each layer's MLP output, over tokens that are not massive
            in it.
        l0: active features per token, for each layer.
        ce, replacement_ce, mean_ablation_ce: cross-entropy of the model, with the transcoder for all its MLPs, and with
            the MLPs' mean outputs.
    """

    explained_variance: list[float]
    l0: list[float]
    ce: float
    replacement_ce: float
    mean_ablation_ce: float
    tokens: int

    def summary(self) -> dict[str, Any]:
        """Plain values: means over layers, and by layer."""
        layers = len(self.l0)
        return {
            "explained_variance": sum(self.explained_variance) / layers,
            "explained_variance_by_layer": self.explained_variance,
            "l0": sum(self.l0) / layers,
            "l0_by_layer": self.l0,
            "ce": self.ce,
            "replacement_ce": self.replacement_ce,
            "mean_ablation_ce": self.mean_ablation_ce,
        }


class TranscoderMetric(Metric):
    """Accumulates a `TranscoderEvaluation`.

    Args:
        layers: L.
        width: D.
    """

    full_state_update = False
    error: Tensor
    total: Tensor
    squares: Tensor
    ordinary: Tensor
    active: Tensor
    tokens: Tensor
    sums: Tensor

    def __init__(self, layers: int, width: int, **keywords: Any):
        super().__init__(**keywords)
        shapes = {"error": (layers,), "squares": (layers,), "total": (layers, width), "ordinary": (layers,)}
        for name, shape in {**shapes, "active": (layers,), "tokens": (), "sums": (4,)}.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        error: Float[Tensor, "layer token model"],
        outputs: Float[Tensor, "layer token model"],
        acts: Float[Tensor, "layer token feature"],
        sums: CrossEntropies,
    ) -> None:
        """Adds one batch of scaled activations."""
        ordinary = ~massive(outputs)[..., None]
        kept = outputs * ordinary
        self.error += (error * ordinary).pow(2).sum((1, 2)).double()
        self.total += kept.sum(1).double()
        self.squares += kept.pow(2).sum((1, 2)).double()
        self.ordinary += ordinary.sum((1, 2)).double()
        self.active += (acts > 0).sum((1, 2)).double()
        self.tokens += acts.shape[1]
        self.sums += torch.stack(list(sums))

    def compute(self) -> TranscoderEvaluation:
        variance = self.squares - self.total.pow(2).sum(1) / self.ordinary
        ce, replacement, mean_ablation, scored = self.sums.tolist()
        return TranscoderEvaluation(
            explained_variance=(1 - self.error / variance).tolist(),
            l0=(self.active / self.tokens).tolist(),
            ce=ce / scored,
            replacement_ce=replacement / scored,
            mean_ablation_ce=mean_ablation / scored,
            tokens=int(self.tokens),
        )
