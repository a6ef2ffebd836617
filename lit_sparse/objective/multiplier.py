"""Controllers of the Lagrange multiplier lambda.

A controller is not an optimizer's parameter, because clipping, weight decay and Adam would distort it. It is not a
module's buffer, because bfloat16 would freeze it. It is a handful of float64 numbers that move once per optimizer step
by the mean violation of that whole step, in log space and clamped. They live on the device of the losses, so that a
step waits for nothing. Every rank feeds its controller the same all-reduced number, so all ranks stay equal.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Scalar = Float[Tensor, ""]


class Multiplier:
    """lambda, moved by the relative violation (value - tolerance) / scale.

    A subclass implements `update`, and names in `_state` the 0-d tensors that it keeps between steps.

    Args:
        initial: lambda before the first step.
        maximum: lambda stays within [1 / maximum, maximum].
    """

    _state: tuple[str, ...] = ("log_value",)

    def __init__(self, initial: float = 1.0, maximum: float = 1e3):
        if not maximum > 1.0:
            raise ValueError(f"the multiplier's maximum must exceed 1, got {maximum}")
        if not 1.0 / maximum <= initial <= maximum:
            raise ValueError(f"initial lambda {initial} lies outside [1/maximum, maximum] = [{1 / maximum}, {maximum}]")
        self.maximum = maximum
        self.log_value = scalar(math.log(initial))

    @property
    def value(self) -> Scalar:
        """lambda, the weight of the constraint against the edges."""
        return self.log_value.exp()

    def update(self, violation: Scalar) -> None:
        """Moves lambda after an optimizer step with this relative violation: > 0 is violated, < 0 is slack."""
        raise TypeError(f"{type(self).__name__} must implement update()")

    def to(self, device: torch.device) -> "Multiplier":
        """Moves the state; float64, or float32 on a device that has no float64."""
        dtype = torch.float32 if device.type == "mps" else torch.float64
        for key in self._state:
            setattr(self, key, torch.as_tensor(getattr(self, key)).to(device, dtype))
        return self

    def state_dict(self) -> dict[str, float]:
        return {key: float(getattr(self, key)) for key in self._state}

    def load_state_dict(self, state: dict[str, float]) -> None:
        for key in self._state:
            setattr(self, key, scalar(state[key]))

    def _clamp(self, log_value: Scalar) -> Scalar:
        limit = math.log(self.maximum)
        return log_value.clamp(-limit, limit)


def scalar(value: float) -> Scalar:
    """A number of a controller's state."""
    return torch.tensor(value, dtype=torch.float64)


def _average(past: Scalar, now: Scalar, smoothing: float) -> Scalar:
    """Exponential average. A past of NaN means that `now` is the first value."""
    return smoothing * torch.where(past.isnan(), now, past) + (1 - smoothing) * now


class Fixed(Multiplier):
    """Keeps lambda at `initial`, which makes the constraint an ordinary penalty."""

    def update(self, violation: Scalar) -> None:
        pass


class Geco(Multiplier):
    """log lambda += rate * clip(smoothed violation, -1, 1) (GECO, arXiv 1810.00597, with the violation clipped).

    Args:
        rate: largest change of log lambda in one step.
        smoothing: weight of the past in the exponential average of the violation.
    """

    _state = ("log_value", "average")

    def __init__(self, initial: float = 1.0, maximum: float = 1e3, rate: float = 0.05, smoothing: float = 0.0):
        super().__init__(initial, maximum)
        if not rate > 0 or not 0 <= smoothing < 1:
            raise ValueError(f"geco needs rate > 0 and 0 <= smoothing < 1, got {rate} and {smoothing}")
        self.rate = rate
        self.smoothing = smoothing
        self.average = scalar(math.nan)

    def update(self, violation: Scalar) -> None:
        self.average = _average(self.average, violation, self.smoothing)
        self.log_value = self._clamp(self.log_value + self.rate * self.average.clamp(-1.0, 1.0))


class NuPI(Multiplier):
    """A PI controller on the smoothed violation (nu-PI, arXiv 2406.04558): the proportional term damps the swings
    that the integral term alone (GECO) makes.

    log lambda = log lambda_integral + proportional * average,   log lambda_integral += integral * clip(violation)

    Args:
        integral: gain of the integral term, per step.
        proportional: gain of the proportional term.
        smoothing: nu, weight of the past in the average that the proportional term uses.
    """

    _state = ("log_value", "log_integral", "average")

    def __init__(
        self,
        initial: float = 1.0,
        maximum: float = 1e3,
        integral: float = 0.02,
        proportional: float = 1.0,
        smoothing: float = 0.8,
    ):
        super().__init__(initial, maximum)
        if not integral > 0 or proportional < 0 or not 0 <= smoothing < 1:
            raise ValueError(
                f"nu_pi needs integral > 0, proportional >= 0, 0 <= smoothing < 1, got {integral}, {proportional}, "
                f"{smoothing}"
            )
        self.integral = integral
        self.proportional = proportional
        self.smoothing = smoothing
        self.log_integral = self.log_value
        self.average = scalar(math.nan)

    def update(self, violation: Scalar) -> None:
        clipped = violation.clamp(-1.0, 1.0)
        self.average = _average(self.average, clipped, self.smoothing)
        self.log_integral = self._clamp(self.log_integral + self.integral * clipped)
        self.log_value = self._clamp(self.log_integral + self.proportional * self.average)
