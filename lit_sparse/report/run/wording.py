"""Wording of a run's summary, for its page, its story, its plots and its table."""

from lit_sparse.common.formatting import (
    MISSING,
    count,
    decimal,
    duration,
    edge_share,
    edges_at_start,
    percent,
    satisfied_text,
    signed,
    visible,
)
from lit_sparse.records.run_summary import RunSummary
from lit_sparse.report.shared.tile import Tile

CONSTRAINT_NAMES = {
    "kl": "KL divergence from the base model",
    "paired": "cross-entropy above the base model's",
    "absolute": "cross-entropy",
}


def open_edges(summary: RunSummary) -> str | None:
    """A run's headline: 2.59 open edges per query and head (2.23 % of the allowed ones, T = 256)."""
    if summary.edges_per_query is None:
        return None
    return f"{summary.edges_per_query:.2f} open edges per query and head ({share_at_end(summary)})"


def share_at_end(summary: RunSummary) -> str:
    return edge_share(summary.edge_fraction, summary.sequence_length)


def edges_before(summary: RunSummary) -> str:
    """Open edges per query and head at the start of training (older records: the share on the validation split)."""
    return edges_at_start(summary.edges_per_query_start, summary.edge_fraction_start)


def edges_tile(summary: RunSummary) -> Tile:
    more = f"{share_at_end(summary)}; {edges_before(summary)} at the start of training"
    return Tile("Open edges per query and head", decimal(summary.edges_per_query, 2), more)


def constraint_name(summary: RunSummary) -> str:
    """Name of the constrained measure."""
    kind = summary.constraint
    return CONSTRAINT_NAMES.get(kind, visible(kind)) if kind else "constraint"


def constraint_words(summary: RunSummary) -> str:
    """The constraint in words, as the run recorded it if it did."""
    what = CONSTRAINT_NAMES.get(summary.constraint or "", "distance from the base model, or its loss,")
    return summary.constraint_described or f"the model's {what} has to stay at or below the tolerance"


def summary_rows(summary: RunSummary) -> list[tuple[str, str]]:
    """The summary as (label, value) rows; what is missing is a dash, what is optional is left out."""
    value, tolerance, kind = summary.constraint_value, summary.tolerance, summary.constraint
    if value is None or tolerance is None:
        comparison = f"{decimal(value)} (tolerance {decimal(tolerance)})"
    else:
        comparison = f"{decimal(value)} {'≤' if value <= tolerance else '>'} {decimal(tolerance)} (tolerance)"
    change = f"{decimal(summary.base_ce)} → {decimal(summary.ce)} ({signed(summary.ce_change)})"
    rows = [
        ("Model", visible(summary.model or MISSING)),
        ("Open edges per query and head", f"{decimal(summary.edges_per_query, 2)} ({share_at_end(summary)})"),
        ("… at the start of training", edges_before(summary)),
        ("Cross-entropy, base → sparse", f"{change} nats/token"),
        ("KL from the base model", f"{decimal(summary.kl)} nats/token"),
        (f"Constraint ({visible(kind)})" if kind else "Constraint", comparison),
        ("Constraint satisfied", satisfied_text(summary.satisfied)),
    ]
    if summary.exact_match is not None:
        rows.append(("Exact match", percent(summary.exact_match)))
    training = f"{count(summary.steps)} steps, {count(summary.tokens)} tokens, {duration(summary.seconds)}"
    return [*rows, ("Training", training)]
