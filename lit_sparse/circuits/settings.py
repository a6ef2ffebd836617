"""How the circuits of a task are found and measured."""

from dataclasses import dataclass
from typing import Literal, get_args

from lit_sparse.circuits.faithfulness import Ablation

Method = Literal["eap", "eap-ig", "exact"]


@dataclass(frozen=True)
class Settings:
    """How circuits are found and measured.

    Args:
        method: "eap" and "eap-ig" by gradients, "exact" by a patch an edge and a head (small models).
        ablation: what replaces an activation outside the circuit (see `Evaluator`).
        prompts: pairs to find circuits on, and as many others to measure them on.
        interpolations: gradients that "eap-ig" averages.
        shares: of the behaviour, that the smallest circuit is asked for.
        batch_size: prompts at a time; memory grows with it.
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
