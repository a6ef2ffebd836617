"""Transcoders: sparse features that read an MLP's input and together write the MLP's output to the residual stream.

Shapes: L layers, F features of a layer, D model width. A cross-layer transcoder's feature reads one layer and writes to
that layer's MLP output and to every later one's ("Circuit Tracing", transformer-circuits.pub 2025); a feature of a set
of transcoders writes to its own layer's only (arXiv 2406.11944).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

ACTIVATIONS = ("topk", "jumprelu")
READS, WRITES = ("mlp.hook_in", "hook_resid_mid"), ("hook_mlp_out", "mlp.hook_out")

BANDWIDTH = 0.5
"""Width of the kernel that estimates a threshold's gradient, in units of preactivations (whose spread is about 1)."""


@dataclass(frozen=True)
class TranscoderConfig:
    """Size and kind of a transcoder.

    Args:
        features: F, number of features of each layer.
        cross_layer: True if a feature writes to its own and every later layer's MLP output, False if only to its own.
        activation: "topk" keeps a token's k largest preactivations of a layer, as far as they are positive
            (arXiv 2406.04093); "jumprelu" those above a learned threshold of each feature (arXiv 2407.14435).
        k: features kept per layer and token; for topk only.

    Raises:
        ValueError: a size is not positive, or the activation is unknown.
    """

    features: int
    cross_layer: bool = True
    activation: str = "topk"
    k: int = 16

    def __post_init__(self) -> None:
        if self.features < 1:
            raise ValueError(f"features must be at least 1, got {self.features}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")
        if self.activation == "topk" and not 1 <= self.k <= self.features:
            raise ValueError(f"k lies between 1 and features = {self.features}, got {self.k}")


class Transcoder(nn.Module):
    """One transcoder for all layers of a model.

    W_enc (L, F, D), b_enc (L, F), b_dec (L, D), threshold (L, F) or None. W_dec[l] (F, L - l, D), or (F, 1, D) if
    features write to their own layer only; its slot j writes to the MLP output of layer l + j.

    Args:
        layers: L.
        width: D.
        reads, writes: the places in a layer, as circuit-tracer calls them. Training makes transcoders of the MLP's
            input and of what the MLP adds to the residual stream; "hook_resid_mid" is the residual stream before the
            MLP's norm, "mlp.hook_out" the MLP's output before a norm that may follow.

    Raises:
        ValueError: other places.
    """

    threshold: nn.Parameter | None

    def __init__(
        self, config: TranscoderConfig, layers: int, width: int, *, reads: str = READS[0], writes: str = WRITES[0]
    ):
        super().__init__()
        for place, known in ((reads, READS), (writes, WRITES)):
            if place not in known:
                raise ValueError(f"transcoders of {place} are not supported, those of {' and '.join(known)} are")
        self.config, self.layers, self.width, self.reads, self.writes = config, layers, width, reads, writes
        features = config.features
        self.W_enc = nn.Parameter(torch.empty(layers, features, width).uniform_(-1, 1) * math.sqrt(3 / width))
        self.b_enc = nn.Parameter(torch.zeros(layers, features))
        self.b_dec = nn.Parameter(torch.zeros(layers, width))
        has_threshold = config.activation == "jumprelu"
        self.threshold = nn.Parameter(torch.full((layers, features), 0.5)) if has_threshold else None
        slots = [layers - layer if config.cross_layer else 1 for layer in range(layers)]
        bound = 1 / math.sqrt(layers * width)  # small, so that all features together write little at first
        self.W_dec = nn.ParameterList(torch.empty(features, count, width).uniform_(-bound, bound) for count in slots)

    def preactivations(self, layer: int, mlp_input: Float[Tensor, "*batch model"]) -> Float[Tensor, "*batch feature"]:
        """Preactivations of one layer's features, with their biases."""
        return nn.functional.linear(mlp_input, self.W_enc[layer], self.b_enc[layer])

    def activate(self, layer: int, preactivations: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]:
        """Activations of one layer: 0 for an inactive feature, else its preactivation, which is then positive."""
        return self._activate(preactivations, None if self.threshold is None else self.threshold[layer])

    def encode(self, mlp_inputs: Float[Tensor, "layer *batch model"]) -> Float[Tensor, "layer *batch feature"]:
        """Activations of all layers' features on the inputs of all layers' MLPs."""
        return self.activate_all(self.preactivate_all(mlp_inputs))

    def preactivate_all(self, mlp_inputs: Float[Tensor, "layer *batch model"]) -> Float[Tensor, "layer *batch feature"]:
        """`preactivations` of all layers in one product."""
        read = torch.baddbmm(self.b_enc[:, None], mlp_inputs.flatten(1, -2), self.W_enc.mT)
        folded: Tensor = read.unflatten(1, mlp_inputs.shape[1:-1])
        return folded

    def activate_all(
        self, preactivations: Float[Tensor, "layer *batch feature"]
    ) -> Float[Tensor, "layer *batch feature"]:
        """`activate` for all layers."""
        if self.threshold is None:
            return self._activate(preactivations, None)
        ones = (1,) * (preactivations.dim() - 2)
        return self._activate(preactivations, self.threshold.view(self.layers, *ones, -1))

    def decode(self, acts: Float[Tensor, "layer *batch feature"]) -> Float[Tensor, "layer *batch model"]:
        """The transcoder's output for every layer's MLP output: the sum over source layers, plus b_dec."""
        slots = [weight.unbind(1) for weight in self.W_dec]  # so that gradients come back in one piece each
        return torch.stack([self._write(layer, acts, slots) for layer in range(self.layers)])

    def write(
        self, layer: int, acts: Sequence[Float[Tensor, "*batch feature"]] | Float[Tensor, "source *batch feature"]
    ) -> Float[Tensor, "*batch model"]:
        """The transcoder's output for one layer's MLP output.

        Args:
            acts: activations by source layer, at least of all layers up to this one.
        """
        return self._write(layer, acts, [weight.unbind(1) for weight in self.W_dec])

    def forward(self, mlp_inputs: Float[Tensor, "layer *batch model"]) -> Float[Tensor, "layer *batch model"]:
        """Approximates all layers' MLP outputs from their inputs."""
        return self.decode(self.encode(mlp_inputs))

    def _activate(self, preactivations: Tensor, threshold: Tensor | None) -> Tensor:
        if threshold is not None:
            kept: Tensor = _JumpReLU.apply(preactivations, threshold.to(preactivations.dtype))  # type: ignore[no-untyped-call]
            return kept
        top = preactivations.topk(self.config.k, dim=-1)
        return torch.zeros_like(preactivations).scatter(-1, top.indices, top.values.relu())

    def _write(self, layer: int, acts: Sequence[Tensor] | Tensor, slots: list[tuple[Tensor, ...]]) -> Tensor:
        # One product over all source layers' features instead of one product a source layer.
        sources = range(layer + 1) if self.config.cross_layer else range(layer, layer + 1)
        features = torch.cat([acts[source] for source in sources], dim=-1)
        decoders = torch.cat([slots[source][layer - source] for source in sources])
        return features @ decoders + self.b_dec[layer]


class _JumpReLU(torch.autograd.Function):
    """x where x > threshold and x > 0, else 0; the threshold's gradient by a kernel (arXiv 2407.14435, equation 11)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(x, threshold)
        return x * ((x > threshold) & (x > 0))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        x, threshold = ctx.saved_tensors
        near = ((x - threshold).abs() < BANDWIDTH / 2) * (-threshold / BANDWIDTH)
        return gradient * ((x > threshold) & (x > 0)), (gradient * near).sum_to_size(threshold.shape)
