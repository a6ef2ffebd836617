"""Settings for finding and measuring the circuits of a task."""

from dataclasses import dataclass
from typing import Literal, get_args

from lit_sparse.circuits.faithfulness import Ablation

Method = Literal["eap", "eap-ig", "exact"]


@dataclass(frozen=True)
class Settings:
    """Settings for finding and measuring circuits.

    Args:
        method: "eap" and "eap-ig" score edges by gradients, "exact" by patching each edge and head (small models).
        ablation: replacement of activations outside the circuit (see `Evaluator`).
        prompts: number of pairs to find circuits on, and of other pairs to measure them on.
        interpolations: number of gradients that "eap-ig" averages.
        shares: shares of the behaviour for which the smallest circuit is searched.
        batch_size: number of prompts per batch; memory grows with it.

    Raises:
        ValueError: a setting is unknown or out of its range.
    """

    method: Method = "eap-ig"
    ablation: Ablation = "patch"
    prompts: int = 32
    interpolations: int = 5
    shares: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"method is one of {', '.join(get_args(Method))}, not {self.method!r}")
        if self.ablation not in get_args(Ablation):
            raise ValueError(f"ablation is one of {', '.join(get_args(Ablation))}, not {self.ablation!r}")
        if min(self.prompts, self.interpolations, self.batch_size) < 1:
            raise ValueError("prompts, interpolations and batch_size must be at least 1")
        if not all(0 < share <= 1 for share in self.shares):
            raise ValueError(f"shares are in (0, 1], not {self.shares}")
