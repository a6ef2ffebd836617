"""Trains the addition toy of configs/addition.yaml with overrides and returns what was logged. Shared by the toy's
benchmarks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_sparse.commands.fit import SparseCLI
from lit_sparse.commands.main import main

CONFIG = "configs/addition.yaml"
# The recorded comparisons are from before the config had what these options take back.
RECORDED = [
    "--model.init_args.selection.exact_match=0.0",
    "--model.init_args.selection.after=0.0",
    "--model.init_args.objective.relaxation=1.0",
    "--model.init_args.objective.constraint.init_args.tolerance=0.02",
    "--model.init_args.scheduler=torch.optim.lr_scheduler.LinearLR",
    "--model.init_args.scheduler.init_args.start_factor=1.0",
    "--model.init_args.scheduler.init_args.end_factor=0.05",
    "--model.init_args.scheduler.init_args.total_iters=3000",
    "--model.init_args.optimizer.init_args.weight_decay=0.0",
    "--model.init_args.optimizer.init_args.betas=[0.9,0.999]",
]


class History(Callback):
    """Train and validation metrics as rows of plain numbers."""

    def __init__(self, every: int):
        self.every = every
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int):
        if trainer.global_step % self.every == 0:
            self._add(trainer, "train/")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._add(trainer, "val/")

    def _add(self, trainer: Trainer, prefix: str) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}
        self.rows.append({"step": trainer.global_step, **metrics})


def train_toy(overrides: Sequence[str], *, seed: int, steps: int, every: int = 50) -> list[dict[str, float]]:
    """One run of `steps` steps; `overrides` are command-line options such as --model.init_args.gate_lr=0.1."""
    if not Path("runs/addition_dense/model/config.json").is_file():
        main(["fit", "--config", "configs/addition_dense.yaml", "--on_existing", "resume"])
    options = [f"--model.init_args.seed={seed}", f"--data.init_args.seed={seed}", f"--seed_everything={seed}"]
    cli = SparseCLI(["--config", CONFIG, *RECORDED, *options, *overrides], run=False)
    history = History(every)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=every,
        check_val_every_n_epoch=None,
        gradient_clip_val=cli.trainer.gradient_clip_val,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[history],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(cli.model, datamodule=cli.datamodule)
    return history.rows
