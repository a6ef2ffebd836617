"""A model's mode during an evaluation and after it."""

import pytest
from torch import nn

from lit_sparse.common.modes import evaluating


def test_every_module_returns_to_its_own_mode():
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[1].eval()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert [module.training for module in model.modules()] == [True, True, False]
