"""Cross-entropy of a model when a transcoder replaces its MLPs."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lit_sparse.objective import IGNORED
from lit_sparse.transcoders.activations import Activations, Batch, MLPs
from lit_sparse.transcoders.transcoder import Transcoder

Output = Callable[[int, Tensor], Tensor]


def by_transcoder(transcoder: Transcoder) -> Output:
    """Replaces every MLP's output by the transcoder's, whose features read the replaced run. For one pass only."""
    acts: list[Tensor] = []

    def output(layer: int, mlp_input: Tensor) -> Tensor:
        acts.append(transcoder.activate(layer, transcoder.preactivations(layer, mlp_input.float())))
        return transcoder.write(layer, acts)

    return output


def by_mean(means: Float[Tensor, "layer model"]) -> Output:
    """Replaces every MLP's output by its mean, as the zero point of the comparison."""
    return lambda layer, mlp_input: means[layer].expand_as(mlp_input)


class CrossEntropies(NamedTuple):
    """Sums over scored tokens, in nats: of the model itself, with the transcoder for all MLPs at once, and with the
    MLPs' mean outputs; and the number of scored tokens."""

    own: Float[Tensor, ""]
    replacement: Float[Tensor, ""]
    mean_ablation: Float[Tensor, ""]
    tokens: Float[Tensor, ""]


@torch.no_grad()
def cross_entropies(
    mlps: MLPs, batch: Batch, transcoder: Transcoder, means: Float[Tensor, "layer model"]
) -> tuple[CrossEntropies, Activations]:
    """Cross-entropies of three passes over a batch, and the MLPs' inputs and outputs in the model's own pass."""
    scored = batch["labels"] != IGNORED

    def ce() -> Tensor:
        logits = mlps.logits(batch)[scored].float()
        return torch.nn.functional.cross_entropy(logits, batch["labels"][scored], reduction="sum").double()

    with mlps.noted() as notes:
        own = ce()
    with mlps.replaced(by_transcoder(transcoder)):
        replacement = ce()
    with mlps.replaced(by_mean(means)):
        mean_ablation = ce()
    sums = CrossEntropies(own, replacement, mean_ablation, scored.sum().double())
    return sums, notes.activations(batch["input_ids"].shape)
