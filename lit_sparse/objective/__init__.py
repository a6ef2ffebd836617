"""The constrained objective: fewer edges, subject to a constraint on the loss, by a Lagrangian."""

from lit_sparse.objective.constraint import KL, Absolute, Constraint, Paired
from lit_sparse.objective.edges import EdgeFraction, EdgeObjective, LogEdgeFraction
from lit_sparse.objective.lagrangian import Lagrangian
from lit_sparse.objective.losses import IGNORED, TokenLosses, token_losses
from lit_sparse.objective.multiplier import Fixed, Geco, Multiplier, NuPI

__all__ = [
    "IGNORED",
    "KL",
    "Absolute",
    "Constraint",
    "EdgeFraction",
    "EdgeObjective",
    "Fixed",
    "Geco",
    "Lagrangian",
    "LogEdgeFraction",
    "Multiplier",
    "NuPI",
    "Paired",
    "TokenLosses",
    "token_losses",
]
