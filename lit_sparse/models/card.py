"""The README of an exported model folder."""

from collections.abc import Mapping
from typing import Any

from lit_sparse.common import formatting as fmt


def model_card(measured: Mapping[str, Any], gate: Mapping[str, Any]) -> str:
    """Markdown for the exported folder's README.

    Args:
        measured: the content of a run's summary.json, any of it missing.
        gate: the gates' family and normalisation.
    """

    def number(key: str, form: str) -> str:
        value = measured.get(key)
        return form.format(value) if isinstance(value, int | float) else "not measured"

    share = fmt.edge_share(measured.get("edge_fraction"), measured.get("sequence_length"))
    per_query = number("edges_per_query", f"{{:.2f}} ({share})")
    before = measured.get("edges_per_query_start")
    if before is not None:
        per_query += f"; at the start {fmt.edges_at_start(before, measured.get('edge_fraction_start'))}"
    constraint = measured.get("constraint_described") or measured.get("constraint", "?")
    return f"""---
library_name: lit_sparse
tags: [sparse-attention, interpretability]
---

# Sparse attention model from {measured.get("model", "an unnamed base model")}

Post-trained so that attention is sparse edge by edge (arXiv 2512.05865), with {gate["family"]} gates normalised over
{gate["normalisation"]} keys. Load it with `lit_sparse.from_pretrained(name)`, or, after `import lit_sparse`, with
transformers' `AutoModelForCausalLM`; transformers alone refuses it, because it would run it with dense attention.

| test split, deterministic gates | |
|---|---|
| open edges per query and head | {per_query} |
| cross-entropy, nats per token | {number("ce", "{:.4f}")} (base: {number("base_ce", "{:.4f}")}) |
| KL from the base model, nats per token | {number("kl", "{:.4f}")} |
| constraint: {constraint} | {number("constraint_value", "{:.4f}")}, tolerance {number("tolerance", "{:.4f}")}, \
satisfied: {fmt.satisfied_text(measured.get("satisfied"))} |
| training | {number("steps", "{}")} steps, {number("tokens", "{:,}")} tokens, {number("seconds", "{:.0f}")} s |
"""
