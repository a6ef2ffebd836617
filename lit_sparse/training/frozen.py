"""Frozen weights in checkpoints. They are left out, because loading the base model gives them again.

A checkpoint names the weights that it leaves out and has their digest (`models.digest`), so that it is refused on
another base.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, TypedDict

from torch import Tensor, nn

from lit_sparse.attention import gates_of
from lit_sparse.models.digest import digest_of_weights
from lit_sparse.records.digest import same_model
from lit_sparse.training.state import KEY

_LEFT_OUT = "left_out"

Whole = Callable[[Tensor], AbstractContextManager[Tensor]]
"""A strategy's context with the whole of a sharded weight (`Sharding.whole`)."""


class LeftOut(TypedDict):
    """Record of the weights that a checkpoint does not hold."""

    names: list[str]
    digest: str


def frozen_weights(module: nn.Module, student: nn.Module) -> dict[str, nn.Parameter]:
    """The student's parameters that do not learn, by their names in the module. Gates are not among them: a fixed
    cutoff comes from calibration, not from the base model."""
    of_gates = {id(parameter) for gate in gates_of(student) for parameter in gate.parameters()}
    frozen = {id(parameter) for parameter in student.parameters() if not parameter.requires_grad} - of_gates
    named = module.named_parameters(remove_duplicate=False)  # tied weights under both names
    return {name: parameter for name, parameter in named if id(parameter) in frozen}


class FrozenWeights:
    """Takes the frozen weights of a module's student out of checkpoints, and puts them back."""

    def __init__(self) -> None:
        self._digests: dict[tuple[str, ...], str] = {}  # they never change, so each set of names is read once

    def take_out(self, checkpoint: dict[str, Any], module: nn.Module, student: nn.Module, whole: Whole) -> None:
        """Removes frozen weights from a checkpoint before it is written. All ranks must call it."""
        frozen = frozen_weights(module, student)
        if not frozen:
            return
        if tuple(frozen) not in self._digests:
            self._digests[tuple(frozen)] = _digest(frozen, frozen, whole)
        checkpoint[KEY][_LEFT_OUT] = LeftOut(names=list(frozen), digest=self._digests[tuple(frozen)])
        kept = {name: value for name, value in checkpoint["state_dict"].items() if name not in frozen}
        checkpoint["state_dict"] = kept

    def put_back(self, checkpoint: dict[str, Any], module: nn.Module, base: str, whole: Whole) -> None:
        """Completes a checkpoint that was read with the module's own frozen weights. All ranks must call it. A
        checkpoint with all weights is not changed.

        Raises:
            ValueError: the checkpoint was trained on another base model.
        """
        left_out = left_out_of(checkpoint)
        if left_out is None:
            return
        own = dict(module.named_parameters(remove_duplicate=False))
        names = left_out["names"]
        if unknown := next((name for name in names if name not in own), None):
            raise ValueError(f"this checkpoint belongs to another model: {unknown} is missing here")
        digest = _digest(own, names, whole)
        if not same_model(digest, left_out["digest"]):
            raise ValueError(
                f"this checkpoint was trained on another base model than {base!r} is now: it holds what was trained "
                "and not the base, whose weights have changed since. Give model the base of that run"
            )
        self._digests[tuple(names)] = digest
        if "state_dict" in checkpoint:  # else the strategy has loaded it
            checkpoint["state_dict"] = completed(checkpoint["state_dict"], module, names)


def completed(state: dict[str, Any], module: nn.Module, names: Iterable[str]) -> dict[str, Any]:
    """A state dict completed with the module's own weights of these names."""
    own = module.state_dict()
    return {**{name: own[name] for name in names}, **state}


def left_out_of(checkpoint: dict[str, Any]) -> LeftOut | None:
    """The record of the weights that a checkpoint leaves out; None if it holds all weights."""
    left_out: LeftOut | None = checkpoint.get(KEY, {}).get(_LEFT_OUT)
    return left_out


def keep_all(checkpoint: dict[str, Any]) -> None:
    """Removes the record of left-out weights from a checkpoint."""
    checkpoint[KEY].pop(_LEFT_OUT, None)


def _digest(weights: dict[str, nn.Parameter], names: Iterable[str], whole: Whole) -> str:
    def each() -> Iterable[tuple[str, Tensor]]:
        digested: set[int] = set()
        for name in names:
            if id(weights[name]) in digested:  # tied: the first name stands for both
                continue
            digested.add(id(weights[name]))
            with whole(weights[name]) as tensor:
                # A run in bfloat16 rounds the base when it starts: all are compared as they are after that.
                yield name, tensor.detach().bfloat16()

    return digest_of_weights(each())
