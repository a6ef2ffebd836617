"""Base of gate families: a description, `GateConfig`, and the module that it builds for a layer, `Gate`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

ALWAYS_OPEN = -1e9
"""A cutoff below every score. Finite, so that masked (-inf) logits stay closed instead of becoming NaN."""

DEFAULT_FAMILY = "probability"

KeyOffset = Float[Tensor, "batch kv_head key"]


class GateForm(NamedTuple):
    """Coefficients for fused operators: z = sharpness * (logits - normalised * log_normaliser + key offset - cutoff).

    Sharpness is a tensor although it is no parameter, because training changes it every step. With a Python number,
    torch.compile would compile anew, and a CUDA graph would keep the old value.
    """

    sharpness: Float[Tensor, ""]
    cutoff: Float[Tensor, " head"]
    normalised: bool


@dataclass(frozen=True, kw_only=True)
class GateConfig(ABC):
    """Description of a model's gates, with the options that every family has. Subclass it, add your own options as a
    dataclass does, and register it with `register_gate`.

    Args:
        learnable: True if cutoffs are trained; fixed cutoffs are still saved and calibrated.
        normalisation: "all" divides by the softmax over all allowed keys (the paper: a head may attend to
            nothing); "open" renormalises over the open edges.
        centered: True if an edge passes its value's deviation from the head's mean output, which the head always gives.
            A closed edge then passes the mean instead of nothing (mean ablation). Calibration measures the means.

    Raises:
        ValueError: an option has an impossible value.
    """

    family: ClassVar[str] = ""
    """The name under which it is registered."""

    learnable: bool = True
    normalisation: Literal["all", "open"] = "all"
    centered: bool = False

    def __post_init__(self) -> None:
        if self.normalisation not in ("all", "open"):
            raise ValueError(f"gate normalisation is 'all' or 'open', got {self.normalisation!r}")

    @abstractmethod
    def build(self, num_heads: int) -> "Gate":
        """One layer's gates."""

    def sharpness_at(self, progress: float) -> float:
        """Slope of the gate's logit in the score when this share of a run, 0 to 1, is over."""
        return 1.0

    @property
    def follows_progress(self) -> bool:
        """True if gates change with the run's progress by themselves."""
        return False

    def as_mapping(self) -> dict[str, Any]:
        """The family and its options for a JSON file, which `of` reads."""
        return {"family": self.family, **asdict(self)}

    @staticmethod
    def of(value: "GateConfig | Mapping[str, Any] | None") -> "GateConfig":
        """A description from itself, from a mapping of `family` (default: "probability") and the family's own options,
        or the default from None.

        Raises:
            ValueError: the family is unknown, or does not have an option.
        """
        if isinstance(value, GateConfig):
            return value
        options = dict(value or {})
        family = options.pop("family", DEFAULT_FAMILY)
        if family not in GATES:
            raise ValueError(
                f"unknown gate family {family!r}; registered: {', '.join(sorted(GATES))}. A family of your own is "
                "registered once the module that defines it has been imported"
            )
        known = [field.name for field in fields(GATES[family])]
        if unknown := sorted(set(options) - set(known)):
            raise ValueError(
                f"unknown gate key(s) {', '.join(unknown)} of family {family!r}; known keys: {', '.join(known)}"
            )
        return GATES[family](**options)


GATES: dict[str, type[GateConfig]] = {}
"""The registered families, by name."""

Family = TypeVar("Family", bound=GateConfig)


def register_gate(family: str) -> Callable[[type[Family]], type[Family]]:
    """Class decorator that gives a family's description its name in model folders.

    Raises:
        TypeError: the class is not a dataclass of its own, so its options would be lost.
        ValueError: another class has the name.
    """

    def add(cls: type[Family]) -> type[Family]:
        if "__dataclass_fields__" not in vars(cls):
            raise TypeError(f"{cls.__qualname__} must be a dataclass: put @dataclass(frozen=True) under @register_gate")
        if GATES.get(family, cls).__qualname__ != cls.__qualname__:
            raise ValueError(f"gate family {family!r} is already registered by {GATES[family].__qualname__}")
        cls.family = family
        GATES[family] = cls
        return cls

    return add


def build_gate(config: GateConfig, num_heads: int) -> "Gate":
    """One layer's gates.

    Raises:
        ValueError: the family has no name, so no model folder could describe its gates.
    """
    if "family" not in vars(type(config)):
        raise ValueError(f"{type(config).__qualname__} is no registered gate family: decorate it with @register_gate")
    gate = config.build(num_heads)
    if not config.learnable:
        gate.requires_grad_(False)
    return gate


class Gate(nn.Module):
    """The gates of one attention layer. Subclass it, implement `form` and `set_cutoff`, and return it from
    `GateConfig.build`.

    A family without the affine form may override `forward`; the reference operator then serves it.

    Args:
        config: the family's description with its options.
        num_heads: number of query heads.
    """

    def __init__(self, config: GateConfig, num_heads: int):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.closable = True
        self.center: Tensor | None
        self.register_buffer("center", None)
        self.sharpness: Float[Tensor, ""]
        self.register_buffer("sharpness", torch.empty((), dtype=torch.float32))
        self.set_sharpness(config.sharpness_at(0.0))

    @property
    def family(self) -> str:
        """The name of the family."""
        return self.config.family

    def per_head(self, value: float) -> nn.Parameter:
        """A trained number of each head, such as its cutoff."""
        return nn.Parameter(torch.full((self.num_heads,), value))

    def form(self) -> GateForm:
        """The gate's coefficients, differentiable in its parameters."""
        raise TypeError(f"{type(self).__name__} must implement form()")

    def key_offset(self, value: Float[Tensor, "batch kv_head key value_dim"]) -> KeyOffset | None:
        """Addition of a key to the score of all its edges, at least float32 and differentiable, or None."""
        return None

    def set_cutoff(self, cutoff: Float[Tensor, " head"]) -> None:
        """Opens, at evaluation, exactly the edges whose score exceeds `cutoff`. Calibration calls it."""
        raise TypeError(f"{type(self).__name__} must implement set_cutoff()")

    @torch.no_grad()
    def set_sharpness(self, value: float) -> None:
        """Makes the gates sharper or softer, in place. Training may do so every step."""
        self.sharpness.fill_(value)

    def advance(self, progress: float) -> None:
        """Sets the gates for a run of which this share is over; 0.0 is the start."""
        self.set_sharpness(self.config.sharpness_at(progress))

    def add_center(self, kv_heads: int, value_dim: int) -> None:
        """Adds a center of zeros, which changes nothing until calibration or a folder sets it."""
        self.register_buffer("center", torch.zeros(kv_heads, value_dim))

    def deviation(
        self, value: Float[Tensor, "batch kv_head key value_dim"]
    ) -> Float[Tensor, "batch kv_head key value_dim"]:
        """The vectors that edges pass, which operators get: values, minus their head's center if it has one."""
        return value if self.center is None else value - self.center.to(value.dtype)[:, None]

    def restored(
        self, output: Float[Tensor, "batch query head value_dim"]
    ) -> Float[Tensor, "batch query head value_dim"]:
        """A head's output from the output of an operator that got deviations. With all edges open (weights that sum to
        one) center and deviations cancel, so the base model is unchanged."""
        return output if self.center is None else output + self.head_center(output.dtype)

    def head_center(self, dtype: torch.dtype) -> Float[Tensor, "head value_dim"]:
        """The center of each query head. Without centers these are zeros of width one, which broadcast."""
        if self.center is None:
            return torch.zeros(self.num_heads, 1, dtype=dtype)
        return self.center.to(dtype).repeat_interleave(self.num_heads // len(self.center), dim=0)

    def keep_open(self) -> None:
        """Opens every edge permanently. The layer stays dense, and calibration and training do not change it."""
        self.closable = False
        self.set_cutoff(torch.full((self.num_heads,), ALWAYS_OPEN))
        self.requires_grad_(False)

    def forward(
        self,
        logits: Float[Tensor, "batch head query key"],
        log_normaliser: Float[Tensor, "batch head query 1"],
        key_offset: KeyOffset | None = None,
    ) -> Float[Tensor, "batch head query key"]:
        """Gate logits z, from the scaled attention logits and their log-sum-exp over the allowed keys."""
        form = self.form()
        score = logits - log_normaliser if form.normalised else logits
        if key_offset is not None:
            score = score + key_offset.repeat_interleave(score.shape[1] // key_offset.shape[1], dim=1)[:, :, None]
        return form.sharpness * (score - form.cutoff.to(logits.dtype).view(-1, 1, 1))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Gate":
        # A cutoff near -7 has a spacing of 0.03 in bfloat16, more than a training step: stay in float32.
        before = [parameter.detach() for parameter in self.parameters(recurse=False)]
        center, sharpness = self.center, self.sharpness
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if sharpness.is_meta and not self.sharpness.is_meta:  # no checkpoint gives it a value
            self.sharpness = torch.empty((), dtype=torch.float32, device=self.sharpness.device)
            self.advance(0.0)
        elif self.sharpness.dtype in (torch.bfloat16, torch.float16):
            self.sharpness = sharpness.to(self.sharpness.device, torch.float32)
        if center is not None and self.center is not None and self.center.dtype in (torch.bfloat16, torch.float16):
            self.center = center.to(self.center.device, torch.float32)
        for parameter, exact in zip(self.parameters(recurse=False), before, strict=True):
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = exact.to(parameter.device, torch.float32)
        return self

    def extra_repr(self) -> str:
        centered = "" if self.center is None else ", centered"
        return f"{self.family}, heads={self.num_heads}, normalisation={self.config.normalisation}{centered}"
