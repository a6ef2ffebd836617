"""What training on the text does by itself: the same run with cross-entropy alone and every edge open."""

from torch import Tensor

from lit_sparse import SparseAttentionModule
from lit_sparse.attention import EdgeCounts
from lit_sparse.objective import TokenLosses


class DenseControl(SparseAttentionModule):
    """Fine-tunes densely. Compare its CE and KL with those of a sparse run of the same length."""

    def is_gated(self, layer: int) -> bool:
        return False

    def constraint_per_token(self, losses: TokenLosses) -> Tensor:
        return losses.ce

    def edge_loss(self, edges: EdgeCounts) -> Tensor:
        return edges.expected.sum() * 0.0
