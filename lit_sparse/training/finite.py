"""Guard against losses and gradients that are not finite."""

import torch
from torch import Tensor

from lit_sparse.common.errors import NonFiniteLossError
from lit_sparse.objective.ranks import Reduce


class FiniteGuard:
    """Records the first step whose loss or gradients are not finite. It stays on the device, because reading it would
    wait for the step.

    Such a step has spoiled the weights in memory, but nothing is saved before the next `check`.
    """

    def __init__(self) -> None:
        self._window: list[Tensor] = []  # per micro-batch since the last step: loss, CE's sum, tokens
        self._broken: Tensor | None = None  # since the last check: (1 or 0, step, loss, CE)

    def observe(self, loss: Tensor, ce: Tensor, tokens: Tensor) -> None:
        """Records a micro-batch: its loss, and the sum of CE over its scored tokens."""
        self._window.append(torch.stack([loss.detach(), ce.detach(), tokens.to(ce.dtype)]))

    def step(self, step: int, finite_gradients: Tensor, ranks: int, reduce: Reduce) -> None:
        """Records an optimizer step that is over. All ranks call it.

        Args:
            step: number of the optimizer step.
            finite_gradients: 0-d boolean, True if this rank's gradients were finite.
            reduce: sums over ranks.
        """
        summed = torch.stack(self._window).sum(dim=0)
        micro_batches = len(self._window) * ranks
        self._window.clear()
        loss, ce, tokens, finite = reduce(torch.cat([summed, finite_gradients.to(summed)[None]]))
        broken = ~(loss.isfinite() & (finite == ranks))
        now = torch.stack([broken.to(loss.dtype), torch.full_like(loss, step), loss / micro_batches, ce / tokens])
        if self._broken is not None:
            now = torch.where(self._broken[0] > 0, self._broken, now)
        self._broken = now

    def check(self) -> None:
        """Reads the record, which waits for the device.

        Raises:
            NonFiniteLossError: a step's loss or gradients were not finite. It is raised again at each later check, so
                that the spoiled weights cannot be saved.
        """
        if self._broken is None:
            return
        broken, step, loss, ce = self._broken.tolist()
        if broken:
            raise NonFiniteLossError(int(step), loss, ce)
        self._broken = None
