"""The last step of a run: what training left of the tolerance is turned into fewer edges.

Training aims at the tolerance with sampled gates on training text, and ends somewhat below it with deterministic gates
on held-out text. Near the frontier edges behave like KL^-1.3, so that slack is worth having: all cutoffs rise together
until validation text is `margin` below the tolerance. One number, fitted to thousands of tokens; test text reports it.
"""

from collections.abc import Sequence

from torch import Tensor

from lit_sparse.attention import gates_of
from lit_sparse.evaluation import Evaluation
from lit_sparse.module import SparseAttentionModule

_MEASUREMENTS = 5
_FIRST = 0.1  # nats of log score: about a tenth of the edges
_CLOSE = 0.02  # of the tolerance


def tighten(module: SparseAttentionModule, batches: Sequence[dict[str, Tensor]]) -> float:
    """Raises every closable head's cutoff by the same amount, as far as the constraint holds with the module's margin.

    Args:
        batches: validation text.

    Returns:
        The amount, in the gate's score (nats for `probability` and `contribution`); 0 where there is no slack.
    """
    assert module.model is not None
    gates = [gate for gate in gates_of(module.model) if gate.closable]
    cutoffs = [gate.form().cutoff.detach().clone() for gate in gates]

    def excess(amount: float) -> float:
        """Relative violation beyond the margin, cutoffs raised by an amount: <= 0 is allowed."""
        for gate, cutoff in zip(gates, cutoffs, strict=True):
            gate.set_cutoff(cutoff + amount)
        reached: Evaluation = module.evaluate(batches, "using the tolerance")
        return module.constraint.violation(reached.constraint) + module.margin

    low, at_low = 0.0, excess(0.0)
    high, at_high = float("inf"), float("inf")
    amount = _FIRST
    for _ in range(_MEASUREMENTS - 1):
        if at_low > -_CLOSE:
            break
        value = excess(amount)
        if value <= 0:
            slope = (value - at_low) / (amount - low)
            low, at_low = amount, value
            step = -value / slope if slope > 0 else amount
            amount = min(low + min(step, 4 * _FIRST), high)
        else:
            high, at_high = amount, value
        if high < float("inf"):  # between the two, where the line through them is zero; short of it
            amount = low + (high - low) * min(max(-at_low / (at_high - at_low), 0.1), 0.9)
    for gate, cutoff in zip(gates, cutoffs, strict=True):
        gate.set_cutoff(cutoff + low)
    return low
