"""`TranscoderModule`: a LightningModule that trains a transcoder on the MLPs of a frozen model.

Each step minimises

    normalised error, summed over layers (+ sparsity loss of JumpReLU | revival loss of dead top-k features)

on activations that the model computes in the step, or that a cache holds (`transcoders.cache`). Subclass it and
override `build_model()` for a model that `load_any` does not find.
"""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import PreTrainedModel

from lit_sparse.common.errors import NonFiniteLossError
from lit_sparse.models.compared import load_any
from lit_sparse.training.run_module import RunModule
from lit_sparse.training.state import RunState
from lit_sparse.training.strategies import sharding_of
from lit_sparse.transcoders.activations import Activations, Batch, MLPs
from lit_sparse.transcoders.fidelity import cross_entropies
from lit_sparse.transcoders.finish import finish_transcoder
from lit_sparse.transcoders.losses import SparsityLoss, reconstruction_loss, revival_loss
from lit_sparse.transcoders.metric import TranscoderEvaluation, TranscoderMetric
from lit_sparse.transcoders.models import shape_of
from lit_sparse.transcoders.scaling import Scaling, start_massive_features
from lit_sparse.transcoders.transcoder import Transcoder, TranscoderConfig


class TranscoderModule(RunModule):
    """Trains a transcoder.

    Args:
        model: the dense or sparse model whose MLPs it reads: a folder, adapters and gates, a Hugging Face name, or
            `package:NAME`.
        transcoder: size and kind of the transcoder.
        sparsity: sparsity loss of JumpReLU transcoders; None takes its defaults. Top-k needs none.
        dead_after: number of tokens after which an inactive feature counts as dead.
        revival: weight of the loss that revives dead features of top-k transcoders; 0 means none.
        optimizer: optimizer of all weights.
        scheduler: stepped once per optimizer step; None keeps the learning rate.
        trust_remote_code: allow the model folder to run its own code.
        seed: seed of the initial weights.

    Raises:
        ValueError: settings cannot work, before training; see the parts.
    """

    def __init__(
        self,
        model: str,
        transcoder: TranscoderConfig,
        sparsity: SparsityLoss | None = None,
        dead_after: int = 10_000,
        revival: float = 1 / 32,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        trust_remote_code: bool = False,
        seed: int = 0,
    ):
        super().__init__(RunState("transcoder", model), scheduler)
        if dead_after < 1:
            raise ValueError(f"dead_after is a number of tokens, at least 1, got {dead_after}")
        if revival < 0:
            raise ValueError(f"revival must not be negative, got {revival}")
        if sparsity is not None and transcoder.activation == "topk":
            raise ValueError("sparsity is for activation: jumprelu; topk always keeps k features, so leave it out")
        self.base_name = model
        self.config = transcoder
        self.sparsity = sparsity or SparsityLoss()
        self.dead_after = dead_after
        self.revival = revival
        self.make_optimizer = optimizer
        self.trust_remote_code = trust_remote_code
        self.seed = seed
        layers, width = shape_of(model, trust_remote_code=trust_remote_code)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.transcoder = Transcoder(transcoder, layers, width)
        self.scaling = Scaling(layers, width)
        self.idle: Tensor
        self.register_buffer("idle", torch.zeros(layers, transcoder.features, dtype=torch.long))
        self.evaluation = TranscoderMetric(layers, width)
        # In lists, so that they are no submodules and never saved: the frozen model, and the transcoder for raw values.
        self._mlps: list[MLPs] = []
        self._raw: list[Transcoder] = []

    def build_model(self, dtype: torch.dtype) -> PreTrainedModel:
        """The frozen model, in evaluation mode, on any device."""
        return load_any(self.base_name, dtype=dtype, trust_remote_code=self.trust_remote_code)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return self.scheduled(self.make_optimizer(self.transcoder.parameters()))

    @property
    def mlps(self) -> MLPs:
        """MLPs of the frozen model, which is loaded at first use: training from a cache only validates with it."""
        if not self._mlps:
            # bfloat16 where training computes in it anyway; gates keep their float32.
            lower = self.precision.startswith("bf16")
            model = self.build_model(torch.bfloat16 if lower else torch.float32).requires_grad_(False)
            self._mlps = [MLPs(model)]
        self._mlps[0].model.to(self.device)  # type: ignore[arg-type]
        return self._mlps[0]

    @property
    def dead(self) -> Tensor:
        """Features (L, F) that have not been active for `dead_after` tokens."""
        return self.idle >= self.dead_after

    def activations(self, batch: Batch) -> Activations:
        """Scaled activations (L, N, D) of a batch of tokens, or of a batch from a cache."""
        if "mlp_inputs" in batch:
            return self.scaling.apply_to(Activations(batch["mlp_inputs"], batch["mlp_outputs"]))
        return self.scaling.apply_to(self.mlps.capture(batch))

    # --- training ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def on_fit_start(self) -> None:
        """Measures the scales on the first training text, in a run that is not resumed."""
        if sharding_of(self.trainer.strategy).shards_weights:
            raise ValueError("transcoders are trained on one device or with DDP: set trainer.strategy to auto or ddp")
        if self.state.resumed or self.trainer.ckpt_path is not None:
            return
        data = self.data
        if getattr(data, "model", self.base_name) != self.base_name:
            raise ValueError(f"data.model = {data.model!r} is another model than model.model = {self.base_name!r}")
        batches = [{name: part.to(self.device) for name, part in batch.items()} for batch in data.calibration_batches()]
        with self.trainer.precision_plugin.forward_context():
            parts = [self.activations(batch) for batch in batches]  # the scales are 1 so far
        sample = Activations(*(torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True)))
        self.scaling.measure(sample)
        start_massive_features(self.transcoder, self.scaling.apply_to(sample))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, outputs = self.activations(batch)
        preactivations = self.transcoder.preactivate_all(inputs)
        acts = self.transcoder.activate_all(preactivations)
        error = outputs - self.transcoder.decode(acts)
        loss = normalised = reconstruction_loss(error, outputs)
        dead = self.dead
        if self.config.activation == "jumprelu":
            done = self.trainer.global_step / max(self.trainer.max_steps, 1)
            loss = loss + self.sparsity(self.transcoder, preactivations, acts, done)
        elif self.revival and bool(dead.any()):
            loss = loss + self.revival * revival_loss(self.transcoder, preactivations, error, outputs, dead)
        if not torch.isfinite(loss):
            raise NonFiniteLossError(self.trainer.global_step, float(loss))
        self._count(acts.detach() > 0)
        self.log_dict(
            {
                "train/loss": loss.detach(),
                "train/normalised_error": normalised.detach() / self.transcoder.layers,
                "train/l0": (acts > 0).sum(-1).float().mean(),
                "train/dead_fraction": dead.float().mean(),
                "train/tokens": float(self.state.tokens),
            }
        )
        return loss

    def _count(self, active: Tensor) -> None:
        tokens = active.shape[1] * self.trainer.world_size
        fired = self.trainer.strategy.reduce(active.any(1).float(), reduce_op="sum") > 0
        self.idle = torch.where(fired, 0, self.idle + tokens)
        self.state.tokens += tokens

    # --- validation --------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._raw = [self.scaling.fold(self.transcoder)]

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate(batch, self.evaluation, self._raw[0])

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    @torch.no_grad()
    def evaluate(self, batch: Batch, metric: TranscoderMetric, raw: Transcoder) -> Tensor:
        """Adds a batch of tokens to a metric; returns its features' activations (L, N, F).

        Args:
            raw: the transcoder with its scales folded in, which stands in for the MLPs.
        """
        sums, activations = cross_entropies(self.mlps, batch, raw, self.scaling.output_mean)
        inputs, outputs = self.scaling.apply_to(activations)
        acts = self.transcoder.encode(inputs)
        metric.update(outputs - self.transcoder.decode(acts), outputs, acts, sums)
        return acts

    def _log_evaluation(self, split: str) -> None:
        result: TranscoderEvaluation = self.evaluation.compute()
        self.evaluation.reset()
        names = ("explained_variance", "l0", "ce", "replacement_ce", "mean_ablation_ce")
        summary = result.summary()
        metrics = {f"{split}/{name}": summary[name] for name in names}
        metrics[f"{split}/score"] = 1 - summary["explained_variance"]  # what the best checkpoint minimises
        for layer, value in enumerate(result.explained_variance):
            metrics[f"layers/explained_variance_{layer:02d}"] = value
            metrics[f"layers/l0_{layer:02d}"] = result.l0[layer]
        self.log_dict(metrics, sync_dist=True, rank_zero_only=True)  # the metric has summed over ranks

    # --- the end -----------------------------------------------------------------------------------------------

    def finish(self, run_dir: Path) -> None:
        """Writes the result of the run, `run_dir/transcoder` (see `transcoders.finish`)."""
        if self.trainer.is_global_zero:
            finish_transcoder(self, run_dir)

    # --- checkpoints -------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.state.write(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.state.read(checkpoint, self.state_dict())
