"""A recorded step. A GPU's recording is played by one that runs the step again on the same memory: what is tested is
that everything which changes from step to step reaches that memory."""

from collections.abc import Callable

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from lit_sparse import SparseAttentionModule
from lit_sparse.attention import Contribution
from lit_sparse.models.adapters import LoraConfig
from lit_sparse.objective import KL, Lagrangian, LogEdgeFraction, NuPI
from lit_sparse.training import execution, step_graph
from lit_sparse.training.execution import Execution, StepRunner
from lit_sparse.training.start.calibration import Calibration
from tests.tiny import QUIET, tiny_llama

LENGTH = 16


class TinyModule(SparseAttentionModule):
    def build_base(self) -> PreTrainedModel:
        return tiny_llama().eval()


class Replayed:
    """Repeats a run and leaves its results where the recorded run left them."""

    def __init__(self, run: Callable[[], tuple[Tensor, ...]], parameters: list[Tensor]):
        self.run, self.parameters = run, parameters
        self.outputs = run()
        self.gradients = [parameter.grad for parameter in parameters]

    def replay(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        for kept, new in zip(self.outputs, self.run(), strict=True):
            kept.copy_(new)
        for kept, parameter in zip(self.gradients, self.parameters, strict=True):
            kept.copy_(parameter.grad)
            parameter.grad = None


def trained(record_steps: bool) -> tuple[dict[str, Tensor], dict[str, float]]:
    module = TinyModule(
        "tiny",
        gate=Contribution(threshold=0.02, centered=True, sharpness_end=6.0),
        objective=Lagrangian(KL(tolerance=0.05), LogEdgeFraction(), NuPI()),
        start=Calibration(kl=0.1),
        lora=LoraConfig(r=2),
        execution=Execution(record_steps=record_steps),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    )
    generator = torch.Generator().manual_seed(0)
    positions = torch.cat([torch.arange(6), torch.arange(LENGTH - 6)])
    tokens = torch.randint(32, (12, LENGTH + 1), generator=generator)
    data = [{"input_ids": row[:-1], "labels": row[1:], "position_ids": positions} for row in tokens]
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=6,
        gradient_clip_val=1.0,
        **QUIET,
    )
    trainer.fit(module, train_dataloaders=DataLoader(data, batch_size=2))
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {name: value.clone() for name, value in module.state_dict().items()}, metrics


def test_a_recorded_step_trains_as_a_step_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = []

    def record(run, prepare):
        parameters = prepare.__self__._parameters
        prepare()
        recordings.append(Replayed(run, parameters))
        return recordings[-1], recordings[-1].outputs

    expected, expected_metrics = trained(record_steps=False)
    monkeypatch.setattr(step_graph, "record", record)
    monkeypatch.setattr(execution, "_check_recordable", lambda trainer: None)  # a CPU records by running again
    replayed, metrics = trained(record_steps=True)
    assert len(recordings) == 1
    assert metrics == expected_metrics
    torch.testing.assert_close(replayed, expected, rtol=0, atol=0)


def test_record_steps_is_refused_where_nothing_can_be_recorded() -> None:
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match="record_steps needs one CUDA GPU"):
        StepRunner(Execution(record_steps=True), torch.nn.Linear(1, 1), trainer, shards_weights=False)
