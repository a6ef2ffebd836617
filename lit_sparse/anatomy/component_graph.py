"""The component graph: writers to the residual stream, its readers, and the edges between them.

Writers are the input embedding, every head and every MLP; readers are the queries, keys and values of every head,
every MLP, and the logits. Keys and values are the model's own, so with grouped queries a key reader serves several
heads. An edge goes from each writer to each reader that comes after it.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

Kind = Literal["embedding", "head", "mlp", "query", "key", "value", "logits"]


@dataclass(frozen=True)
class Node:
    """A writer or a reader. `layer` is -1 for the embedding and L for the logits. `head` is -1 where there is none."""

    kind: Kind
    layer: int
    head: int = -1

    @property
    def name(self) -> str:
        match self.kind:
            case "embedding" | "logits":
                return self.kind
            case "mlp":
                return f"mlp {self.layer}"
            case "head":
                return f"head {self.layer}.{self.head}"
            case _:
                return f"{self.kind} {self.layer}.{self.head}"


@dataclass(frozen=True)
class ComponentGraph:
    """Writers and readers of a model with `heads[l]` query heads and `kv_heads[l]` key/value heads in layer l.

    parallel: per layer, True if the MLP runs in parallel to the attention and so does not read its output.
    """

    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    parallel: tuple[bool, ...]

    @property
    def layers(self) -> int:
        return len(self.heads)

    @cached_property
    def writers(self) -> list[Node]:
        nodes = [Node("embedding", -1)]
        for layer, heads in enumerate(self.heads):
            nodes += [Node("head", layer, head) for head in range(heads)]
            nodes.append(Node("mlp", layer))
        return nodes

    @cached_property
    def readers(self) -> list[Node]:
        nodes: list[Node] = []
        for layer, (heads, kv_heads) in enumerate(zip(self.heads, self.kv_heads, strict=True)):
            nodes += [Node("query", layer, head) for head in range(heads)]
            nodes += [Node("key", layer, head) for head in range(kv_heads)]
            nodes += [Node("value", layer, head) for head in range(kv_heads)]
            nodes.append(Node("mlp", layer))
        nodes.append(Node("logits", self.layers))
        return nodes

    @property
    def nodes(self) -> int:
        """Embedding, heads, MLPs and logits."""
        return len(self.writers) + 1

    def attention_readers(self, layer: int) -> slice:
        """Indices of a layer's queries, keys and values among the readers."""
        start = sum(h + 2 * g + 1 for h, g in zip(self.heads[:layer], self.kv_heads[:layer], strict=True))
        return slice(start, start + self.heads[layer] + 2 * self.kv_heads[layer])

    def mlp_reader(self, layer: int) -> int:
        return int(self.attention_readers(layer).stop)

    def head_writers(self, layer: int) -> slice:
        """Indices of a layer's heads among the writers. All writers before its attention come before `start`."""
        start = 1 + sum(heads + 1 for heads in self.heads[:layer])
        return slice(start, start + self.heads[layer])

    def mlp_writer(self, layer: int) -> int:
        return int(self.head_writers(layer).stop)

    def writers_before_mlp(self, layer: int) -> int:
        """Number of writers, counted from the first, that a layer's MLP reads."""
        heads = self.head_writers(layer)
        return int(heads.start if self.parallel[layer] else heads.stop)

    @cached_property
    def edges(self) -> Bool[Tensor, "writer reader"]:
        """Mask of the edges that exist."""
        allowed = torch.zeros(len(self.writers), len(self.readers), dtype=torch.bool)
        for layer in range(self.layers):
            allowed[: self.head_writers(layer).start, self.attention_readers(layer)] = True
            allowed[: self.writers_before_mlp(layer), self.mlp_reader(layer)] = True
        allowed[:, -1] = True
        return allowed

    @cached_property
    def is_head(self) -> Bool[Tensor, " writer"]:
        return torch.tensor([node.kind == "head" for node in self.writers])

    @cached_property
    def feeds(self) -> Bool[Tensor, "reader writer"]:
        """Mask of the readers that make up each writer: a head's query, key and value, or an MLP's input."""
        feeds = torch.zeros(len(self.readers), len(self.writers), dtype=torch.bool)
        for layer, (heads, kv_heads) in enumerate(zip(self.heads, self.kv_heads, strict=True)):
            readers, writers = self.attention_readers(layer).start, self.head_writers(layer).start
            for head in range(heads):
                shared = head * kv_heads // heads
                for reader in (head, heads + shared, heads + kv_heads + shared):
                    feeds[readers + reader, writers + head] = True
            feeds[self.mlp_reader(layer), self.mlp_writer(layer)] = True
        return feeds

    def connected(self, kept: Bool[Tensor, "writer reader"]) -> Bool[Tensor, "writer reader"]:
        """The kept edges that lie on a path from the embedding to the logits."""
        kept = kept & self.edges
        forward = torch.zeros(len(self.writers), dtype=torch.bool)
        forward[0] = True
        for layer in range(self.layers):
            for readers, writers in self._steps(layer):
                heard = (kept[:, readers] & forward[:, None]).any(0)
                forward[writers] = (heard[:, None] & self.feeds[readers, writers]).any(0)
        backward = torch.zeros(len(self.readers), dtype=torch.bool)
        backward[-1] = True
        for layer in reversed(range(self.layers)):
            for readers, writers in reversed(self._steps(layer)):
                used = (kept[writers] & backward[None]).any(1)
                backward[readers] = (self.feeds[readers, writers] & used[None]).any(1)
        return kept & forward[:, None] & backward[None]

    def nodes_of(self, kept: Bool[Tensor, "writer reader"]) -> Bool[Tensor, " writer"]:
        """Writers that the kept edges touch, as an edge's writer or through an edge's reader."""
        return kept.any(1) | (kept.any(0)[:, None] & self.feeds).any(0)

    def _steps(self, layer: int) -> list[tuple[slice, slice]]:
        mlp_reader, mlp_writer = self.mlp_reader(layer), self.mlp_writer(layer)
        return [
            (self.attention_readers(layer), self.head_writers(layer)),
            (slice(mlp_reader, mlp_reader + 1), slice(mlp_writer, mlp_writer + 1)),
        ]
