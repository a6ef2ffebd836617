import pytest
import torch

from lit_sparse.schedule import WarmupDecay


def test_rates_rise_then_fall_to_nothing():
    weights, gates = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.AdamW([{"params": [weights], "lr": 1e-3}, {"params": [gates], "lr": 0.04}])
    schedule = WarmupDecay(optimizer, total_steps=10, warmup_steps=3)
    rates = []
    for _ in range(10):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    factors = [rate / 1e-3 for rate, _ in rates]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7])
    assert [rate / 0.04 for _, rate in rates] == pytest.approx(factors)
    assert optimizer.param_groups[0]["lr"] == 0


def test_a_warm_up_as_long_as_the_run():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="warmup_steps"):
        WarmupDecay(optimizer, total_steps=20, warmup_steps=20)
