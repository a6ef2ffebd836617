"""Gates: one learnable decision per query-key pair, taken from the attention logits.

Shapes (the whole package uses these): B batch, H query heads, G key/value heads, T queries, S keys,
D head dimension, L layers.

Every family here is of one form,

    gate_logits  z_ij = sharpness * (score_ij - cutoff_h)

with a score that is the attention logit itself (`logit`), the log attention probability (`probability`), or the log
of what the edge moves, probability times the value's norm (`contribution`), so an edge is open at evaluation exactly
when its score exceeds the head's cutoff. A new family is one subclass with the decorator `@register_gate("name")`; it
touches nothing else.

Sources: the straight-through Bernoulli gate on the logits is SPARTAN's (arXiv 2411.06890) as used by Sparse
Post-Training (arXiv 2512.05865, section 3); p |v| as the measure of an edge is norm-based analysis (arXiv
2004.10102); gates on it and on the probability are this project's.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class GateConfig:
    """What the gates of a model are like.

    Args:
        family: a registered family: "probability", "contribution" or "logit" (the paper's), or one of your own.
        threshold: `probability` and `contribution`: the score, not in logs, above which an edge is open.
        sharpness: `probability` and `contribution`: kappa, the slope of the gate's logit in the log score, at the
            start: training may raise it, and the gate's state has what it is.
        sharpness_end: sharpness rises geometrically from `sharpness` to this over a run: soft gates learn faster, sharp
            ones are what is evaluated. None keeps it.
        bias: `logit`: added to the attention logit; > 0 so that gates start open.
        learnable: whether cutoffs are trained; fixed cutoffs are still saved and calibrated.
        normalisation: "all" divides by the softmax over all allowed keys (the paper: a head may attend to
            nothing); "open" renormalises over the open edges.
        centered: an edge carries its value's deviation from the head's mean output, which a head gives in any case:
            a closed edge then means the average instead of nothing (mean ablation). Calibration measures the means.
    """

    family: str = "probability"
    threshold: float = 1e-3
    sharpness: float = 2.0
    sharpness_end: float | None = None
    bias: float = 4.0
    learnable: bool = True
    normalisation: Literal["all", "open"] = "all"
    centered: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold < 1.0:
            raise ValueError(f"gate threshold is an attention probability in (0, 1), got {self.threshold}")
        if not 0.0 < self.sharpness < math.inf:
            raise ValueError(f"gate sharpness must be positive and finite, got {self.sharpness}")
        if self.sharpness_end is not None and not 0.0 < self.sharpness_end < math.inf:
            raise ValueError(f"gate sharpness_end must be positive and finite, got {self.sharpness_end}")
        if not math.isfinite(self.bias):
            raise ValueError(f"gate bias must be finite, got {self.bias}")
        if self.normalisation not in ("all", "open"):
            raise ValueError(f"gate normalisation is 'all' or 'open', got {self.normalisation!r}")

    @property
    def follows_progress(self) -> bool:
        """Whether gates change with the run's progress by themselves."""
        return self.sharpness_end is not None

    @classmethod
    def of(cls, value: "GateConfig | Mapping[str, object] | None") -> "GateConfig":
        """A config from itself, from a mapping of its keys, or the default from None.

        Raises:
            ValueError: unknown key.
        """
        if value is None:
            return cls()
        if isinstance(value, GateConfig):
            return value
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(value) - set(known)):
            raise ValueError(f"unknown gate key(s) {', '.join(unknown)}; known keys: {', '.join(known)}")
        return cls(**value)  # type: ignore[arg-type]


ALWAYS_OPEN = -1e9
"""A cutoff below every score. Finite, so that masked (-inf) logits stay closed instead of becoming NaN."""


KeyOffset = Float[Tensor, "batch kv_head key"]


class GateForm(NamedTuple):
    """What a fused operator needs: z = sharpness * (logits - normalised * log_normaliser + key offset - cutoff).

    Sharpness is a tensor although it is no parameter: training changes it every step, and a number in Python would have
    torch.compile compile anew and a CUDA graph keep the old one.
    """

    sharpness: Float[Tensor, ""]
    cutoff: Float[Tensor, " head"]
    normalised: bool


class Gate(nn.Module):
    """The gates of one attention layer. Subclass it, implement `form` and `set_cutoff`, register it.

    A family that is not of the affine form may override `forward`; the reference operator then serves it.
    """

    family: ClassVar[str] = ""

    def __init__(self, config: GateConfig, num_heads: int):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.closable = True
        self.center: Tensor | None
        self.register_buffer("center", None)
        self.sharpness: Float[Tensor, ""]
        self.register_buffer("sharpness", torch.empty((), dtype=torch.float32))
        self.set_sharpness(config.sharpness)

    def form(self) -> GateForm:
        """The gate's coefficients, differentiable in its parameters."""
        raise TypeError(f"{type(self).__name__} must implement form()")

    def key_offset(self, value: Float[Tensor, "batch kv_head key value_dim"]) -> KeyOffset | None:
        """What a key adds to the score of all its edges, at least float32 and differentiable; None for nothing."""
        return None

    def set_cutoff(self, cutoff: Float[Tensor, " head"]) -> None:
        """Opens at evaluation exactly the edges whose score exceeds `cutoff` (calibration sets this)."""
        raise TypeError(f"{type(self).__name__} must implement set_cutoff()")

    @torch.no_grad()
    def set_sharpness(self, value: float) -> None:
        """Makes the gates sharper or softer, in place; training may do so every step."""
        self.sharpness.fill_(value)

    def advance(self, progress: float) -> None:
        """Follows a run, of which this share is over."""
        if self.config.sharpness_end is not None:
            first = self.config.sharpness
            self.set_sharpness(first * (self.config.sharpness_end / first) ** progress)

    def add_center(self, kv_heads: int, value_dim: int) -> None:
        """A center of zeros, which changes nothing until calibration or a folder sets it."""
        self.register_buffer("center", torch.zeros(kv_heads, value_dim))

    def deviation(
        self, value: Float[Tensor, "batch kv_head key value_dim"]
    ) -> Float[Tensor, "batch kv_head key value_dim"]:
        """What edges carry: values, less their head's center if it has one. Operators are given this."""
        return value if self.center is None else value - self.center.to(value.dtype)[:, None]

    def restored(
        self, output: Float[Tensor, "batch query head value_dim"]
    ) -> Float[Tensor, "batch query head value_dim"]:
        """A head's output from that of an operator which was given deviations. With all edges open (weights that sum
        to one) center and deviations cancel: the base model is what it was."""
        return output if self.center is None else output + self.head_center(output.dtype)

    def head_center(self, dtype: torch.dtype) -> Float[Tensor, "head value_dim"]:
        """The center of each query head; zeros of width one without any, which broadcast."""
        if self.center is None:
            return torch.zeros(self.num_heads, 1, dtype=dtype)
        return self.center.to(dtype).repeat_interleave(self.num_heads // len(self.center), dim=0)

    def keep_open(self) -> None:
        """Opens every edge for good: the layer stays dense, and calibration and training leave it alone."""
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

    def _parameter(self, value: float) -> nn.Parameter:
        return nn.Parameter(torch.full((self.num_heads,), value), requires_grad=self.config.learnable)

    def _apply(self, fn, recurse=True):
        # A cutoff near -7 has a spacing of 0.03 in bfloat16, more than a training step: stay in float32.
        before = [parameter.detach() for parameter in self.parameters(recurse=False)]
        center, sharpness = self.center, self.sharpness
        super()._apply(fn, recurse)
        if sharpness.is_meta and not self.sharpness.is_meta:  # no checkpoint gives it a value
            self.sharpness = torch.empty((), dtype=torch.float32, device=self.sharpness.device)
            self.set_sharpness(self.config.sharpness)
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


GATES: dict[str, type[Gate]] = {}


def register_gate(family: str) -> Callable[[type[Gate]], type[Gate]]:
    """Class decorator that makes a gate family available as `GateConfig(family=...)`."""

    def add(cls: type[Gate]) -> type[Gate]:
        if GATES.get(family, cls).__qualname__ != cls.__qualname__:
            raise ValueError(f"gate family {family!r} is already registered by {GATES[family].__qualname__}")
        cls.family = family
        GATES[family] = cls
        return cls

    return add


def build_gate(config: GateConfig, num_heads: int) -> Gate:
    """One layer's gates.

    Raises:
        ValueError: unknown family.
    """
    if config.family not in GATES:
        raise ValueError(f"unknown gate family {config.family!r}; registered: {', '.join(sorted(GATES))}")
    return GATES[config.family](config, num_heads)


@register_gate("logit")
class LogitGate(Gate):
    """The paper's gate: z = s + b, b per head. A threshold on the raw logit, so it depends on the row's shift."""

    def __init__(self, config: GateConfig, num_heads: int):
        super().__init__(config, num_heads)
        self.bias = self._parameter(config.bias)

    def form(self) -> GateForm:
        return GateForm(sharpness=self.sharpness, cutoff=-self.bias, normalised=False)

    @torch.no_grad()
    def set_sharpness(self, value: float) -> None:
        """The slope of this gate is 1, whatever the others' is."""
        self.sharpness.fill_(1.0)

    @torch.no_grad()
    def set_cutoff(self, cutoff: Float[Tensor, " head"]) -> None:
        self.bias.copy_(-cutoff)


@register_gate("probability")
class ProbabilityGate(Gate):
    """z = kappa (log p - log theta), theta per head: invariant to shifts of a row of logits."""

    def __init__(self, config: GateConfig, num_heads: int):
        super().__init__(config, num_heads)
        self.log_threshold = self._parameter(math.log(config.threshold))

    def form(self) -> GateForm:
        return GateForm(sharpness=self.sharpness, cutoff=self.log_threshold, normalised=True)

    @torch.no_grad()
    def set_cutoff(self, cutoff: Float[Tensor, " head"]) -> None:
        self.log_threshold.copy_(cutoff)


_TINY = 1e-12  # under a norm's square root: a value of zeros is a closed edge, not a NaN


@register_gate("contribution")
class ContributionGate(ProbabilityGate):
    """z = kappa (log(p |v|) - log theta), theta per head: what an edge adds to the head's output decides.

    A first token that takes a row's probability because nothing else is wanted has a value near zero: such rows close.
    """

    def key_offset(self, value: Float[Tensor, "batch kv_head key value_dim"]) -> KeyOffset:
        wide = value.to(torch.promote_types(value.dtype, torch.float32))
        return 0.5 * torch.log(wide.square().sum(-1) + _TINY)
