"""A sparse run under Lightning: its building, start, steps and checkpoints.

Read and subclass `module.SparseAttentionModule`; this module holds what is the same for all subclasses.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_sparse.attention import GateConfig
from lit_sparse.common.modes import evaluating
from lit_sparse.common.progress import progress_bar
from lit_sparse.data.base import Batch
from lit_sparse.models.adapters import LoraConfig
from lit_sparse.objective import Constraint, Lagrangian
from lit_sparse.training.checkpoint_io import BEST, LAST, AtomicCheckpointIO, recover
from lit_sparse.training.execution import Execution, StepRunner
from lit_sparse.training.finite import FiniteGuard
from lit_sparse.training.frozen import FrozenWeights, completed, left_out_of
from lit_sparse.training.gate_noise import draw_step_seeds
from lit_sparse.training.held_out import Evaluation, EvaluationMetric
from lit_sparse.training.pair import Pair
from lit_sparse.training.run_module import RunModule
from lit_sparse.training.selection import Selection
from lit_sparse.training.start.calibrated import calibrated_start
from lit_sparse.training.start.calibration import Calibration
from lit_sparse.training.state import RunState
from lit_sparse.training.strategies import Sharding, sharding_of


class PairModule(RunModule):
    """A student that learns from the model that it was made of. For the arguments see `SparseAttentionModule`."""

    pair: Pair
    runner: StepRunner

    def __init__(
        self,
        *,
        model: str,
        gate: GateConfig | None,
        objective: Lagrangian | None,
        start: Calibration | str | None,
        train: str,
        lora: LoraConfig | None,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None,
        gate_lr: float,
        selection: Selection | None,
        execution: Execution | None,
        trust_remote_code: bool,
        seed: int,
    ):
        super().__init__(RunState("sparse", model), scheduler)
        if train not in ("all", "attention", "none"):
            raise ValueError(f"train is 'all', 'attention' or 'none', got {train!r}")
        if gate_lr < 0:
            raise ValueError(f"gate_lr must not be negative, got {gate_lr}")
        self.base_name = model
        self.gate_config = GateConfig.of(gate)
        self.objective = objective or Lagrangian()
        self.start = start
        self.train_weights, self.lora = train, lora
        self.make_optimizer, self.gate_lr = optimizer, gate_lr
        self.selection = selection or Selection()
        self.execution = execution or Execution()
        self.trust_remote_code = trust_remote_code
        self.seed = seed
        if self.gate_config.centered and start is None:
            raise ValueError("a centered gate needs the heads' means: set start to a calibration, or to a folder")
        self.model: PreTrainedModel | None = None
        """The student, once it is built."""
        self.evaluation = EvaluationMetric()
        self.last_evaluation: Evaluation | None = None
        self.guard = FiniteGuard()
        self.seeds = torch.empty(0)  # (L, B), of the gates in this step
        self._frozen = FrozenWeights()
        self._is_whole = False  # True if a sharded run's model was joined again

    @abstractmethod
    def build_base(self) -> PreTrainedModel:
        """The dense base model."""

    @abstractmethod
    def build_teacher(self, base: PreTrainedModel) -> PreTrainedModel | None:
        """The model with which the student is compared; None means the student without adapters and gates."""

    @abstractmethod
    def is_gated(self, layer: int) -> bool:
        """True if this attention layer may close edges."""

    @abstractmethod
    def measure(self, metric: EvaluationMetric, batch: Batch) -> None:
        """Adds a batch to a metric."""

    # --- built -------------------------------------------------------------------------------------------------

    @property
    def sharding(self) -> Sharding:
        """The strategy's handling of weights."""
        return sharding_of(None if self._trainer is None or self._is_whole else self._trainer.strategy)

    def configure_model(self) -> None:
        if self.model is not None:
            return
        trainer = self._trainer
        if trainer is not None and trainer.training and trainer.ckpt_path is not None:
            self.sharding.check_resumable(Path(trainer.ckpt_path))
        self.pair = Pair(self, self.sharding)
        self.model = self.pair.student

    def configure_optimizers(self) -> OptimizerLRScheduler:
        weights, cutoffs = self.pair.weights_and_cutoffs()
        groups: list[dict[str, Any]] = [{"params": weights}] if weights else []
        if cutoffs:
            groups.append({"params": cutoffs, "lr": self.gate_lr, "weight_decay": 0.0})
        if not groups:
            raise ValueError("nothing to train: gates are fixed (gate.learnable=false) and train is 'none'")
        return self.scheduled(self.make_optimizer(groups))

    def rebuild_whole(self, checkpoints: Path) -> None:
        """Rebuilds the whole model on each rank after a sharded run, from the best checkpoint or else the last, so that
        the run can report on it.

        Raises:
            ValueError: the run wrote no checkpoint.
        """
        written = [path for path in (checkpoints / BEST, recover(checkpoints / LAST)) if path.exists()]
        if not written:
            raise ValueError(f"the run wrote no checkpoint to {checkpoints}, so there is no model to report on")
        checkpoint = AtomicCheckpointIO().load_checkpoint(written[0])
        self.model, self._is_whole = None, True
        self.configure_model()
        self.load_weights(checkpoint)

    def check_finish(self) -> None:
        if self.run_data.test() is None:
            raise ValueError(
                "a run ends with a report on held-out text: give fit a test or validation loader, or a trainer with "
                "enable_checkpointing=False, which writes nothing"
            )

    def load_weights(self, checkpoint: dict[str, Any]) -> None:
        """Sets the weights to those of a checkpoint of this very run."""
        left_out = left_out_of(checkpoint)
        names = left_out["names"] if left_out is not None else []
        self.load_state_dict(completed(checkpoint["state_dict"], self, names))

    # --- started -----------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Calibrates the gates and measures the start of a run that is not resumed, on the test split, as at its end.
        Constraints are prepared on the validation split, which model selection uses."""
        follows = (self.gate_config, self.objective, self.selection)
        if any(part.follows_progress for part in follows) and self.trainer.max_steps < 1:
            raise ValueError(
                "sharpness_end, relaxation and selection.after follow the run's steps: set trainer.max_steps"
            )
        self.train()  # models are loaded in evaluation mode, in which gates are not sampled
        self.pair.place()
        self.runner = StepRunner(self.execution, self.pair.student, self.trainer, self.sharding.shards_weights)
        # Strategies that shard load the checkpoint after this hook.
        if not self.state.resumed and self.trainer.ckpt_path is None:
            with self.trainer.precision_plugin.forward_context():
                self._begin()

    def _begin(self) -> None:
        few = 1 if self.trainer.fast_dev_run else None  # type: ignore[attr-defined]
        data, constraint = self.run_data, self.objective.constraint
        if type(constraint).prepare is not Constraint.prepare:
            validation = _text(data.validation(), few, "a tolerance that is measured")
            constraint.prepare(self.evaluate(validation, "base model").base_ce)
        held_out = None if (test := data.test()) is None else list(islice(test, few))

        def measure() -> Evaluation | None:
            return None if held_out is None else self.evaluate(held_out, "start")

        if isinstance(self.start, Calibration):
            batches = [self._on_device(batch) for batch in _text(data.calibration(), few, "calibration")]
            self.state.start = calibrated_start(self.pair.student, batches, self.start, measure, self.print)
            self.sharding.weights_written()
        else:
            self.state.start = measure()

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch], description: str = "evaluating") -> Evaluation:
        """Evaluates batches with deterministic gates outside of Lightning's loops, with a progress bar."""
        self.pair.place()
        metric = EvaluationMetric().to(self.device)
        with evaluating(self), progress_bar(description) as advance:
            for index, batch in enumerate(batches):
                self.measure(metric, self._on_device(batch))
                advance(index + 1, len(batches))
        return metric.compute()

    def _on_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    # --- stepped -----------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        replicas = self.trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
        noise = self.seed, self.trainer.global_step, batch_idx
        ranks, rank = replicas["num_replicas"], replicas["rank"]
        self.seeds = draw_step_seeds(
            len(self.pair.layers), noise, len(batch["input_ids"]), ranks, rank, torch.device(self.device)
        )
        self.runner.begin()
        if self.gate_config.follows_progress:
            self.pair.advance_gates(self.progress)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.runner.backward(lambda: super(PairModule, self).backward(loss, *args, **kwargs))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.pair.sow(None)
        self.runner.end()
        self._end_step()
        if self.trainer.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.guard.check()

    def _end_step(self) -> None:
        """Moves lambda, if an optimizer step is over."""
        steps, progress = self.trainer.global_step, self.progress
        if not self.objective.step(steps, progress, self.sum_over_ranks):
            return
        finite = self.sharding.gradients_are_finite(self)
        if self.precision.startswith("16"):  # loss scaling leaves out steps whose gradients overflow float16
            finite = torch.ones_like(finite)
        self.guard.step(steps - 1, finite, self.trainer.world_size, self.sum_over_ranks)

    def on_train_end(self) -> None:
        super().on_train_end()
        self.guard.check()

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(tensor, reduce_op="sum")

    def trained(self) -> list[nn.Parameter]:
        """The parameters that learn."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    # --- written -----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._end_step()  # callbacks that save at the end of a step come before the module's own hook
        self.guard.check()
        self.state.write(checkpoint, objective=self.objective.state_dict())
        assert self.model is not None
        self._frozen.take_out(checkpoint, self, self.model, self.sharding.whole)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.state.check(checkpoint)
        self._frozen.put_back(checkpoint, self, self.base_name, self.sharding.whole)
        self.objective.load_state_dict(self.state.read(checkpoint, self.state_dict())["objective"])


def _text(batches: Iterable[Batch] | None, most: int | None, reader: str) -> list[Batch]:
    if batches is None:
        raise ValueError(f"{reader} needs text before training: give fit a data module that has it, such as TextData")
    return list(islice(batches, most))
