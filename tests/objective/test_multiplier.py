"""Controllers alone, and in a closed loop with a plant that has the run's main trouble: delay."""

import json
import math
import random

import pytest
import torch

from lit_sparse.objective import Fixed, Geco, Multiplier, NuPI

CONTROLLERS = [Geco(), Geco(smoothing=0.9), NuPI()]
IDS = ["geco", "smoothed geco", "nu_pi"]


def fresh(controller):
    return type(controller)(
        **{name: getattr(controller, name) for name in vars(controller) if name in ("rate", "smoothing", "integral")}
    )


def update(controller, violation):
    controller.update(torch.tensor(violation, dtype=torch.float64))


@pytest.mark.parametrize("controller", CONTROLLERS, ids=IDS)
def test_lambda_rises_while_violated_and_falls_while_slack(controller):
    up, down, still = (fresh(controller) for _ in range(3))
    for _ in range(20):
        update(up, 0.5)
        update(down, -0.5)
        update(still, 0.0)
    assert up.value > 1 > down.value
    assert still.value == 1.0
    # the controllers know no direction but the sign; exp and log round
    assert up.value * down.value == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("controller", CONTROLLERS, ids=IDS)
def test_lambda_stays_within_its_bounds(controller):
    controller = fresh(controller)
    controller.maximum = 50.0
    for violation, bound in ((1e9, 50.0), (-1e9, 1 / 50.0)):
        for _ in range(2_000):
            update(controller, violation)
            assert 1 / 50.0 * (1 - 1e-9) <= controller.value <= 50.0 * (1 + 1e-9)  # exp(log(50)) rounds
        assert controller.value == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize("controller", CONTROLLERS, ids=IDS)
def test_a_wild_violation_counts_as_one(controller):
    wild, mild = fresh(controller), fresh(controller)
    update(wild, 1e6)
    update(mild, 1.0)
    assert wild.value == mild.value


def test_geco_moves_by_its_rate():
    controller = Geco(initial=2.0, rate=0.1)
    update(controller, 0.5)
    assert controller.value == pytest.approx(2.0 * math.exp(0.05), rel=1e-12)


def test_nu_pi_moves_by_both_terms():
    controller = NuPI(initial=2.0, integral=0.1, proportional=3.0, smoothing=0.75)
    update(controller, 0.5)  # the average starts at the first violation
    assert controller.value == pytest.approx(2.0 * math.exp(0.1 * 0.5 + 3.0 * 0.5), rel=1e-12)
    update(controller, -0.5)
    average = 0.75 * 0.5 - 0.25 * 0.5
    assert controller.value == pytest.approx(2.0 * math.exp(0.0 + 3.0 * average), rel=1e-12)


def test_fixed_does_not_move():
    controller = Fixed(initial=3.0)
    update(controller, 100.0)
    assert controller.value == pytest.approx(3.0, rel=1e-12)


@pytest.mark.parametrize("controller", [*CONTROLLERS, Fixed(initial=2.0)], ids=[*IDS, "fixed"])
@pytest.mark.parametrize("before", [0, 1, 17])
def test_a_restored_controller_goes_on_bitwise(controller, before):
    violations = [random.Random(0).uniform(-2, 2) for _ in range(40)]
    whole = fresh(controller)
    for violation in violations[:before]:
        update(whole, violation)
    restored = fresh(controller)
    restored.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for violation in violations[before:]:
        update(whole, violation)
        update(restored, violation)
        assert restored.value == whole.value


@pytest.mark.parametrize(
    "make",
    [
        lambda: Geco(initial=0.0),
        lambda: Geco(initial=1e4),
        lambda: Geco(maximum=0.5),
        lambda: Geco(rate=0.0),
        lambda: Geco(smoothing=1.0),
        lambda: NuPI(integral=-0.1),
        lambda: NuPI(proportional=-1.0),
    ],
)
def test_settings_that_cannot_work_are_refused(make):
    with pytest.raises(ValueError):
        make()


def test_the_state_is_float64_wherever_the_violations_are():
    controller = NuPI()
    state = controller.state_dict()
    assert all(isinstance(value, float) for value in state.values())
    controller.to(torch.device("meta")).update(torch.tensor(0.5, dtype=torch.float64, device="meta"))
    moved = [getattr(controller, name) for name in state]
    assert all(value.device.type == "meta" and value.dtype == torch.float64 for value in moved)


@pytest.mark.parametrize("make", [lambda: Geco(smoothing=0.5), lambda: NuPI()])
def test_the_trajectory_is_that_of_python_floats(make):
    """The formulas of the docstrings in plain arithmetic."""
    controller = make()
    log_integral, average = 0.0, math.nan
    generator = random.Random(3)
    for _ in range(50):
        violation = generator.uniform(-2, 2)
        update(controller, violation)
        now = violation if isinstance(controller, Geco) else min(max(violation, -1.0), 1.0)
        past = now if math.isnan(average) else average
        average = controller.smoothing * past + (1 - controller.smoothing) * now
        if isinstance(controller, Geco):
            log_lambda = log_integral = log_integral + controller.rate * min(max(average, -1.0), 1.0)
        else:
            log_integral += controller.integral * now
            log_lambda = log_integral + controller.proportional * average
        assert float(controller.value) == pytest.approx(math.exp(log_lambda), rel=1e-12)


class UnclippedGeco(Multiplier):
    """GECO as published: log lambda moves by the violation itself."""

    def update(self, violation):
        self.log_value = self._clamp(self.log_value + 0.05 * violation)


def closed_loop(controller, steps=4_000, tolerance=0.1):
    """A model of a run. Closing edges costs KL: kl = 0.01 / edges. The optimizer moves log edges towards where the
    loss (0.1 log edges + lambda kl) / (1 + lambda) balances, with momentum, hence late. Returns log lambda and KL."""
    log_edges, velocity = -0.5, 0.0
    log_lambdas, kls = [], []
    for _ in range(steps):
        kl = 0.01 * math.exp(-log_edges)
        update(controller, (kl - tolerance) / tolerance)
        weight = float(controller.value)
        slope = (0.1 - weight * kl) / (1 + weight)
        velocity = 0.95 * velocity - 0.05 * max(min(slope, 1.0), -1.0)
        log_edges = min(log_edges + velocity, 0.0)
        log_lambdas.append(math.log(weight))
        kls.append(kl)
    return log_lambdas, kls


def swing(values):
    return max(values) - min(values)


@pytest.mark.parametrize("controller", [Geco(), NuPI()], ids=["geco", "nu_pi"])
def test_the_constraint_is_reached(controller):
    _, kls = closed_loop(controller)
    end = kls[-1_000:]
    # the tolerance is 0.1; the plant has no noise, so what is left is the controller's own swing
    assert sum(end) / len(end) == pytest.approx(0.1, rel=0.1)


def test_nu_pi_swings_less_than_geco():
    settled = slice(1_000, None)
    nu_pi, geco, unclipped = (
        swing(closed_loop(controller)[0][settled]) for controller in (NuPI(), Geco(), UnclippedGeco())
    )
    assert nu_pi < 0.5 * unclipped
    assert nu_pi < geco
