"""Selection of a run's best model."""

from dataclasses import dataclass

from lit_sparse.training.held_out import Evaluation


@dataclass(frozen=True)
class Selection:
    """Selects the sparsest model whose constraint holds on the validation split, with further requirements.

    Args:
        exact_match: for tasks with an answer, the share of sequences that must be right in every scored token, since a
            mean over tokens hides a few wrong answers. 0 counts them without a requirement; None does not count them.
        after: the share of the run after which models are selected. An earlier model is kept only while no later one
            satisfies the constraint. At high learning rates a good validation is partly luck.

    Raises:
        ValueError: a share is outside its range.
    """

    exact_match: float | None = None
    after: float = 0.0

    def __post_init__(self) -> None:
        if self.exact_match is not None and not 0 <= self.exact_match <= 1:
            raise ValueError(f"selection.exact_match is a share in [0, 1], got {self.exact_match}")
        if not 0 <= self.after < 1:
            raise ValueError(f"selection.after is a share of the run's steps in [0, 1), got {self.after}")

    @property
    def follows_progress(self) -> bool:
        return self.after > 0

    def score(self, result: Evaluation, violation: float, progress: float) -> float:
        """Score of which the best model has the lowest: the edge fraction if all requirements hold, else a number above
        any fraction. A model from before `after` comes between the two.

        Args:
            violation: violation of the constraint on the same text, relative to its scale; at most 0 if it holds.
            progress: share of the run that is over.
        """
        missed = max(violation, 0.0)
        if self.exact_match is not None:
            missed += max(self.exact_match - result.exact_match, 0.0)
        if missed > 0:
            return 2.0 + missed
        return result.edge_fraction + (progress < self.after)
