"""`SparseAttentionModule`: a LightningModule that makes any causal language model's attention sparse.

Each step minimises, with sampled gates, the edge objective plus lambda times the constraint (`objective.Lagrangian`;
arXiv 2512.05865, section 3). Subclass it and override one of the hooks

    build_base()            makes the dense base model
    build_teacher(base)     makes the model with which the sparse model is compared
    is_gated(layer)         True for the layers that may close edges
    constraint_per_token(losses)    the constrained quantity
    edge_loss(edges)        the edge objective
"""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from transformers import PreTrainedModel

from lit_sparse.attention import EdgeCounts, GateConfig
from lit_sparse.data.base import Batch
from lit_sparse.models.adapters import LoraConfig
from lit_sparse.models.base import load_model
from lit_sparse.objective import Lagrangian, TokenLosses, token_losses
from lit_sparse.objective.ranks import over_ranks
from lit_sparse.training.callbacks.run import run_callbacks
from lit_sparse.training.callbacks.sparsity import SparsityByHead
from lit_sparse.training.end.finish import finish_run
from lit_sparse.training.execution import Execution
from lit_sparse.training.held_out import EvaluationMetric
from lit_sparse.training.pair_module import PairModule
from lit_sparse.training.selection import Selection
from lit_sparse.training.start.calibration import Calibration

_EQUAL_ON_RANKS: Any = {"sync_dist": True, "rank_zero_only": True}
"""Options for logging metrics that `EvaluationMetric` has summed over ranks, which leave their values unchanged."""


class StepSums(NamedTuple):
    """Results of a micro-batch on this rank, 0-d each."""

    loss: Tensor
    constraint: Tensor  # sums over scored tokens
    ce: Tensor
    kl: Tensor
    tokens: Tensor
    edge_fraction: Tensor


class SparseAttentionModule(PairModule):
    """Post-trains `model` to sparse attention.

    Args:
        model: a local folder, a Hugging Face name, or `package:NAME` (see `lit_sparse.models`).
        gate: description of the gates.
        objective: the edge objective and the constraint.
        start: the sparse start to search for before training (a `Calibration`), or a folder of adapters and gates (the
            `model/` of a run with `lora`, `release/smollm2_2048`) to continue from, which needs `lora`; None starts
            from `gate` unchanged.
        train: the weights that learn besides the gates: "all", "attention" (the attention layers' own) or "none".
        lora: train low-rank adapters instead of the weights.
        optimizer: optimizer of both weights and gates.
        scheduler: stepped once per optimizer step; None keeps the learning rates.
        gate_lr: learning rate of the gates' cutoffs, which get no weight decay.
        selection: requirements on the best model.
        execution: settings for the execution of steps.
        trust_remote_code: allow the model folder to run its own code.
        seed: seed of the gates' noise.

    Raises:
        ValueError: settings cannot work, before training; see the parts.
    """

    def __init__(
        self,
        model: str,
        gate: GateConfig | None = None,
        objective: Lagrangian | None = None,
        start: Calibration | str | None = None,
        train: str = "all",
        lora: LoraConfig | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        gate_lr: float = 0.05,
        selection: Selection | None = None,
        execution: Execution | None = None,
        trust_remote_code: bool = False,
        seed: int = 0,
    ):
        super().__init__(
            model=model, gate=gate, objective=objective, start=start, train=train, lora=lora, optimizer=optimizer,
            scheduler=scheduler, gate_lr=gate_lr, selection=selection, execution=execution,
            trust_remote_code=trust_remote_code, seed=seed,
        )  # fmt: skip

    # --- hooks to override -------------------------------------------------------------------------------------

    def build_base(self) -> PreTrainedModel:
        """The dense base model in float32, on any device."""
        return load_model(self.base_name, trust_remote_code=self.trust_remote_code)

    def build_teacher(self, base: PreTrainedModel) -> PreTrainedModel | None:
        """The frozen model with which CE and KL are compared: a copy of the base. With `lora` it is None, since the
        base is then the student without adapters and gates."""
        if self.lora is not None:
            return None
        return self.build_base() if self.sharding.born_sharded else copy.deepcopy(base)

    def is_gated(self, layer: int) -> bool:
        """True if this attention layer may close edges; the others stay dense."""
        return True

    def constraint_per_token(self, losses: TokenLosses) -> Tensor:
        """The constrained quantity of each token (B, T); only scored tokens count."""
        return self.objective.per_token(losses)

    def edge_loss(self, edges: EdgeCounts) -> Tensor:
        """The edge objective of one micro-batch over all ranks, a scalar."""
        return self.objective.edge_loss(edges)

    # --- a step ------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> tuple[Tensor, EdgeCounts]:
        """Logits (B, T, vocabulary) of the sparse model, and the edge counts of this pass."""
        return self.pair.logits(batch)

    def base_logits(self, batch: Batch) -> Tensor:
        """Logits (B, T, vocabulary) of the frozen base model."""
        return self.pair.base_logits(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        weight = self.objective.weight(self.device)
        inputs = {**batch, "seeds": self.seeds, "lambda": weight}
        step = StepSums(*self.runner(self.compute, inputs, self.trained))
        self.objective.observe(step.constraint, step.tokens)
        self.guard.observe(step.loss, step.ce, step.tokens)
        self.state.tokens += batch["input_ids"].numel() * self.trainer.world_size
        value, ce, kl = (total.detach() / step.tokens for total in (step.constraint, step.ce, step.kl))
        values = {"loss": step.loss.detach(), "ce": ce, "kl": kl, "constraint": value, "lambda": weight}
        values |= {"slack": self.objective.constraint.tolerance - value, "edge_fraction": step.edge_fraction}
        values |= {"tokens": torch.tensor(float(self.state.tokens))}  # a float would be copied to the device
        self.log_dict({f"train/{name}": number for name, number in values.items()})
        return step.loss

    def compute(self, inputs: Batch) -> StepSums:
        """The part of a step that depends on the batch, as a function of tensors, which `record_steps` replays."""
        self.pair.sow(inputs["seeds"])
        base_logits = self.base_logits(inputs)
        logits, edges = self(inputs)
        losses = token_losses(logits, base_logits, inputs["labels"])
        own_tokens = losses.tokens()
        edges, tokens = over_ranks(edges, own_tokens, self.trainer.world_size, self.sum_over_ranks)
        total = torch.where(losses.scored, self.constraint_per_token(losses), 0).sum()
        ce, kl, fraction = losses.ce.detach().sum(), losses.kl.sum(), edges.opened.sum() / edges.allowed.sum()
        loss = self.objective.loss(self.edge_loss(edges), total / tokens, kl / tokens, inputs["lambda"])
        return StepSums(loss, total, ce, kl.detach(), own_tokens, fraction.detach())

    # --- validation --------------------------------------------------------------------------------------------

    def measure(self, metric: EvaluationMetric, batch: Batch) -> None:
        logits, edges = self(batch)
        losses = token_losses(logits, self.base_logits(batch), batch["labels"])
        predictions = None if self.selection.exact_match is None else logits.argmax(-1)
        per_token = self.constraint_per_token(losses)
        metric.update(losses, per_token, edges, batch["input_ids"].numel(), predictions, batch["labels"])

    def on_validation_start(self) -> None:
        self.pair.place()  # the command may be `validate` or `test`
        self.guard.check()

    on_test_start = on_validation_start

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.measure(self.evaluation, batch)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        result = self.last_evaluation = self.evaluation.compute()
        self.evaluation.reset()
        metrics = {f"val/{name}": value for name, value in result.metrics().items()}
        violation = self.objective.constraint.violation(result.constraint)
        metrics["val/score"] = self.selection.score(result, violation, self.progress)
        self.log_dict(metrics, **_EQUAL_ON_RANKS)

    def on_test_epoch_end(self) -> None:
        metrics = {f"test/{name}": value for name, value in self.evaluation.compute().metrics().items()}
        self.log_dict(metrics, **_EQUAL_ON_RANKS)
        self.evaluation.reset()

    # --- around a run ------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        return run_callbacks(self.trainer, self.run_dir, SparsityByHead())

    def finish(self, run_dir: Path) -> None:
        finish_run(self, run_dir, base_by_name=type(self).build_base is SparseAttentionModule.build_base)
