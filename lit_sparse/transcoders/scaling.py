"""Scaling of MLP inputs and outputs to zero mean and unit size while a transcoder learns. Afterwards the scales are
folded into its weights.

A few tokens get outputs hundreds of times as large as all others (the massive activations behind attention sinks, arXiv
2402.17762; in SmolLM2-135M the first token of a text, 700 times in layer 11). They would dominate a mean or a mean
square over all tokens. All other tokens would then look perfectly explained and never be learned. So means and scales
are those of the ordinary tokens, and a massive token's loss is relative to its own size.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lit_sparse.transcoders.activations import Activations
from lit_sparse.transcoders.transcoder import Transcoder

MASSIVE = 16.0
"""A token is massive in a layer if its output's mean square is over this many times the layer's, which is a norm 4
times as large. The largest ordinary token of SmolLM2-135M is at about 3.5."""

MASSIVE_ACTIVATION = 50.0
"""Activation on massive tokens of the feature for them: more than ordinary features reach at the start."""


class Scaling(nn.Module):
    """Mean and root mean square of each layer's MLP input and output.

    Args:
        layers: L.
        width: D.
    """

    input_mean: Tensor
    input_scale: Tensor
    output_mean: Tensor
    output_scale: Tensor

    def __init__(self, layers: int, width: int):
        super().__init__()
        for name in ("input", "output"):
            self.register_buffer(f"{name}_mean", torch.zeros(layers, width))
            self.register_buffer(f"{name}_scale", torch.ones(layers))

    def measure(self, activations: Activations) -> None:
        """Sets all means and scales from a sample of tokens.

        Raises:
            ValueError: a layer's MLP has the same input or output at every token.
        """
        for name, sample in zip(("input", "output"), activations, strict=True):
            for layer, rows in enumerate(sample.flatten(1, -2).float()):
                mean, scale = _ordinary(rows)
                if not scale > 0:
                    raise ValueError(f"the MLP of layer {layer} has the same {name} at every token; nothing to learn")
                getattr(self, f"{name}_mean")[layer] = mean
                getattr(self, f"{name}_scale")[layer] = scale

    def apply_to(self, activations: Activations) -> Activations:
        """Scaled inputs and outputs, (L, N, D) each, in float32."""
        inputs, outputs = (part.flatten(1, -2).float() for part in activations)
        return Activations(
            (inputs - self.input_mean[:, None]) / self.input_scale[:, None, None],
            (outputs - self.output_mean[:, None]) / self.output_scale[:, None, None],
        )

    @torch.no_grad()
    def fold(self, scaled: Transcoder) -> Transcoder:
        """The same transcoder for raw inputs and outputs. Activations and thresholds do not change."""
        raw = Transcoder(scaled.config, scaled.layers, scaled.width).to(scaled.W_enc.device)
        raw.load_state_dict(scaled.state_dict())
        raw.W_enc.div_(self.input_scale[:, None, None])
        raw.b_enc.sub_(torch.einsum("lfd,ld->lf", raw.W_enc, self.input_mean))
        raw.b_dec.mul_(self.output_scale[:, None]).add_(self.output_mean)
        for layer, decoder in enumerate(raw.W_dec):
            decoder *= self.output_scale[layer : layer + decoder.shape[1], None]
        return raw.eval()


def massive(outputs: Float[Tensor, "layer token model"]) -> Bool[Tensor, "layer token"]:
    """Mask of the tokens that are massive in each layer, from scaled outputs."""
    return outputs.pow(2).mean(-1) > MASSIVE


@torch.no_grad()
def start_massive_features(transcoder: Transcoder, scaled: Activations) -> int:
    """Starts the first feature of each layer that has massive tokens as their feature; returns the number of layers.

    The feature reads the direction of their mean input. It turns on halfway between an ordinary token and them. It
    writes their mean output, which optimizer steps of a usual size would not reach.
    """
    marks = massive(scaled.outputs)
    for layer in marks.any(1).nonzero()[:, 0].tolist():
        direction = scaled.inputs[layer, marks[layer]].mean(0)
        transcoder.W_enc[layer, 0] = 2 * MASSIVE_ACTIVATION * direction / direction.pow(2).sum()
        transcoder.b_enc[layer, 0] = -MASSIVE_ACTIVATION
        transcoder.W_dec[layer][0, 0] = scaled.outputs[layer, marks[layer]].mean(0) / MASSIVE_ACTIVATION
    return int(marks.any(1).sum())


def _ordinary(rows: Float[Tensor, "token model"]) -> tuple[Float[Tensor, " model"], Float[Tensor, ""]]:
    """Mean of the tokens that are not massive, and their root mean square about it."""
    sizes = rows.norm(dim=1)
    rows = rows[sizes <= MASSIVE**0.5 * sizes.median()]
    mean = rows.mean(0)
    return mean, (rows - mean).pow(2).mean().sqrt()
