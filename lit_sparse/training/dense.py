"""Training of a small dense model from scratch, which a sparse run can start from (the paper's addition toy)."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from lit_sparse.objective import IGNORED
from lit_sparse.objective.exact_match import exact_match
from lit_sparse.training.run_module import RunModule
from lit_sparse.training.state import RunState


class DenseModule(RunModule):
    """An ordinary causal language model with ordinary cross-entropy.

    Args:
        config: `model_type` and any other key of that transformers configuration.
        optimizer: optimizer of all weights.
        scheduler: stepped once per optimizer step.
        min_exact_match: the share of held-out sequences that must be exactly right at the end.
        seed: seed of the initial weights.

    Raises:
        ValueError: the config has no model_type.
    """

    def __init__(
        self,
        config: dict[str, Any],
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        min_exact_match: float = 1.0,
        seed: int = 0,
    ):
        super().__init__(RunState("dense", config.get("model_type", "")), scheduler)
        if "model_type" not in config:
            raise ValueError("DenseModule's config needs a model_type, such as llama or gpt2")
        torch.manual_seed(seed)
        self.model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        self.make_optimizer = optimizer
        self.min_exact_match = min_exact_match
        self._right: list[Tensor] = []

    def _logits(self, batch: dict[str, Tensor]) -> Tensor:
        outputs = self.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        logits: Tensor = outputs.logits
        return logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        scored = batch["labels"] != IGNORED
        loss = torch.nn.functional.cross_entropy(self._logits(batch)[scored], batch["labels"][scored])
        self.log("train/ce", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._right.append(exact_match(self._logits(batch).argmax(-1), batch["labels"]))

    def on_validation_epoch_end(self) -> None:
        rate = torch.cat(self._right).float().mean()
        self._right.clear()
        self.log("val/exact_match", rate, prog_bar=True)
        self.log("val/score", -rate)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return self.scheduled(self.make_optimizer(self.model.parameters()))

    def finish(self, run_dir: Path) -> None:
        """Writes the model folder that a sparse run starts from.

        Raises:
            ValueError: the model did not reach `min_exact_match`.
        """
        trainer = self.trainer
        if not trainer.is_global_zero:
            return
        rate = float(trainer.callback_metrics["val/exact_match"])
        if rate < self.min_exact_match:
            raise ValueError(
                f"the dense model got {rate:.2%} of held-out sequences right after {trainer.global_step} steps, but "
                f"min_exact_match is {self.min_exact_match:.2%}; train longer (trainer.max_steps) or lower "
                "min_exact_match"
            )
        self.model.save_pretrained(run_dir / "model")
        if hasattr(self.data, "load_tokenizer"):
            self.data.load_tokenizer().save_pretrained(run_dir / "model")
        self.print(f"dense model: {rate:.2%} exact after {trainer.global_step} steps, in {run_dir / 'model'}")
