"""What a GPU would be waited for in a training run, counted on the pretended device (`device.py`)."""

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy

from lit_sparse import SparseAttentionModule
from lit_sparse.attention import Probability
from lit_sparse.data import AdditionData
from lit_sparse.models.adapters import LoraConfig
from lit_sparse.objective import Lagrangian, NuPI, Paired
from lit_sparse.training.callbacks import Throughput
from tests.pretended.cases import PretendAccelerator
from tests.pretended.device import DEVICE, PretendDevice
from tests.tiny import QUIET

# Seeds are copied; on a GPU from pinned memory, which waits for nothing. Transformers looks for packed documents in the
# base model's pass; not on a GPU where adapters are trained, since that pass is given its mask (`fused_dense.py`).
KNOWN = {"aten._to_copy.default": 1, "aten._local_scalar_dense.default": 1}


class Waits(Callback):
    """The operations that each micro-batch waits for, with its optimizer step."""

    def __init__(self, device):
        self.device, self.batches = device, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.device.waits.clear()  # the batch was moved to the device before

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append(dict(self.device.waits))


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)])
def test_a_step_waits_for_nothing(lora, llama_folder):
    with PretendDevice() as device:
        module = SparseAttentionModule(
            str(llama_folder),
            gate=Probability(sharpness_end=4.0),
            objective=Lagrangian(Paired(0.1), multiplier=NuPI(), margin=0.1, relaxation=2.0, distillation=0.1),
            lora=lora,
        )
        waits = Waits(device)
        trainer = Trainer(
            strategy=SingleDeviceStrategy(DEVICE, PretendAccelerator()),
            max_steps=6,
            accumulate_grad_batches=2,
            callbacks=[Throughput(), waits],
            gradient_clip_val=1.0,
            log_every_n_steps=50,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            **QUIET,
        )
        trainer.fit(module, datamodule=AdditionData(digits=1, batch_size=8, held_out=0.2))
    assert len(waits.batches) == 12
    # The first step makes the controller's, the metrics' and the optimizer's states.
    assert waits.batches[2:] == [KNOWN] * 10
