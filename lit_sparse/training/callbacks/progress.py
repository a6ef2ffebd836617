"""Progress bar of a run in the terminal."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm import tqdm


class SparsityProgressBar(TQDMProgressBar):
    """Progress bar with CE, the constraint's slack, lambda, edge fraction and tokens per second. For transcoders it has
    the unexplained part, active features, dead features, and the cross-entropy with the transcoder instead of the MLPs.

    Reading a number from a GPU waits for all its work. So such numbers change only when loggers read them too, every
    `log_every_n_steps` steps.
    """

    _shown: dict[str, Any] | None = None
    _shown_at = -1  # in intervals of logging

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        tqdm.write(sep.join(map(str, args)), **kwargs)  # Lightning's drops what comes before the first bar

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = trainer.callback_metrics
        if any(value.device.type != "cpu" for value in metrics.values()):
            logging = trainer.global_step // trainer.log_every_n_steps  # type: ignore[attr-defined]
            if self._shown is not None and logging == self._shown_at:
                return self._shown
            self._shown_at = logging
        shown = {
            "CE": ("train/ce", "{:.3f}"),
            "slack": ("train/slack", "{:+.3f}"),
            "lambda": ("train/lambda", "{:.3g}"),
            "edges": ("train/edge_fraction", "{:.2%}"),
            "held-out": ("val/edge_fraction", "{:.2%}"),
            "unexplained": ("train/normalised_error", "{:.3f}"),
            "L0": ("train/l0", "{:.1f}"),
            "dead": ("train/dead_fraction", "{:.1%}"),
            "explained": ("val/explained_variance", "{:.1%}"),
            "replaced CE": ("val/replacement_ce", "{:.3f}"),
            "tok/s": ("train/tokens_per_second", "{:.0f}"),
        }
        self._shown = {
            label: form.format(float(metrics[name])) for label, (name, form) in shown.items() if name in metrics
        }
        return self._shown
