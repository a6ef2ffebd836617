"""What training left of the tolerance is turned into fewer edges, and no more than that."""

import pytest
import torch
from lightning.pytorch import Trainer

from lit_sparse import GateConfig, SparseAttentionModule
from lit_sparse.attention import gates_of
from lit_sparse.data import AdditionData
from lit_sparse.objective import KL
from lit_sparse.tighten import tighten


@pytest.fixture
def validation():
    return list(AdditionData(digits=1, batch_size=8, eval_batch_size=16, held_out=0.2).val_dataloader())


def make(llama_folder, tolerance, family="probability"):
    module = SparseAttentionModule(
        str(llama_folder), gate=GateConfig(family=family, threshold=0.02), constraint=KL(tolerance), margin=0.05
    )
    Trainer(logger=False, enable_checkpointing=False, accelerator="cpu").strategy.connect(module)
    module.configure_model()
    return module


@pytest.mark.parametrize("family", ["probability", "contribution"])
def test_slack_becomes_fewer_edges(llama_folder, validation, family):
    module = make(llama_folder, 1.0, family)
    before = module.evaluate(validation)
    module.constraint = KL(4 * max(before.kl, 1e-4))
    raised = tighten(module, validation)
    after = module.evaluate(validation)
    assert raised > 0 and after.edge_fraction < before.edge_fraction
    assert module.constraint.violation(after.constraint) <= -module.margin
    for gate in gates_of(module.model):
        gate.set_cutoff(gate.form().cutoff + 2.0)
    assert module.evaluate(validation).kl > module.constraint.tolerance, "nothing was left to search for"


def test_without_slack_nothing_moves(llama_folder, validation):
    module = make(llama_folder, 1e-9)
    before = [gate.form().cutoff.clone() for gate in gates_of(module.model)]
    assert tighten(module, validation) == 0.0
    assert all(map(torch.equal, before, [gate.form().cutoff for gate in gates_of(module.model)]))
