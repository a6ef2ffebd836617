"""Greedy pruning of a circuit, edge by edge, from the logits back (ACDC, Conmy et al., arXiv 2304.14997)."""

from jaxtyping import Bool, Float
from torch import Tensor

from lit_sparse.circuits.faithfulness import Evaluator
from lit_sparse.common.progress import Bar


def prune(
    evaluator: Evaluator,
    kept: Bool[Tensor, "writer reader"],
    scores: Float[Tensor, "writer reader"],
    threshold: float,
    *,
    bar: Bar | None = None,
) -> Bool[Tensor, "writer reader"]:
    """Removes every edge without which faithfulness falls by less than `threshold`. It takes one run per edge, so give
    it the few hundred edges that a cheaper method prefers, not a whole graph.

    ACDC rates an edge by the KL from the whole model. Here it is rated by faithfulness, as circuits are.

    Args:
        kept: the edges to start with.
        scores: edges of a reader are tried from the smallest magnitude up.
        threshold: loss of faithfulness, positive.

    Raises:
        ValueError: the threshold is not positive.
    """
    if threshold <= 0:
        raise ValueError(f"the threshold is a loss of faithfulness above 0, not {threshold}")
    graph = evaluator.stack.graph
    kept = graph.connected(kept)
    value = evaluator.edges(kept)
    for reader in reversed(range(len(graph.readers))):
        writers = kept[:, reader].nonzero()[:, 0]
        for writer in writers[scores[writers, reader].abs().argsort()].tolist():
            trial = kept.clone()
            trial[writer, reader] = False
            without = evaluator.edges(trial)
            if value - without < threshold:
                kept, value = trial, without
            if bar is not None:
                bar.update(1)
    return graph.connected(kept)
