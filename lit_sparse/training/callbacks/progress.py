"""Progress of a run in the terminal or in its log."""

import shutil
import time
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from tqdm import tqdm

from lit_sparse.common.formatting import roughly
from lit_sparse.common.progress import is_terminal
from lit_sparse.training.callbacks.time_left import Load
from lit_sparse.training.pace import Work, unheard

_WIDTH = 80
_BAR = 6
_LOGGED = 60.0
"""Seconds between two lines of a log, if that is more than a fiftieth of the time that is left."""
_FIRST = 30.0
"""Seconds after which an estimate is shown, if the first stage of the run is not over by then: it begins slowly."""
_CHANGED = 0.2
"""Relative change of the estimated end after which it is said again."""


class SparsityProgressBar(TQDMProgressBar):
    """Progress bar with the time that the run will take, CE, the constraint's slack, lambda, edge fraction and tokens
    per second. For transcoders it has the unexplained part, active features, dead features, and the cross-entropy with
    the transcoder instead of the MLPs.

    There is one bar, for the run's optimizer steps. In a log file it is one line per minute and one after each
    validation.

    Reading a number from a GPU waits for all its work. So such numbers change only when loggers read them too, every
    `log_every_n_steps` steps.
    """

    _shown: dict[str, Any] | None = None
    _shown_at = -1  # in intervals of logging
    _load: Load | None = None
    _said: float | None = None  # the moment at which the run was said to end
    _stepped = 0.0  # when the last step ended, without the validations since
    _steps = 0  # of this start
    _last_line = 0.0
    _validation_began = 0.0

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        tqdm.write(sep.join(map(str, args)), **kwargs)  # Lightning's drops what comes before the first bar

    # --- how long it takes -------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        if self.is_disabled or trainer.fast_dev_run or not hasattr(module, "pace"):  # type: ignore[attr-defined]
            return
        self._load = Load(trainer, module)
        began = time.perf_counter()

        def measured(is_over: bool) -> None:
            if self._said is None and (is_over or time.perf_counter() - began > _FIRST):
                self._estimate()

        module.pace.on_measured = measured

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        module: Any = pl_module
        if self._load is not None:
            module.pace.on_measured = unheard
        self._load = None

    def _estimate(self) -> None:
        """Says how long the run takes, unless that has been said."""
        left = None if self._load is None else self._load.left()
        if left is None:
            return
        now = time.perf_counter()
        if self._said is None or abs(now + left.total - self._said) > _CHANGED * max(left.total, _LOGGED):
            self._said = now + left.total
            self.print(left.line())

    # --- training ----------------------------------------------------------------------------------------------

    def init_train_tqdm(self) -> Tqdm:
        return Tqdm(
            total=self._total(),
            initial=self.trainer.global_step,
            disable=self.is_disabled or not is_terminal(),
            leave=True,
            dynamic_ncols=True,
            bar_format=f"{{percentage:3.0f}}%|{{bar:{_BAR}}}| step {{n_fmt}}/{{total_fmt}}{{postfix}}",
        )

    def _total(self) -> int | None:
        """Optimizer steps of the run; a `TimeBudget` moves them."""
        total = self.trainer.estimated_stepping_batches
        return None if total == float("inf") else int(total)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._stepped = self._last_line = time.perf_counter()
        self._steps = 0
        if self._load is not None:
            expected = self._load.pace.expected
            expected[Work.EVALUATION] = max(expected[Work.EVALUATION], self._load.test)
        self._estimate()
        if self.is_enabled and (legend := getattr(pl_module, "legend", "")):
            self.print(legend)
        super().on_train_start()

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """The bar is of the run, not of an epoch."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pass

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module: Any = pl_module
        now = time.perf_counter()
        self._steps += 1
        if self._load is not None:
            self._load.micro_batch = tokens = float(batch["input_ids"].numel())
            if self._steps > 1:  # the first compiles
                self._load.pace.measured(Work.TRAINING, tokens, now - self._stepped)
            if (self._said is None and self._steps > 2) or self._steps == 20:
                self._estimate()
        self._stepped = now
        bar = self.train_progress_bar
        if not bar.disable and self._should_update(batch_idx + 1, int(min(self.total_train_batches, 1e9))):
            self._update(trainer, module)
        elif bar.disable and now - self._last_line >= self._interval():
            self._log(trainer, module)

    def _update(self, trainer: Trainer, module: Any) -> None:
        bar = self.train_progress_bar
        bar.n, bar.total = trainer.global_step, self._total()
        start = f"100%|{' ' * _BAR}| step {bar.total}/{bar.total}"
        line = fitted(start, self._parts(trainer, module), shutil.get_terminal_size().columns)
        bar.set_postfix_str(line.removeprefix(start).removeprefix(", "))

    def _parts(self, trainer: Trainer, module: Any) -> list[str]:
        figures = self.get_metrics(trainer, module)
        left = None if self._load is None else self._load.left()
        to_go = [] if left is None else [f"{roughly(left.total)} to go"]
        return [*to_go, *(f"{label} {value}" for label, value in figures.items())]

    def _interval(self) -> float:
        left = None if self._load is None else self._load.left()
        return _LOGGED if left is None else max(_LOGGED, left.total / 50)

    def _log(self, trainer: Trainer, module: Any) -> None:
        if self.is_disabled:
            return
        self._last_line = time.perf_counter()
        total = self._total()
        line = f"step {trainer.global_step}" + ("" if total is None else f" of {total}")
        self.print(fitted(line, self._parts(trainer, module), _WIDTH))

    # --- validation --------------------------------------------------------------------------------------------

    def init_validation_tqdm(self) -> Tqdm:
        """Bar of a validation; hidden during training, so that there is one bar."""
        inside = self.trainer.state.fn == "fit"
        return Tqdm(disable=True) if inside or not is_terminal() else super().init_validation_tqdm()

    init_sanity_tqdm = init_validation_tqdm

    def init_test_tqdm(self) -> Tqdm:
        return super().init_test_tqdm() if is_terminal() else Tqdm(disable=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self._validation_began = time.perf_counter()
        if self._train_progress_bar is not None and not self._train_progress_bar.disable:
            self._train_progress_bar.set_postfix_str("validating on held-out text")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()
        if trainer.state.fn != "fit" or trainer.sanity_checking or self._train_progress_bar is None:
            return
        module: Any = pl_module
        seconds = time.perf_counter() - self._validation_began
        self._stepped += seconds
        if self._load is not None and self._load.validation:
            self._load.pace.measured(Work.VALIDATION, self._load.validation, seconds)
        if self._train_progress_bar.disable:
            self._log(trainer, module)
        else:
            self._update(trainer, module)

    # --- figures -----------------------------------------------------------------------------------------------

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
            "edges": ("train/edge_fraction", "{:.2%}"),
            "held-out": ("val/edge_fraction", "{:.2%}"),
            "unexplained": ("train/normalised_error", "{:.3f}"),
            "L0": ("train/l0", "{:.1f}"),
            "dead": ("train/dead_fraction", "{:.1%}"),
            "explained": ("val/explained_variance", "{:.1%}"),
            "replaced CE": ("val/replacement_ce", "{:.3f}"),
            "tok/s": ("train/tokens_per_second", "{:.0f}"),
            "lambda": ("train/lambda", "{:.3g}"),
        }
        self._shown = {
            label: form.format(float(metrics[name])) for label, (name, form) in shown.items() if name in metrics
        }
        return self._shown


def fitted(start: str, parts: Iterable[str], width: int) -> str:
    """`start` and those of the parts, in their order, that a line of this width has room for, with commas."""
    line = start
    for part in parts:
        if len(line) + 2 + len(part) < width:
            line = f"{line}, {part}"
    return line
