"""Held-out evaluation with deterministic gates, as one torchmetrics metric. It gives the same numbers in validation
during training, at the start and at the end, on any number of ranks."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from lit_sparse.attention.edges import EdgeCounts
from lit_sparse.objective.exact_match import exact_match
from lit_sparse.objective.losses import TokenLosses


class Evaluation(NamedTuple):
    """Means over scored tokens (nats) and edges over all heads. `open_fraction` is (L, H)."""

    ce: float
    base_ce: float
    kl: float
    constraint: float
    edge_fraction: float
    edges_per_query: float
    exact_match: float
    tokens: int
    open_fraction: Float[Tensor, "layer head"]

    def metrics(self) -> dict[str, float]:
        """The scalars to log, without exact match if it was not counted."""
        names = ["ce", "base_ce", "kl", "constraint", "edge_fraction", "edges_per_query", "exact_match"]
        values = {name: float(getattr(self, name)) for name in names}
        return {name: value for name, value in values.items() if value == value}


class EvaluationMetric(Metric):
    """Accumulates an `Evaluation` over batches and ranks."""

    full_state_update = False

    ce: Tensor
    base_ce: Tensor
    kl: Tensor
    constraint: Tensor
    tokens: Tensor
    queries: Tensor
    exact: Tensor
    sequences: Tensor
    opened: Tensor  # (L, H) from the first update on
    allowed: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in (
            "ce",
            "base_ce",
            "kl",
            "constraint",
            "tokens",
            "queries",
            "exact",
            "sequences",
            "opened",
            "allowed",
        ):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        losses: TokenLosses,
        per_token: Float[Tensor, "batch query"],
        edges: EdgeCounts,
        queries: int,
        predictions: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> None:
        """Adds one batch.

        Args:
            per_token: the constrained quantity of each token; only scored tokens count.
            queries: number of query positions in the batch, scored or not.
            predictions: argmax tokens (B, T), to count sequences with all scored tokens right.
            labels: (B, T), shifted; needed with predictions.
        """
        self.ce += losses.ce.double().sum()
        self.base_ce += losses.base_ce.double().sum()
        self.kl += losses.kl.double().sum()
        self.constraint += torch.where(losses.scored, per_token, 0).double().sum()
        self.tokens += losses.tokens()
        self.queries += queries
        self.opened = self.opened + edges.opened.double()
        self.allowed = self.allowed + edges.allowed.double()
        if predictions is not None and labels is not None:
            self.exact += exact_match(predictions, labels).sum()
            self.sequences += len(labels)

    def compute(self) -> Evaluation:
        heads = int((self.allowed > 0).sum())
        return Evaluation(
            ce=float(self.ce / self.tokens),
            base_ce=float(self.base_ce / self.tokens),
            kl=float(self.kl / self.tokens),
            constraint=float(self.constraint / self.tokens),
            edge_fraction=float(self.opened.sum() / self.allowed.sum()),
            edges_per_query=float(self.opened.sum() / self.queries / max(heads, 1)),
            exact_match=float(self.exact / self.sequences),
            tokens=int(self.tokens),
            open_fraction=(self.opened / self.allowed.clamp_min(1)).float().cpu(),
        )
