"""Attention logits of one layer as bilinear forms in what nodes wrote at the query's and at the key's position.

Shapes: H heads, G key heads, T positions, D model width, d dimension of queries and keys.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from lit_sparse.anatomy.calls import Projected
from lit_sparse.anatomy.linear import TOLERANCE
from lit_sparse.attention.bridge import attention_problem
from lit_sparse.attention.reference import attention_logits
from lit_sparse.attribution.replacement import Replacement
from lit_sparse.attribution.writers import Writers

_UNITS = 64  # unit vectors that go through one attention call together


@dataclass(frozen=True)
class GateReading:
    """A gate's reading of one edge: z = sharpness * (score - cutoff), open if positive.

    score: depending on the gate's family, the edge's log probability, the log of probability times value norm, or the
        attention logit.
    """

    family: str
    z: float
    score: float
    cutoff: float
    sharpness: float


class LayerScores:
    """Attention logits of one layer, and their parts from pairs of nodes.

    Attributes:
        logits: (H, T, T) scaled query-key products, before a soft cap.
        softcap: soft cap of the attention logits, or None.

    Raises:
        ValueError: queries or keys are not linear in the attention's input.
    """

    @torch.no_grad()
    def __init__(self, replacement: Replacement, layer: int):
        self.replacement, self.layer = replacement, layer
        stack, projected, length = replacement.stack, replacement.projected[layer], len(replacement.embedding)
        query, key, _ = projected
        self.group = query.shape[1] // key.shape[1]
        mask, keywords = stack.attention_call(layer, length)
        edges, self.scaling = attention_problem(stack.anatomy.layers[layer].attention, query, key, mask, keywords)
        self.softcap: float | None = keywords.get("softcap")
        self.logits = attention_logits(query, key, scaling=self.scaling, softcap=None)[0]
        self._allowed = edges.dense()
        self._query, self._query_bias, self._key, self._key_bias = self._maps(projected)

    def gate(self, head: int, query: int, key: int) -> GateReading | None:
        """Reading of an edge's gate; None in a layer that keeps all its edges."""
        gate = self.replacement.stack.anatomy.layers[self.layer].attention.edge_gate
        if not gate.closable:
            return None
        z = float(self._gate_logits[head, query, key])
        form = gate.form()
        cutoff, sharpness = float(form.cutoff[head]), float(form.sharpness)
        return GateReading(gate.family, z, z / sharpness + cutoff, cutoff, sharpness)

    @cached_property
    def _gate_logits(self) -> Float[Tensor, "head query key"]:
        gate = self.replacement.stack.anatomy.layers[self.layer].attention.edge_gate
        query, key, value = self.replacement.projected[self.layer]
        logits = attention_logits(query, key, scaling=self.scaling, softcap=self.softcap)
        logits = logits.masked_fill(~self._allowed, torch.finfo(logits.dtype).min)
        offset = gate.key_offset(gate.deviation(value))
        lse = logits.logsumexp(-1, keepdim=True)
        seen: Tensor = gate(logits, lse) if offset is None else gate(logits, lse, offset)
        return seen[0]

    @torch.no_grad()
    def pairwise(
        self, writers: Writers, head: int, query: int, key: int
    ) -> tuple[slice, slice, Float[Tensor, "query_row key_row"]]:
        """The rows of the writers at the query's and at the key's position that the layer reads, and what each pair
        adds to the edge's logit. The sum of all is the logit. The first row on either side is biases."""
        norm = self.replacement.attention_norms[self.layer]
        sides = []
        for position, weight, bias in (
            (query, self._query[:, head, query], self._query_bias[head, query]),
            (key, self._key[:, head // self.group, key], self._key_bias[head // self.group, key]),
        ):
            rows = writers.seen(position, 3 * self.layer)
            normed = norm.linear(writers.written[rows], norm.scale[position, None])
            normed[0] += norm.bias
            factors = normed @ weight
            factors[0] += bias
            sides.append((rows, factors))
        (query_rows, queries), (key_rows, keys) = sides
        return query_rows, key_rows, self.scaling * queries @ keys.T

    def _maps(self, projected: Projected) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Query and key projections with their rotation, (D, H or G, T, d) and biases, found from unit vectors at all
        positions of the model's own attention call."""
        replacement, layer = self.replacement, self.layer
        normed = replacement.attention_inputs[layer]
        length, width = normed.shape
        zero = replacement.stack.project_normed(layer, normed.new_zeros(1, length, width))
        queries, keys = [], []
        for units in torch.eye(width, dtype=normed.dtype, device=normed.device).split(_UNITS):
            found = replacement.stack.project_normed(layer, units[:, None].repeat(1, length, 1))
            queries.append(found.query - zero.query)
            keys.append(found.key - zero.key)
        query, key = torch.cat(queries), torch.cat(keys)
        for weight, bias, true in ((query, zero.query, projected.query), (key, zero.key, projected.key)):
            error = (torch.einsum("jhtd,tj->htd", weight, normed) + bias[0] - true[0]).abs().max()
            if error > TOLERANCE * true.abs().max():
                raise ValueError(
                    f"model family {replacement.family!r}: queries and keys are not linear in the attention's input "
                    "(the family normalises them), so attention logits cannot be attributed to pairs of nodes"
                )
        return query, zero.query[0], key, zero.key[0]
