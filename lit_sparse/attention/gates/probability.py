"""Gates on the attention probability (this project's)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lit_sparse.attention.gates.base import Gate, GateConfig, GateForm, register_gate


@register_gate("probability")
@dataclass(frozen=True, kw_only=True)
class Probability(GateConfig):
    """z = kappa (log p - log theta), theta per head: invariant to shifts of a row of logits.

    Args:
        threshold: theta at the start: the probability p above which an edge is open, in (0, 1).
        sharpness: kappa, the slope of the gate's logit in log p, at the start of a run.
        sharpness_end: kappa at the end of a run, to which it rises geometrically. Soft gates learn faster; evaluation
            uses the sharpest gates. None keeps it.
        learnable: True if cutoffs are trained; fixed cutoffs are still saved and calibrated.
        normalisation: "all" keys (the paper: a head may attend to nothing), or "open" edges share all of the weight.
        centered: closed edges give the head's mean output instead of nothing (`GateConfig`).
    """

    threshold: float = 1e-3
    sharpness: float = 2.0
    sharpness_end: float | None = None

    largest_threshold: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.threshold < self.largest_threshold:
            raise ValueError(f"gate threshold must lie in (0, {self.largest_threshold:g}), got {self.threshold}")
        for name, value in (("sharpness", self.sharpness), ("sharpness_end", self.sharpness_end)):
            if value is not None and not 0.0 < value < math.inf:
                raise ValueError(f"gate {name} must be positive and finite, got {value}")

    def build(self, num_heads: int) -> "ProbabilityGate":
        return ProbabilityGate(self, num_heads)

    def sharpness_at(self, progress: float) -> float:
        end = self.sharpness if self.sharpness_end is None else self.sharpness_end
        return float(self.sharpness * (end / self.sharpness) ** progress)

    @property
    def follows_progress(self) -> bool:
        return self.sharpness_end is not None


class ProbabilityGate(Gate):
    """One layer's gates of the family `Probability`."""

    def __init__(self, config: Probability, num_heads: int):
        super().__init__(config, num_heads)
        self.log_threshold = self.per_head(math.log(config.threshold))

    def form(self) -> GateForm:
        return GateForm(sharpness=self.sharpness, cutoff=self.log_threshold, normalised=True)

    @torch.no_grad()
    def set_cutoff(self, cutoff: Float[Tensor, " head"]) -> None:
        self.log_threshold.copy_(cutoff)
