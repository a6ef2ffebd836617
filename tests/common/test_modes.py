"""A model's mode during an evaluation and after it."""

import pytest
from torch import nn

from lit_sparse.common.modes import evaluating, frozen


def test_every_module_returns_to_its_own_mode():
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[1].eval()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert [module.training for module in model.modules()] == [True, True, False]


def test_frozen_parameters_ask_for_a_gradient_again_afterwards():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    with pytest.raises(KeyError), frozen(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise KeyError
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, False, True, True]
