"""Small models, dense or with gates that close about half of their edges."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_sparse import edit, sparsify
from lit_sparse.anatomy.stack import Stack
from lit_sparse.attention import gates_of
from lit_sparse.circuits.attention_edges.edges import EdgeList
from lit_sparse.circuits.attention_edges.passes import Passes, means
from tests.attention.test_families import CLOSING

_GATES: dict[str, dict[str, object]] = {"all": {}, "centered": {"centered": True}, "open": {"normalisation": "open"}}


@pytest.fixture
def build(make_model) -> Callable[..., PreTrainedModel]:
    """build(family, "dense", "all", "centered" or "open"), in float64 but for families that route tokens in float32."""

    def made(family: str, gates: str) -> PreTrainedModel:
        model = make_model(family)
        if gates != "dense":
            sparsify(model, {**CLOSING, **_GATES[gates]})
        for gate in gates_of(model) if gates == "centered" else []:
            gate.center.normal_(generator=torch.Generator().manual_seed(1))
        return model if family in ("mixtral", "deepseek_v3") else model.double()

    return made


@pytest.fixture
def sentences() -> Callable[..., Tensor]:
    """sentences(count, seed=0) -> what the copier reads."""
    return lambda count, seed=0: torch.randint(0, 16, (count, 8), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def passes_of(sentences) -> Callable[..., Passes]:
    """passes_of(stack, ids, off) of the copier."""

    def made(stack: Stack, ids: Tensor, off: str = "mean") -> Passes:
        corrupted = ids.clone()
        corrupted[:, 1] = (corrupted[:, 1] + 5) % 16
        return Passes(
            stack,
            ids,
            off,
            means=means(stack, sentences(32, seed=9).tolist()) if off == "mean" else None,
            corrupted=corrupted if off == "corrupted" else None,
        )

    return made


@pytest.fixture
def logits_with() -> Callable[..., Tensor]:
    """logits_with(passes, edges, kept) of one prompt by the model itself, outside of the stack."""

    @torch.no_grad()
    def logits(passes: Passes, edges: EdgeList, kept: Tensor) -> Tensor:
        assert len(passes) == 1
        with edit(passes.stack.model, instead=passes.instead) as edits:
            edits.keep(torch.stack([edges.layer, edges.head, edges.query, edges.key], dim=1)[kept].tolist())
            return passes.stack.model(passes.ids, use_cache=False).logits[:, -1]

    return logits
