"""The student and its teacher: their building, sharding, devices, and logits of the same tokens."""

import math
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_sparse.attention import EdgeCounts, GateConfig, attention_modules, edge_counts, fused_dense, gates_of, sparsify
from lit_sparse.attention.bridge import separates_documents_only_when_gated
from lit_sparse.attention.masks import is_causal_only, packed_causal_mask
from lit_sparse.data.base import Batch
from lit_sparse.models.adapters import BaseSwitch, LoraConfig, add_lora
from lit_sparse.models.sparse_folder import continue_from
from lit_sparse.training.execution import Execution
from lit_sparse.training.gate_noise import give_seeds
from lit_sparse.training.start.calibration import Calibration
from lit_sparse.training.strategies import Sharding


@runtime_checkable
class Recipe(Protocol):
    """The settings and hooks of a run's module from which a pair is made."""

    base_name: str
    gate_config: GateConfig
    start: Calibration | str | None
    train_weights: str
    lora: LoraConfig | None
    execution: Execution

    @property
    def device(self) -> Any: ...
    @property
    def data(self) -> Any: ...
    @property
    def precision(self) -> str: ...
    def build_base(self) -> PreTrainedModel: ...
    def build_teacher(self, base: PreTrainedModel) -> PreTrainedModel | None: ...
    def is_gated(self, layer: int) -> bool: ...


class Pair:
    """The sparse model that learns, and the frozen model with which it is compared.

    With adapters the student contains the base: its weights without adapters and gates. Then there is no second model,
    unless `build_teacher` gives one.

    Args:
        module: the module whose hooks build the models.
        sharding: the strategy's handling of weights while they are built and used.

    Raises:
        ValueError: the model, its adapters or the text do not fit; see the message.
    """

    def __init__(self, module: Recipe, sharding: Sharding):
        self._module, self._sharding = module, sharding
        with sharding.building():
            base = module.build_base()
            _check_length(module, base)
            teacher = module.build_teacher(base)
            self._teacher = None if teacher is None else self._frozen(teacher)
        with sharding.running(base):
            model = sparsify(base, module.gate_config, backend=module.execution.backend, layers=module.is_gated)
        _check_documents(module, model)
        choose_trained(model, module.train_weights)
        if module.lora is not None:
            model = add_lora(model, module.lora)
        if isinstance(module.start, str):
            continue_from(module.start, model, module.base_name)
        if module.execution.activation_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        sharding.shard(model)
        self.student: PreTrainedModel = model
        self.layers: list[Any] = attention_modules(model)
        self._is_causal_only = is_causal_only(model.config)
        if self._teacher is None and module.lora is None:
            raise ValueError("build_teacher returned None, which needs lora: without adapters there is no base left")
        self._switch = BaseSwitch(model) if self._teacher is None else None

    def logits(self, batch: Batch) -> tuple[Tensor, EdgeCounts]:
        """Logits (B, T, vocabulary) of the student, and the edge counts of this pass."""
        outputs = self.student(**self._inputs(batch, fused=True), output_attentions=True)
        return outputs.logits, edge_counts(outputs.attentions)

    @torch.no_grad()
    def base_logits(self, batch: Batch) -> Tensor:
        """Logits (B, T, vocabulary) of the teacher."""
        if self._switch is None:
            return cast(Tensor, self.teacher(**self._inputs(batch, fused=False)).logits)
        fused = self._is_causal_only and fused_dense.serves(self.layers, batch["input_ids"].device)
        with self._switch.as_base(fused_dense.FUSED_DENSE if fused else None):
            return cast(Tensor, self.student(**self._inputs(batch, fused=fused)).logits)

    def _inputs(self, batch: Batch, *, fused: bool) -> dict[str, Any]:
        inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
        if fused and self._is_causal_only:
            inputs["attention_mask"] = packed_causal_mask(batch["position_ids"])
        return inputs

    def place(self) -> None:
        """Moves the teacher to the student's device. It is no submodule, so Lightning does not move it."""
        if self._teacher is not None:
            self._sharding.place_frozen(self._teacher, torch.device(self._module.device))

    @property
    def teacher(self) -> PreTrainedModel:
        """The frozen base model by itself. If the student contains it, it is built at the first use, which is the
        report's."""
        if self._teacher is None:
            self._teacher = self._frozen(self._module.build_base())
            self.place()
        return self._teacher

    def _frozen(self, teacher: PreTrainedModel) -> PreTrainedModel:
        teacher = teacher.requires_grad_(False).eval()
        lower = self._module.precision.startswith("bf16") and not self._sharding.born_sharded
        return teacher.to(torch.bfloat16) if lower else teacher  # type: ignore[arg-type]

    def sow(self, seeds: Tensor | None) -> None:
        """Sets the seeds (L, B) of the next pass's gates; None lets a pass draw its own."""
        give_seeds(self.layers, seeds)

    def advance_gates(self, progress: float) -> None:
        """Tells the gates the share of the run that is over."""
        for layer in self.layers:
            layer.edge_gate.advance(progress)

    def weights_and_cutoffs(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters that learn: the student's weights or adapters, and its gates' cutoffs."""
        cutoffs = [p for gate in gates_of(self.student) for p in gate.parameters() if p.requires_grad]
        known = {id(parameter) for parameter in cutoffs}
        weights = [p for p in self.student.parameters() if p.requires_grad and id(p) not in known]
        return weights, cutoffs


def choose_trained(model: PreTrainedModel, train: str) -> None:
    """Freezes all weights of a sparsified model that `train` does not name. Its gates always learn."""
    if train == "all":
        return
    kept = [*gates_of(model), *(attention_modules(model) if train == "attention" else [])]
    wanted = {id(parameter) for module in kept for parameter in module.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in wanted:
            parameter.requires_grad_(False)


def _check_length(module: Recipe, base: PreTrainedModel) -> None:
    length = getattr(module.data, "sequence_length", 0)
    positions = getattr(base.config.get_text_config(), "max_position_embeddings", None) or math.inf
    if length > positions:
        raise ValueError(
            f"data.sequence_length = {length} exceeds the {positions} positions of {module.base_name}; lower it"
        )


def _check_documents(module: Recipe, model: PreTrainedModel) -> None:
    if separates_documents_only_when_gated(model) and getattr(module.data, "task_name", "") == "text":
        raise ValueError(
            f"the dense attention of {model.config.model_type} mixes packed documents, so the base model would be "
            "no fair reference on packed text; use a model family that keeps them apart"
        )
