"""Controllers of the Lagrange multiplier lambda.

A controller is neither an optimizer's parameter (clipping, weight decay and Adam would distort it) nor a tensor
(bfloat16 would freeze it): it is a handful of Python floats, moved once per optimizer step by the mean violation of
that whole step, in log space and clamped. Every rank feeds it the same all-reduced number, so it stays equal on all.
"""

import math


class Multiplier:
    """lambda, moved by the relative violation (value - tolerance) / tolerance_scale.

    Args:
        initial: lambda before the first step.
        maximum: lambda stays within [1 / maximum, maximum].
    """

    def __init__(self, initial: float = 1.0, maximum: float = 1e3):
        if not maximum > 1.0:
            raise ValueError(f"the multiplier's maximum must exceed 1, got {maximum}")
        if not 1.0 / maximum <= initial <= maximum:
            raise ValueError(f"initial lambda {initial} lies outside [1/maximum, maximum] = [{1 / maximum}, {maximum}]")
        self.maximum = maximum
        self.log_value = math.log(initial)

    @property
    def value(self) -> float:
        """lambda, the weight of the constraint against the edges."""
        return math.exp(self.log_value)

    def update(self, violation: float) -> None:
        """One optimizer step with this relative violation: > 0 is violated, < 0 is slack."""
        raise TypeError(f"{type(self).__name__} must implement update()")

    def state_dict(self) -> dict[str, float]:
        return {key: value for key, value in vars(self).items() if key in self._state}

    def load_state_dict(self, state: dict[str, float]) -> None:
        for key in self._state:
            setattr(self, key, float(state[key]))

    _state: tuple[str, ...] = ("log_value",)

    def _clamp(self, log_value: float) -> float:
        limit = math.log(self.maximum)
        return min(max(log_value, -limit), limit)


class Fixed(Multiplier):
    """lambda stays at `initial`: an ordinary penalty."""

    def update(self, violation: float) -> None:
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
        self.average = math.nan

    def update(self, violation: float) -> None:
        past = violation if math.isnan(self.average) else self.average
        self.average = self.smoothing * past + (1 - self.smoothing) * violation
        self.log_value = self._clamp(self.log_value + self.rate * min(max(self.average, -1.0), 1.0))


class NuPI(Multiplier):
    """A PI controller on the smoothed violation (nu-PI, arXiv 2406.04558): the proportional term damps the swings
    that the integral term alone (GECO) makes.

    log lambda = log lambda_integral + proportional * average,   log lambda_integral += integral * clip(violation)

    Args:
        integral: gain of the integral term, per step.
        proportional: gain of the proportional term.
        smoothing: nu, weight of the past in the average that the proportional term sees.
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
        self.average = math.nan

    def update(self, violation: float) -> None:
        clipped = min(max(violation, -1.0), 1.0)
        past = clipped if math.isnan(self.average) else self.average
        self.average = self.smoothing * past + (1 - self.smoothing) * clipped
        self.log_integral = self._clamp(self.log_integral + self.integral * clipped)
        self.log_value = self._clamp(self.log_integral + self.proportional * self.average)
