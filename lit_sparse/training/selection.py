"""Which of a run's models is kept as the best."""

from dataclasses import dataclass

from lit_sparse.training.held_out import Evaluation


@dataclass(frozen=True)
class Selection:
    """The sparsest model whose constraint holds on the validation split, and what else is asked of it.

    Args:
        exact_match: for tasks with an answer: the share of sequences that must be right in every scored token, since a
            mean over tokens hides a few wrong answers. 0 counts them and asks nothing; None does not count them.
        after: the share of the run after which models are selected; an earlier one is kept only while no later one
            satisfies the constraint. At high learning rates a good validation is partly luck.

    Raises:
        ValueError: a share outside its range.
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
        """What the best model has the least of: the edge fraction where everything holds, else more than any fraction;
        a model from before `after` comes between the two.

        Args:
            violation: of the constraint on the same text, relative to its scale; at most 0 where it holds.
            progress: share of the run that is over.
        """
        missed = max(violation, 0.0)
        if self.exact_match is not None:
            missed += max(self.exact_match - result.exact_match, 0.0)
        if missed > 0:
            return 2.0 + missed
        return result.edge_fraction + (progress < self.after)
