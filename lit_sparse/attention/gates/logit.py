"""Gates on the attention logit, the paper's (arXiv 2512.05865, section 3)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lit_sparse.attention.gates.base import Gate, GateConfig, GateForm, register_gate


@register_gate("logit")
@dataclass(frozen=True, kw_only=True)
class Logit(GateConfig):
    """The paper's gate: z = s + b, b per head. It is a threshold on the raw logit, so it depends on the row's shift.

    Args:
        bias: b at the start; > 0 so that gates start open.
        learnable: True if cutoffs are trained; fixed cutoffs are still saved and calibrated.
        normalisation: "all" keys (the paper: a head may attend to nothing), or "open" edges share all of the weight.
        centered: closed edges give the head's mean output instead of nothing (`GateConfig`).
    """

    bias: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.bias):
            raise ValueError(f"gate bias must be finite, got {self.bias}")

    def build(self, num_heads: int) -> "LogitGate":
        return LogitGate(self, num_heads)


class LogitGate(Gate):
    """One layer's gates of the family `Logit`."""

    def __init__(self, config: Logit, num_heads: int):
        super().__init__(config, num_heads)
        self.bias = self.per_head(config.bias)

    def form(self) -> GateForm:
        return GateForm(sharpness=self.sharpness, cutoff=-self.bias, normalised=False)

    @torch.no_grad()
    def set_cutoff(self, cutoff: Float[Tensor, " head"]) -> None:
        self.bias.copy_(-cutoff)
