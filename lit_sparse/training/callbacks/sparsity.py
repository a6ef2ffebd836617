"""Open edges by layer and head, as numbers, and as a picture for loggers that show pictures."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lit_sparse.report.run.plots import edges_by_head

_CLOSED_BELOW = 1e-4  # open fraction: such a head counts as closed


class SparsityByHead(Callback):
    """Logs after each validation the open fraction of every layer, the number of closed heads, and for TensorBoard a
    heat map of all heads.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        result = getattr(pl_module, "last_evaluation", None)
        if trainer.sanity_checking or result is None or not trainer.is_global_zero:
            return
        step = trainer.global_step
        values = {f"layers/{layer:02d}": float(row.mean()) for layer, row in enumerate(result.open_fraction)}
        values["val/closed_heads"] = float((result.open_fraction < _CLOSED_BELOW).sum())
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)
            if isinstance(logger, TensorBoardLogger):
                figure = edges_by_head({"Validation split": result.open_fraction.numpy()})
                logger.experiment.add_figure("edges by head", figure, global_step=step)
