"""Gates: one learnable decision per query-key pair, taken from the attention logits. Each family has a file.

Shapes (the whole package uses these): B batch, H query heads, G key/value heads, T queries, S keys,
D head dimension, L layers.

Every family here is of one form,

    gate_logits  z_ij = sharpness * (score_ij - cutoff_h)

with a score that is the attention logit itself (`Logit`), the log attention probability (`Probability`), or the log of
the edge's contribution, probability times the value's norm (`Contribution`). So an edge is open at evaluation exactly
if its score exceeds the head's cutoff. A new family is a `GateConfig` with its options and the `Gate` that it builds,
registered by the decorator `@register_gate("name")`. No other code changes.

Sources: the straight-through Bernoulli gate on the logits is SPARTAN's (arXiv 2411.06890) as used by Sparse
Post-Training (arXiv 2512.05865, section 3); p |v| as the measure of an edge is norm-based analysis (arXiv
2004.10102); gates on it and on the probability are this project's.
"""

from lit_sparse.attention.gates.base import (
    ALWAYS_OPEN,
    GATES,
    Gate,
    GateConfig,
    GateForm,
    KeyOffset,
    build_gate,
    register_gate,
)
from lit_sparse.attention.gates.contribution import Contribution, ContributionGate
from lit_sparse.attention.gates.logit import Logit, LogitGate
from lit_sparse.attention.gates.probability import Probability, ProbabilityGate

__all__ = [
    "ALWAYS_OPEN",
    "GATES",
    "Contribution",
    "ContributionGate",
    "Gate",
    "GateConfig",
    "GateForm",
    "KeyOffset",
    "Logit",
    "LogitGate",
    "Probability",
    "ProbabilityGate",
    "build_gate",
    "register_gate",
]
