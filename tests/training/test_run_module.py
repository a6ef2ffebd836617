"""What modules that train share, on a module of two weights."""

import pytest
import torch
from lightning.pytorch import Trainer

from lit_sparse.training.run_module import RunModule
from lit_sparse.training.state import RunState
from tests.tiny import QUIET

pytestmark = pytest.mark.usefixtures("unpainted")


class Line(RunModule):
    def __init__(self, fused: bool):
        super().__init__(RunState("line", "none"), scheduler=None)
        self.weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        self.fused = fused
        self.norms: list[float] = []

    def training_step(self, batch, batch_idx):
        return 100 * self.weight.square().sum()

    def configure_optimizers(self):
        return self.scheduled(torch.optim.SGD(self.parameters(), lr=1e-3, fused=self.fused))

    def on_before_zero_grad(self, optimizer):
        if self.weight.grad is not None:
            self.norms.append(float(self.weight.grad.norm()))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("algorithm", "norm"), [("norm", 1.0), ("value", 2**0.5), (None, 1.0)])
def test_gradients_are_clipped_fused_optimizers_included(tmp_path, precision, fused, algorithm, norm):
    module = Line(fused)
    trainer = Trainer(
        accelerator="cpu",
        precision=precision,
        max_steps=2,
        gradient_clip_val=1.0,
        gradient_clip_algorithm=algorithm,
        **QUIET,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(range(2)))
    assert module.norms[-1] == pytest.approx(norm, rel=1e-4)  # 1000 before; float32
    assert module.state.seconds > 0
