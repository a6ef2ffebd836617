"""Calibrated start of a run: the gates are calibrated and the sparse model is measured, before the first step."""

from collections.abc import Callable, Sequence

from torch import nn

from lit_sparse.data.base import Batch
from lit_sparse.training.held_out import Evaluation
from lit_sparse.training.pace import Pace, Work
from lit_sparse.training.start.calibration import MEASUREMENTS, Calibration, Sensitivity


def calibrated_start(
    model: nn.Module,
    batches: Sequence[Batch],
    target: Calibration,
    evaluate: Callable[[], Evaluation | None],
    say: Callable[[str], None],
    pace: Pace,
) -> Evaluation | None:
    """Sets the cutoffs from which training starts; returns the result of `evaluate` at the start that `target`
    describes.

    Args:
        batches: training text on the model's device.
        say: prints a line.
        pace: takes the time of each stage.
    """
    targets = {"calibrated start": target}
    if target.train_from_kl is not None:
        targets["training starts from"] = Calibration(kl=target.train_from_kl)
    tokens = float(sum(batch["input_ids"].numel() for batch in batches))
    pace.expected[Work.SENSITIVITY] += tokens
    pace.expected[Work.SEARCH] += len(targets) * MEASUREMENTS / 2 * tokens  # about half of them are needed

    def apply(label: str) -> None:
        with pace.stage(Work.SEARCH, MEASUREMENTS * tokens, "calibrating gates") as advance:
            reached = sensitivity.apply(targets[label], advance)
        say(f"{label}: {reached.edge_fraction:.1%} of edges at KL {reached.kl:.4f} on training text")

    with pace.stage(Work.SENSITIVITY, tokens, "measuring what each edge costs") as advance:
        sensitivity = Sensitivity(model, batches, advance)
    first, *rest = targets
    apply(first)
    start = evaluate()
    for label in rest:
        apply(label)
    return start
