"""A Lightning run that is cut off and goes on reads the batches that an uncut run reads."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_sparse.data import AdditionData

pytestmark = pytest.mark.usefixtures("unpainted")

STEPS_OF_AN_EPOCH = 5


class Reader(LightningModule):
    """Notes the batches it is trained on."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.read = []

    def training_step(self, batch, batch_idx):
        self.read.append(batch["input_ids"].tolist())
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(folder, max_steps, num_workers=0, resume=None):
    data = AdditionData(digits=1, batch_size=16, eval_batch_size=16, num_workers=num_workers)
    model = Reader()
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        callbacks=[saver],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    return model.read


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_goes_on_at_the_next_batch(tmp_path, num_workers):
    expected = run(tmp_path / "whole", 12)
    assert expected[:5] != expected[5:10]
    for stop in (2, STEPS_OF_AN_EPOCH, 7) if num_workers == 0 else (7,):
        folder = tmp_path / f"cut{stop}"
        before = run(folder, stop, num_workers)
        after = run(folder, 12, num_workers, resume=folder / f"step={stop}.ckpt")
        assert before + after == expected, stop
