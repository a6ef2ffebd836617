"""Parts of a model that are linear for a given prompt: norms with a fixed scale, and value projections."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_sparse.anatomy.calls import Projected
from lit_sparse.anatomy.stack import Stack

TOLERANCE = 1e-4
"""Largest allowed error of a linear replacement, relative to the largest exact value."""


@dataclass(frozen=True)
class FrozenNorm:
    """A norm on one prompt with frozen denominators: x -> scale_t * gain * (x - mean x, or x) + bias.

    scale: inverse denominator of each position.
    centred: True if the norm subtracts the mean.
    """

    scale: Float[Tensor, " time"]
    gain: Float[Tensor, " model"]
    bias: Float[Tensor, " model"]
    centred: bool

    def linear(
        self, vectors: Float[Tensor, "*batch model"], scale: Float[Tensor, "*#batch"]
    ) -> Float[Tensor, "*batch model"]:
        """Linear part of the norm on some vectors, each with its position's `scale`."""
        return self._centre(vectors) * self.gain * scale[..., None]

    def transposed(
        self, readers: Float[Tensor, "*batch model"], scale: Float[Tensor, "*#batch"]
    ) -> Float[Tensor, "*batch model"]:
        """Transposed linear part, which turns readers of the norm's output into readers of its input."""
        return self._centre(readers * self.gain) * scale[..., None]

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x


@torch.no_grad()
def freeze_norm(norm: Callable[[Tensor], Tensor], x: Float[Tensor, "time model"], family: str) -> FrozenNorm:
    """A norm with its denominators frozen at the inputs `x`. Its form is found from its outputs on known vectors, not
    from its name.

    Raises:
        ValueError: the norm is neither like RMSNorm, nor like LayerNorm, nor the identity.
    """
    probe = torch.ones_like(x[:1])
    probe[:, 1::2] = -1
    bias = norm(torch.zeros_like(probe))
    centred = torch.allclose(norm(probe + 1), norm(probe), rtol=1e-3, atol=1e-3)
    unscaled = FrozenNorm(x.new_ones(1), torch.ones_like(x[0]), torch.zeros_like(x[0]), centred)
    gain = (norm(probe) - bias) / unscaled.linear(probe, unscaled.scale)
    output, shape = norm(x), unscaled.linear(x, unscaled.scale) * gain
    size = shape.square().sum(-1)
    scale = ((output - bias) * shape).sum(-1) / torch.where(size > 0, size, 1.0)
    frozen = FrozenNorm(scale, gain[0], bias[0], centred)
    if _error(frozen.linear(x, scale) + bias, output) > TOLERANCE:
        raise ValueError(
            f"model family {family!r}: {type(norm).__name__} does not become linear when its denominator is fixed; "
            "attribution needs RMSNorm or LayerNorm"
        )
    return frozen


class LinearStack(Stack):
    """A `Stack` whose attention also takes vectors that have already passed the norm before it."""

    def __enter__(self) -> "LinearStack":
        super().__enter__()
        return self

    def project_normed(self, layer: int, hidden: Float[Tensor, "batch time model"]) -> Projected:
        """`project` without the norm before the attention."""
        view = copy.copy(self)
        layers = [replace(parts, before_attention=nn.Identity()) for parts in self.anatomy.layers]
        view.anatomy = replace(self.anatomy, layers=layers)
        return view.project(layer, hidden)

    def attention_call(self, layer: int, length: int) -> tuple[Tensor | None, dict[str, Any]]:
        """The mask and the keywords (scaling, softcap, ...) of a layer's attention, after `project` at that length."""
        return self._attention_arguments[layer, length]

    @torch.no_grad()
    def value_map(
        self, layer: int, normed: Float[Tensor, "time model"], value: Float[Tensor, "kv_head time value_dim"]
    ) -> tuple[Float[Tensor, "kv_head value_dim model"], Float[Tensor, "kv_head value_dim"]]:
        """Value projection as a matrix and a bias, found from unit vectors and checked on a prompt.

        Args:
            normed: input of the layer's attention on the prompt, after the norm.
            value: values that the layer computes from it.

        Raises:
            ValueError: values are not linear in the attention's input (as with latent attention's norms).
        """
        width = normed.shape[1]
        units = torch.cat([normed.new_zeros(1, width), torch.eye(width, dtype=normed.dtype, device=normed.device)])
        found = self.project_normed(layer, units[:, None]).value[:, :, 0]
        bias, weight = found[0], (found[1:] - found[0]).permute(1, 2, 0)
        if _error(torch.einsum("gvd,td->gtv", weight, normed) + bias[:, None], value) > TOLERANCE:
            raise ValueError(
                f"model family {self.model.config.model_type!r}: values are not linear in the input of layer {layer}'s "
                "attention, so its edges cannot be attributed to single writers"
            )
        return weight, bias


def _error(approximation: Tensor, exact: Tensor) -> float:
    largest = exact.abs().max()
    return float((approximation - exact).abs().max() / torch.where(largest > 0, largest, 1.0))
