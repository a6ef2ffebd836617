"""The constrained objective in one object, against the formula written out."""

import math

import pytest
import torch

from lit_sparse.objective import KL, Fixed, Geco, Lagrangian, NuPI


def total(tensor):
    return tensor


def test_the_loss_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    edges, value, kl, weight = torch.rand(4, generator=generator, dtype=torch.float64).requires_grad_().unbind()
    objective = Lagrangian(distillation=0.7)
    expected = (edges + weight * value + 0.7 * kl) / (1 + weight)
    torch.testing.assert_close(objective.loss(edges, value, kl, weight), expected)
    given = torch.autograd.grad(objective.loss(edges, value, kl, weight), (edges, value, kl), retain_graph=True)
    assert given == pytest.approx(
        [float(share) for share in (1 / (1 + weight), weight / (1 + weight), 0.7 / (1 + weight))]
    )


def test_lambda_follows_the_mean_over_all_micro_batches_and_ranks():
    objective = Lagrangian(KL(0.5), multiplier=Geco(rate=0.1), margin=0.2)
    objective.observe(torch.tensor(3.0), torch.tensor(4))
    objective.observe(torch.tensor(5.0), torch.tensor(12))
    other_rank = torch.tensor([8.0, 16.0], dtype=torch.float64)
    assert objective.step(1, 0.0, lambda own: own + other_rank)
    violation = (16.0 / 32 - 0.5) / 0.5 + 0.2
    assert float(objective.multiplier.value) == pytest.approx(math.exp(0.1 * violation))


def test_a_step_counts_once_and_only_when_it_is_over():
    objective = Lagrangian(KL(0.5), multiplier=Geco(rate=0.1))
    assert not objective.step(1, 0.0, total)  # nothing was seen
    objective.observe(torch.tensor(8.0), torch.tensor(8))
    assert not objective.step(0, 0.0, total)  # the same step: accumulation goes on
    assert objective.step(1, 0.0, total) and not objective.step(1, 0.0, total)
    moved = float(objective.multiplier.value)
    objective.observe(torch.tensor(8.0), torch.tensor(8))
    assert not objective.step(1, 0.0, total) and float(objective.multiplier.value) == moved > 1


def test_a_relaxed_tolerance_falls_geometrically():
    told = []

    class Told(Fixed):
        def update(self, violation):
            told.append(float(violation))

    objective = Lagrangian(KL(0.5), multiplier=Told(), relaxation=4.0)
    assert objective.follows_progress and not Lagrangian().follows_progress
    for step, progress in enumerate((0.0, 0.5, 1.0), start=1):
        objective.observe(torch.tensor(2.0), torch.tensor(2))
        objective.step(step, progress, total)
    assert told == pytest.approx([1.0 / (0.5 * more) - 1 for more in (4.0, 2.0, 1.0)])


def test_its_state_comes_back():
    objective, other = (Lagrangian(KL(0.5), multiplier=NuPI()) for _ in range(2))
    objective.observe(torch.tensor(8.0), torch.tensor(8))
    objective.step(3, 0.0, total)
    objective.constraint.tolerance = 0.25  # as `prepare` may have measured it
    other.observe(torch.tensor(1.0), torch.tensor(1))  # of a step that the checkpoint knows nothing of
    other.load_state_dict(objective.state_dict())
    assert float(other.multiplier.value) == float(objective.multiplier.value) and other.constraint.tolerance == 0.25
    assert not other.step(4, 0.0, total)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": 1.0}, "margin is a share"),
        ({"relaxation": 0.5}, "relaxation multiplies"),
        ({"relaxation": math.inf}, "relaxation multiplies"),
        ({"distillation": -1.0}, "distillation must not be negative"),
    ],
)
def test_numbers_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Lagrangian(**settings)
