"""The README of an exported model folder."""

from collections.abc import Mapping
from typing import Any


def model_card(measured: Mapping[str, Any], gate: Mapping[str, Any]) -> str:
    """Markdown for the exported folder's README."""

    def number(key: str, form: str) -> str:
        value = measured.get(key)
        return form.format(value) if isinstance(value, int | float) else "not measured"

    return f"""---
library_name: lit_sparse
tags: [sparse-attention, interpretability]
---

# Sparse attention model from {measured.get("model", "an unnamed base model")}

Post-trained so that attention is sparse edge by edge (arXiv 2512.05865), with {gate["family"]} gates normalised over
{gate["normalisation"]} keys. Load it with `lit_sparse.load_sparse(folder)`; loaded with transformers alone it runs
with all edges open.

| held-out, deterministic gates | |
|---|---|
| edges kept | {number("edge_fraction", "{:.3%}")} (start: {number("edge_fraction_start", "{:.1%}")}) |
| edges per query and head | {number("edges_per_query", "{:.2f}")} |
| cross-entropy, nats per token | {number("ce", "{:.4f}")} (base: {number("base_ce", "{:.4f}")}) |
| KL from the base model, nats per token | {number("kl", "{:.4f}")} |
| constraint | {measured.get("constraint", "?")} <= {number("tolerance", "{:.4g}")}, \
satisfied: {measured.get("satisfied", "?")} |
| training | {number("steps", "{}")} steps, {number("tokens", "{:,}")} tokens, {number("seconds", "{:.0f}")} s |
"""
