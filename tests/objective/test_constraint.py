import math

import pytest
import torch

from lit_sparse.objective import KL, Absolute, Constraint, Paired, TokenLosses

LOSSES = TokenLosses(
    ce=torch.tensor([[2.0, 3.0]]),
    base_ce=torch.tensor([[1.5, 3.25]]),
    kl=torch.tensor([[0.1, 0.3]]),
    scored=torch.ones(1, 2, dtype=torch.bool),
)


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [(Paired(0.05), [0.5, -0.25]), (KL(0.05), [0.1, 0.3]), (Absolute(tau=2.5), [2.0, 3.0])],
)
def test_what_is_constrained(constraint, expected):
    # the numbers are float32's nearest to these decimals
    torch.testing.assert_close(constraint.per_token(LOSSES), torch.tensor([expected]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [Paired, KL])
def test_violation_is_relative_to_the_tolerance(kind):
    constraint = kind(0.2)
    constraint.prepare(base_ce=3.0)
    # a division of float64 numbers: rounding only
    assert constraint.violation(0.2) == 0
    assert constraint.violation(0.4) == pytest.approx(1.0, rel=1e-12)
    assert constraint.violation(0.0) == pytest.approx(-1.0, rel=1e-12)
    assert constraint.tolerance == 0.2


def test_absolute_tau_is_measured_against_the_room_above_the_base():
    constraint = Absolute(tau=3.5)
    constraint.prepare(base_ce=3.0)
    assert constraint.tolerance == 3.5
    assert constraint.violation(3.5) == 0
    assert constraint.violation(4.0) == pytest.approx(1.0, rel=1e-12)
    assert constraint.violation(3.0) == pytest.approx(-1.0, rel=1e-12)


def test_absolute_without_tau_allows_epsilon_over_the_base():
    constraint = Absolute(epsilon=0.25)
    constraint.prepare(base_ce=3.0)
    assert constraint.tolerance == 3.25
    assert constraint.violation(3.5) == pytest.approx(1.0, rel=1e-12)


def test_tau_at_the_base_keeps_violations_finite():
    constraint = Absolute(tau=3.0)
    constraint.prepare(base_ce=3.0)
    assert math.isfinite(constraint.violation(4.0))
    assert constraint.violation(4.0) > 0 > constraint.violation(2.0)


def test_tau_below_the_base_says_what_to_do():
    with pytest.raises(ValueError, match=r"tau = 2\.9000 is below .* 3\.0000 .*set tau >= 3\.0000.*epsilon"):
        Absolute(tau=2.9).prepare(base_ce=3.0)


@pytest.mark.parametrize("bad", [-0.1, 0.0, math.nan, math.inf])
@pytest.mark.parametrize("make", [KL, Paired, lambda value: Absolute(tau=value), lambda value: Absolute(epsilon=value)])
def test_tolerances_are_positive_numbers(make, bad):
    with pytest.raises(ValueError, match="positive"):
        make(bad)


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (KL(0.05), "KL divergence from the base model <= 0.05 nats per token"),
        (Paired(0.05), "cross-entropy - the base model's on the same tokens <= 0.05 nats per token"),
        (Absolute(tau=2.5), "cross-entropy <= 2.5 nats per token"),
        (Absolute(epsilon=0.05), "cross-entropy <= the base model's + 0.05 nats per token"),
    ],
)
def test_constraints_say_what_they_demand(constraint, words):
    assert constraint.described() == words
    if not isinstance(constraint, Absolute):
        return
    constraint.prepare(base_ce=2.0)
    assert constraint.described() == words, "what was measured on one split is not demanded of another"


def test_a_measured_tolerance_moves_with_the_base():
    measured, fixed = Absolute(epsilon=0.25), Absolute(tau=3.5)
    for constraint in (measured, fixed):
        constraint.prepare(base_ce=3.0)
    assert [measured.tolerance_for(2.5), fixed.tolerance_for(2.5)] == [2.75, 3.5]
    assert [measured.tolerance, KL(0.1).tolerance_for(2.5)] == [3.25, 0.1]


def test_what_was_measured_comes_back():
    measured = Absolute(epsilon=0.25)
    measured.prepare(base_ce=3.0)
    restored = Absolute(epsilon=0.25)
    restored.load_state_dict(measured.state_dict())
    assert restored.tolerance == measured.tolerance
    assert restored.violation(3.4) == measured.violation(3.4)


def test_a_subclass_needs_only_per_token():
    class WorstHalf(Constraint):
        def per_token(self, losses):
            return losses.kl.clamp_min(0.2)

    assert WorstHalf(0.1).per_token(LOSSES).min() >= 0.2
    with pytest.raises(TypeError, match="per_token"):
        Constraint(0.1).per_token(LOSSES)
