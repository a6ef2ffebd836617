"""A subclass for an architecture that needs something of its own.

Gemma 2 and 3 alternate layers with a sliding window and layers that see everything. In the windowed layers most keys
are out of reach anyway, so this subclass leaves them dense and spends the budget on the global layers; and it weighs
their edges by layer, because an edge in an early layer feeds everything after it.

    python main.py fit --config configs/quickstart.yaml \\
        --model examples.gemma_local_layers.GlobalLayersOnly --model.model google/gemma-3-270m
"""

import torch
from torch import Tensor
from transformers import AutoConfig

from lit_sparse import SparseAttentionModule
from lit_sparse.attention import EdgeCounts
from lit_sparse.models import resolve_model


class GlobalLayersOnly(SparseAttentionModule):
    """Closes edges only in layers without a sliding window.

    Args:
        depth_discount: weight of the last layer's edges relative to the first's, in (0, 1].
    """

    def __init__(self, *args, depth_discount: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        if not 0 < depth_discount <= 1:
            raise ValueError(f"depth_discount must lie in (0, 1], got {depth_discount}")
        self.depth_discount = depth_discount
        self._global: list[bool] | None = None

    def is_gated(self, layer: int) -> bool:
        if self._global is None:
            config = AutoConfig.from_pretrained(resolve_model(self.base_name)).get_text_config()
            types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
            self._global = [kind == "full_attention" for kind in types]
        return self._global[layer]

    def edge_loss(self, edges: EdgeCounts) -> Tensor:
        layers = edges.expected.shape[0]
        weight = torch.linspace(1.0, self.depth_discount, layers, device=edges.expected.device)[:, None]
        return super().edge_loss(EdgeCounts(weight * edges.expected, edges.opened, edges.allowed))
