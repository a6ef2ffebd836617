"""summary.json of a run: its results in numbers."""

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lit_sparse.common.formatting import decimal, signed
from lit_sparse.records.shown import Shown

# A loss may be infinite or not a number. Here and in files it then counts as not known.
Number = Annotated[
    float | None,
    BeforeValidator(lambda value: None if isinstance(value, float) and not math.isfinite(value) else value),
]


class RunSummary(Shown, BaseModel):
    """Results of a run on the test split, at its start and end, in nats per token with deterministic gates.

    Values that an older version did not measure are None. Fields of other versions are kept unchanged.

    edges_per_query, edge_fraction: open edges per query and head, and their share of the allowed edges at
        `sequence_length`; with `_start` before training.
    satisfied: True if `constraint_value` is at most `tolerance`, the tolerance on the test split.
        `tolerance_in_training` is the one on the validation split, which lambda followed and which selected the
        checkpoint.
    chosen_step: step of the checkpoint that was measured and exported.
    exact_match: the share of sequences that are right in every scored token, for tasks with an answer.
    model_digest: digest of the exported model, with which reports compare circuits, transcoders and graphs.
    """

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    model: str | None = None
    base_ce: Number = None
    ce: Number = None
    kl: Number = None
    sequence_length: int | None = None
    edges_per_query: Number = None
    edge_fraction: Number = None
    edges_per_query_start: Number = None
    edge_fraction_start: Number = None
    ce_start: Number = None
    test_tokens: int | None = None
    kl_start: Number = None
    constraint: str | None = None
    constraint_described: str | None = None
    satisfied: bool | None = None
    constraint_value: Number = None
    tolerance: Number = None
    tolerance_in_training: Number = None
    steps: int | None = None
    chosen_step: int | None = None
    tokens: int | None = None
    seconds: Number = None
    gate: str | None = None
    centered: bool | None = None
    multiplier: Number = Field(default=None, validation_alias="lambda", serialization_alias="lambda")
    exact_match: Number = None
    model_digest: str | None = None
    report_seconds: Number = None

    def __repr__(self) -> str:
        edges = f"{decimal(self.edges_per_query, 2)} open edges per query and head"
        return f"<RunSummary: {self.model}; {edges}, CE {signed(self.ce_change)}, KL {decimal(self.kl)}>"

    @property
    def ce_change(self) -> float | None:
        """Cross-entropy of the sparse model minus that of the base model."""
        return None if self.ce is None or self.base_ce is None else self.ce - self.base_ce

    def as_json(self) -> dict[str, Any]:
        """The file's content, with only the fields that were given."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)
