"""State of a run besides its weights, and its form in checkpoints."""

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lit_sparse.training.held_out import Evaluation

KEY = "lit_sparse"
"""Key of the state in a checkpoint."""


class RunState:
    """Tokens, wall-clock time and start evaluation of a run, over all times that it was started.

    Args:
        kind: kind of run, such as "sparse". A checkpoint of another kind is refused.
        model: name of the run's model.
    """

    def __init__(self, kind: str, model: str):
        self.kind, self.model = kind, model
        self.tokens = 0
        self.start: Evaluation | None = None
        self.resumed = False
        self._seconds_before = 0.0
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of training so far, with validation."""
        return self._seconds_before + (0.0 if self._started is None else time.perf_counter() - self._started)

    def start_clock(self) -> None:
        self._started = time.perf_counter()

    def stop_clock(self) -> None:
        self._seconds_before, self._started = self.seconds, None

    def write(self, checkpoint: dict[str, Any], **more: Any) -> None:
        """Writes the state, and more values of the run, into a checkpoint."""
        checkpoint[KEY] = {
            "kind": self.kind,
            "model": self.model,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "start": None if self.start is None else self.start._asdict(),
            **more,
        }

    def check(self, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """All values that `write` put into a checkpoint.

        Raises:
            ValueError: the checkpoint belongs to another model or to another kind of run.
        """
        state: dict[str, Any] | None = checkpoint.get(KEY)
        if state is None or state.get("kind") != self.kind:
            raise ValueError(f"this checkpoint was not written by a {self.kind} run of lit_sparse")
        if state["model"] != self.model:
            raise ValueError(
                f"this checkpoint belongs to another model: it is about {state['model']!r}, the config says "
                f"{self.model!r}"
            )
        return state

    def read(self, checkpoint: Mapping[str, Any], own: Mapping[str, Tensor]) -> dict[str, Any]:
        """Reads the state from a checkpoint; returns all values that `write` put in.

        Args:
            own: state dict of the module that loads the checkpoint.

        Raises:
            ValueError: see `check`, or the weights have other names or shapes.
        """
        state = self.check(checkpoint)
        if "state_dict" in checkpoint:  # else the strategy has loaded it
            _check_shapes(checkpoint["state_dict"], own)
        self.tokens = int(state["tokens"])
        self.start = None if state["start"] is None else Evaluation(**state["start"])
        self._seconds_before = float(state["seconds"])
        self.resumed = True
        return state


def _check_shapes(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    for name in sorted(own.keys() | saved.keys()):
        shapes = [tuple(state[name].shape) if name in state else "missing" for state in (saved, own)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"this checkpoint belongs to another model: {name} is {shapes[0]} there and {shapes[1]} here"
            )
