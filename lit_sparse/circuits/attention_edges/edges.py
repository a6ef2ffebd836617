"""Edges of some prompts as one list, and sets of these edges as switches of every layer."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class EdgeList:
    """A list of edges.

    Args:
        edges: per layer, a mask of the edges to list. A first dimension of 1 stands for all prompts.

    Attributes:
        prompts: number of prompts with edges of their own; 1 if edges are listed once for all prompts.
        layer, prompt, head, query, key: indices of each edge, in the order of layers, prompts, heads, queries and keys.
    """

    layer: Int[Tensor, " edge"]
    prompt: Int[Tensor, " edge"]
    head: Int[Tensor, " edge"]
    query: Int[Tensor, " edge"]
    key: Int[Tensor, " edge"]

    def __init__(self, edges: Sequence[Bool[Tensor, "#batch head query key"]]):
        self.prompts = len(edges[0])
        self._shapes = [some.shape for some in edges]
        self._sizes = [some.numel() for some in edges]
        self._place = torch.cat([some.flatten() for some in edges]).nonzero()[:, 0]
        counts = [int(some.sum()) for some in edges]
        device = self._place.device
        self.layer = torch.arange(len(edges), device=device).repeat_interleave(torch.tensor(counts, device=device))
        places = [some.nonzero().T for some in edges]
        self.prompt, self.head, self.query, self.key = torch.cat(places, dim=1)

    def __len__(self) -> int:
        return len(self._place)

    def switches(self, kept: Float[Tensor, "some edge"]) -> list[Float[Tensor, "some prompts head query key"]]:
        """Switches of every layer from those of the listed edges. All other edges are off. Differentiable."""
        flat = kept.new_zeros(len(kept), sum(self._sizes)).index_copy(1, self._place, kept)
        parts = flat.split(self._sizes, dim=1)
        return [part.view(-1, *shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def some(self, kept: Bool[Tensor, " edge"]) -> "EdgeList":
        """The list of the kept edges."""
        return EdgeList([layer[0] > 0 for layer in self.switches(kept.float()[None])])

    def gathered(self, layers: Sequence[Float[Tensor, "#batch head query key"]]) -> Float[Tensor, " edge"]:
        """Values of the listed edges, taken from one tensor per layer with the values of all edges."""
        return torch.cat([layer.flatten() for layer in layers])[self._place]
