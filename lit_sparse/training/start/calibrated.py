"""Calibrated start of a run: the gates are calibrated and the sparse model is measured, before the first step."""

from collections.abc import Callable, Sequence

from torch import nn

from lit_sparse.common.progress import progress_bar
from lit_sparse.data.base import Batch
from lit_sparse.training.held_out import Evaluation
from lit_sparse.training.start.calibration import Calibration, Sensitivity


def calibrated_start(
    model: nn.Module,
    batches: Sequence[Batch],
    target: Calibration,
    evaluate: Callable[[], Evaluation | None],
    say: Callable[[str], None],
) -> Evaluation | None:
    """Sets the cutoffs from which training starts; returns the result of `evaluate` at the start that `target`
    describes.

    Args:
        batches: training text on the model's device.
        say: prints a line.
    """
    with progress_bar("what each edge costs") as advance:
        sensitivity = Sensitivity(model, batches, advance)
    _apply(sensitivity, target, "calibrated start", say)
    start = evaluate()
    if target.train_from_kl is not None:
        _apply(sensitivity, Calibration(kl=target.train_from_kl), "training starts from", say)
    return start


def _apply(sensitivity: Sensitivity, target: Calibration, label: str, say: Callable[[str], None]) -> None:
    with progress_bar("calibrating gates") as advance:
        reached = sensitivity.apply(target, advance)
    say(f"{label}: {reached.edge_fraction:.1%} of edges at KL {reached.kl:.4f} on training text")
