"""Gates on an edge's contribution: the probability times the value's norm (arXiv 2004.10102; the gate is this
project's)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lit_sparse.attention.gates.base import KeyOffset, register_gate
from lit_sparse.attention.gates.probability import Probability, ProbabilityGate

_TINY = 1e-12  # under a norm's square root: a value of zeros is a closed edge, not a NaN


@register_gate("contribution")
@dataclass(frozen=True, kw_only=True)
class Contribution(Probability):
    """z = kappa (log(p |v|) - log theta), theta per head: an edge's contribution to the head's output decides.

    A first token that takes a row's probability because the head needs no other key has a value near zero. Such rows
    close.

    Args:
        threshold: theta at the start: the p |v| above which an edge is open, positive.
        sharpness: kappa, the slope of the gate's logit in log(p |v|), at the start of a run.
        sharpness_end: kappa at the end of a run, to which it rises geometrically. Soft gates learn faster; evaluation
            uses the sharpest gates. None keeps it.
        learnable: True if cutoffs are trained; fixed cutoffs are still saved and calibrated.
        normalisation: "all" keys (the paper: a head may attend to nothing), or "open" edges share all of the weight.
        centered: closed edges give the head's mean output instead of nothing (`GateConfig`).
    """

    largest_threshold: ClassVar[float] = math.inf

    def build(self, num_heads: int) -> "ContributionGate":
        return ContributionGate(self, num_heads)


class ContributionGate(ProbabilityGate):
    """One layer's gates of the family `Contribution`."""

    def key_offset(self, value: Float[Tensor, "batch kv_head key value_dim"]) -> KeyOffset:
        wide = value.to(torch.promote_types(value.dtype, torch.float32))
        return 0.5 * torch.log(wide.square().sum(-1) + _TINY)
