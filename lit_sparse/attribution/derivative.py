"""Derivatives of the explained logits in the frozen replacement model, by one pass back through its layers.

Shapes: L layers, H heads, T positions, D model width, V the values' dimension.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_sparse.attribution.replacement import Replacement

COVERED = 0.95
MOST = 10


class Explained(NamedTuple):
    """The logits that a graph explains: tokens, most probable first, and their probabilities."""

    ids: Int[Tensor, " logit"]
    probabilities: Float[Tensor, " logit"]


@torch.no_grad()
def explained_logits(logits: Float[Tensor, " token"], answer_id: int | None) -> Explained:
    """The most probable tokens that together have 95 % of the probability, at most ten; or only `answer_id`.

    Raises:
        ValueError: the answer is outside the vocabulary.
    """
    probabilities = logits.softmax(-1)
    if answer_id is not None:
        if not 0 <= answer_id < len(logits):
            raise ValueError(f"answer_id is a token of 0 to {len(logits) - 1}, got {answer_id}")
        ids = torch.tensor([answer_id], device=logits.device)
        return Explained(ids, probabilities[ids])
    top = probabilities.topk(min(MOST, len(logits)))
    count = int((top.values.cumsum(0) < COVERED).sum()) + 1
    return Explained(top.indices[:count], top.values[:count])


@torch.no_grad()
def unembedding_rows(replacement: Replacement, ids: Int[Tensor, " logit"]) -> Float[Tensor, "logit model"]:
    """Unembedding rows minus the mean row, which read the final norm's output. The mean over the vocabulary is
    subtracted because a shift of all logits changes nothing."""
    weight = replacement.vocabulary[0]
    return weight[ids] - weight.mean(0)


class Derivatives(NamedTuple):
    """Derivatives of the metric sum_k p_k (logit_k - mean logit), with p fixed.

    attention: per layer (T, D), in what the layer's attention adds to the residual stream.
    outputs: per layer (T, H, V), in each head's output before the output projection.
    """

    attention: list[Float[Tensor, "time model"]]
    outputs: list[Float[Tensor, "time head value_dim"]]


@torch.no_grad()
def total_derivatives(replacement: Replacement, explained: Explained) -> Derivatives:
    """Derivatives over all paths, also through later features and heads. Attention weights, norm denominators, the set
    of active features and errors are constants."""
    direction = explained.probabilities.to(replacement.embedding.dtype) @ unembedding_rows(replacement, explained.ids)
    gradient = torch.zeros_like(replacement.embedding)  # in the residual stream after the layer
    gradient[-1] = replacement.final_norm.transposed(direction[None], replacement.final_norm.scale)[0]
    written: list[Tensor] = [gradient] * replacement.layers  # in what each layer's MLP adds
    attention: list[Tensor] = [gradient] * replacement.layers
    outputs: list[Tensor] = [gradient] * replacement.layers
    for layer in reversed(range(replacement.layers)):
        written[layer] = gradient
        through_mlp = _through_features(replacement, layer, written)
        attention[layer] = gradient if replacement.parallel[layer] else gradient + through_mlp
        after = replacement.after_attention[layer]
        outputs[layer] = torch.einsum(
            "td,dhv->thv", after.transposed(attention[layer], after.scale), replacement.outputs[layer]
        )
        values = torch.einsum("hts,thv->shv", replacement.weights[layer], outputs[layer])
        read = torch.einsum("shv,hvd->sd", values, replacement.values[layer][0])
        norm = replacement.attention_norms[layer]
        gradient = gradient + through_mlp + norm.transposed(read, norm.scale)
    return Derivatives(attention, outputs)


def _through_features(
    replacement: Replacement, layer: int, written: list[Float[Tensor, "time model"]]
) -> Float[Tensor, "time model"]:
    """Derivative in the residual stream that a layer's MLP reads, through the features of that layer."""
    activations, decoder = replacement.activations[layer], replacement.decoders[layer]
    position, feature = activations.nonzero(as_tuple=True)
    slope = activations.new_zeros(len(position))
    for slot in range(decoder.shape[1]):
        slope += (decoder[feature, slot] * written[layer + slot][position]).sum(-1)
    read = replacement.transcoder.W_enc[layer][feature] * slope[:, None]
    norm = replacement.mlp_norms[layer]
    return norm.transposed(torch.zeros_like(written[layer]).index_add(0, position, read), norm.scale)
