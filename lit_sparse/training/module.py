"""`SparseAttentionModule`: a LightningModule that makes any causal language model's attention sparse.

Each step minimises, with sampled gates,

    loss = (edge objective + lambda * constraint + distillation * KL) / (1 + lambda)

while lambda follows the constraint (arXiv 2512.05865, section 3, with the controllers of `objective.multiplier`).
Subclass it and override one of the hooks

    build_base()            how the dense base model is made
    build_teacher(base)     what the sparse model is compared with
    is_gated(layer)         which layers may close edges
    constraint_per_token(losses)    the constrained quantity
    edge_loss(edges)        what is minimised
"""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import PreTrainedModel

from lit_sparse.attention import (
    Backend,
    EdgeCounts,
    GateConfig,
    attention_modules,
    edge_counts,
    fused_dense,
    gates_of,
    sparsify,
)
from lit_sparse.attention.bridge import separates_documents_only_when_gated
from lit_sparse.attention.compiled import CompiledLayers
from lit_sparse.attention.masks import is_causal_only, packed_causal_mask
from lit_sparse.common.errors import NonFiniteLossError
from lit_sparse.common.progress import progress_bar
from lit_sparse.models.adapters import BaseSwitch, LoraConfig, add_lora
from lit_sparse.models.base import load_model
from lit_sparse.models.sparse_folder import continue_from
from lit_sparse.objective import (
    KL,
    Constraint,
    EdgeObjective,
    Geco,
    LogEdgeFraction,
    Multiplier,
    TokenLosses,
    token_losses,
)
from lit_sparse.objective.ranks import over_ranks
from lit_sparse.training.checkpoint_io import BEST, LAST, AtomicCheckpointIO, recover
from lit_sparse.training.gate_noise import draw_step_seeds, give_seeds
from lit_sparse.training.held_out import Evaluation, EvaluationMetric
from lit_sparse.training.run_module import RunModule
from lit_sparse.training.start.calibrated import calibrated_start
from lit_sparse.training.start.calibration import Calibration
from lit_sparse.training.step_graph import StepGraph
from lit_sparse.training.strategies import Sharding, sharding_of

Batch = dict[str, Tensor]


class _Step(NamedTuple):
    """What a step leaves, 0-d each: sums over its scored tokens, their number, the loss, the edges open in it."""

    constraint: Tensor
    tokens: Tensor
    loss: Tensor
    ce: Tensor
    kl: Tensor
    edge_fraction: Tensor


_EQUAL_ON_RANKS: Any = {"sync_dist": True, "rank_zero_only": True}
"""For metrics that `EvaluationMetric` has summed over ranks: the first says so, the second leaves them as they are."""


class SparseAttentionModule(RunModule):
    """Post-trains `model` to sparse attention.

    Args:
        model: a local folder, a Hugging Face name, or `package:NAME` (see `lit_sparse.models.base`).
        gate: what the gates are like.
        calibration: the sparse start to search for before training; None starts from `gate` as it is.
        constraint: what must hold while edges are removed.
        margin: lambda aims this far below the tolerance, as a share of the constraint's scale, so that held-out text
            satisfies it although training text fluctuates. Model selection uses the tolerance itself.
        relaxation: the tolerance that lambda follows starts this many times as large and falls geometrically to the
            constraint's own over `trainer.max_steps`: loose while edges are re-routed, tight in the end. 1 keeps it.
        multiplier: how lambda follows the constraint.
        edges: what is minimised.
        optimizer: for weights and gates alike.
        scheduler: stepped once per optimizer step; None keeps the learning rates.
        gate_lr: learning rate of the gates' cutoffs, which get no weight decay.
        sharpness_end: the gates' sharpness rises geometrically from `gate.sharpness` to this over `trainer.max_steps`:
            soft gates learn faster, sharp ones are what is evaluated. None keeps it.
        train: which weights learn besides the gates: "all", "attention" (the attention layers' own) or "none".
        lora: train low-rank adapters instead of the weights.
        start_from: a folder of adapters and gates (a run's `adapters/`, `release/smollm2_2048`) to go on training from,
            with this run's own constraint, text and schedule; needs `lora` as they were trained and no calibration.
        distillation: weight of an additional KL(base || sparse) term; 0 is none.
        backend: the attention operator.
        activation_checkpointing: recompute each layer in the backward pass to save memory.
        compile_layers: run training steps through torch.compile, layer by layer; None does on a CUDA GPU.
        record_steps: record the training step as a CUDA graph and replay it: one launch instead of thousands, which
            a small model on a fast GPU waits for. A replay repeats kernels and runs no Python, so hooks, constraint and
            edge objective must depend on nothing but tensors. For one GPU, without gradient accumulation.
        score_sequences: count sequences whose every scored token is predicted (for tasks with an answer).
        min_exact_match: the share of such sequences that model selection asks for, besides the constraint: a mean over
            tokens hides a few wrong answers. Needs `score_sequences`.
        select_from: the share of `trainer.max_steps` after which models are selected; an earlier one is kept only while
            no later one satisfies the constraint. At high learning rates a good validation is partly luck.
        trust_remote_code: allow the model folder to run its own code.
        seed: of the gates' noise.

    Raises:
        ValueError: for settings that cannot work, before training; see the parts.
    """

    def __init__(
        self,
        model: str,
        gate: GateConfig | None = None,
        calibration: Calibration | None = None,
        constraint: Constraint | None = None,
        margin: float = 0.0,
        relaxation: float = 1.0,
        multiplier: Multiplier | None = None,
        edges: EdgeObjective | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        gate_lr: float = 0.05,
        sharpness_end: float | None = None,
        train: str = "all",
        lora: LoraConfig | None = None,
        start_from: str | None = None,
        distillation: float = 0.0,
        backend: Backend = Backend.AUTO,
        activation_checkpointing: bool = False,
        compile_layers: bool | None = None,
        record_steps: bool = False,
        score_sequences: bool = False,
        min_exact_match: float = 0.0,
        select_from: float = 0.0,
        trust_remote_code: bool = False,
        seed: int = 0,
    ):
        super().__init__(scheduler)
        if train not in ("all", "attention", "none"):
            raise ValueError(f"train is 'all', 'attention' or 'none', got {train!r}")
        if not 0 <= margin < 1:
            raise ValueError(f"margin is a share in [0, 1), got {margin}")
        if not 1 <= relaxation < math.inf:
            raise ValueError(f"relaxation multiplies the tolerance at the start, so it is at least 1, got {relaxation}")
        if gate_lr < 0 or distillation < 0:
            raise ValueError("gate_lr and distillation must not be negative")
        if not 0 <= min_exact_match <= 1 or (min_exact_match and not score_sequences):
            raise ValueError(
                f"min_exact_match is a share in [0, 1] and needs score_sequences: true, got {min_exact_match}"
            )
        if not 0 <= select_from < 1:
            raise ValueError(f"select_from is a share of the run's steps in [0, 1), got {select_from}")
        if sharpness_end is not None and not 0 < sharpness_end < math.inf:
            raise ValueError(f"sharpness_end must be positive and finite, got {sharpness_end}")
        if start_from is not None and calibration is not None:
            raise ValueError("start_from brings its own cutoffs: set calibration to null")
        if GateConfig.of(gate).centered and start_from is None and calibration is None:
            raise ValueError("gate.centered needs the heads' means: set calibration, or start_from a folder with them")
        self.base_name = model
        self.gate_config = GateConfig.of(gate)
        self.calibration = calibration
        self.constraint = constraint or KL(tolerance=0.1)
        self.margin = margin
        self.relaxation = relaxation
        self.multiplier = multiplier or Geco()
        self.edges = edges or LogEdgeFraction()
        self.make_optimizer = optimizer
        self.gate_lr = gate_lr
        self.sharpness_end = sharpness_end
        self.train_weights = train
        self.lora = lora
        self.start_from = start_from
        self.distillation = distillation
        self.backend = backend
        self.activation_checkpointing = activation_checkpointing
        self.compile_layers = compile_layers
        self.record_steps = record_steps
        self.score_sequences = score_sequences
        self.min_exact_match = min_exact_match
        self.select_from = select_from
        self.trust_remote_code = trust_remote_code
        self.seed = seed

        self.model: PreTrainedModel | None = None
        self.start: Evaluation | None = None
        self.last_evaluation: Evaluation | None = None
        self.tokens_seen = 0
        self._teacher: list[PreTrainedModel] = []  # in a list, so that it is no submodule and never saved
        # Of each micro-batch since the last step: the sums of constraint, tokens, loss and CE.
        self._window: list[Tensor] = []
        # Since the last look: (1 or 0, step, loss, CE) of a loss that is not finite, or whose gradients are not.
        self._broken: Tensor | None = None
        self._last_step = 0
        self._resumed = False
        self._sharded = True  # if the strategy shards
        self._layers: list[Any] = []  # the model's attention modules
        self._switch: BaseSwitch | None = None
        self._compiled: CompiledLayers | None = None
        self._graph: StepGraph | None = None
        self._replayed = False  # whether gradients are the graph's
        self._seeds: Tensor | None = None
        self._is_causal_only = False
        self.evaluation = EvaluationMetric()

    # --- hooks to override -------------------------------------------------------------------------------------

    def build_base(self) -> PreTrainedModel:
        """The dense base model, float32, on any device."""
        return load_model(self.base_name, trust_remote_code=self.trust_remote_code)

    def build_teacher(self, base: PreTrainedModel) -> PreTrainedModel:
        """The frozen model that CE and KL are compared with: a copy of the base.

        With `lora` it is not called unless overridden: the base is then the model itself without adapters and gates.
        """
        return self.build_base() if self._sharding().born_sharded else copy.deepcopy(base)

    def is_gated(self, layer: int) -> bool:
        """Whether this attention layer may close edges; the others stay dense."""
        return True

    def constraint_per_token(self, losses: TokenLosses) -> Tensor:
        """The constrained quantity of each token (B, T); only scored ones count."""
        return self.constraint.per_token(losses)

    def edge_loss(self, edges: EdgeCounts) -> Tensor:
        """The edge objective of one micro-batch over all ranks, a scalar."""
        return self.edges(edges)

    # --- model -------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        if self.model is not None:
            return
        sharding = self._sharding()
        if self._trainer is not None and self._trainer.training and self._trainer.ckpt_path is not None:
            sharding.check_resumable(Path(self._trainer.ckpt_path))
        with sharding.building():
            base = self.build_base()
            self._check_sequence_length(base)
            if not self._is_its_own_teacher:
                self._teacher = [self._build_frozen_teacher(base)]
        with sharding.running(base):
            model = sparsify(base, self.gate_config, backend=self.backend, layers=self.is_gated)
        if separates_documents_only_when_gated(model) and getattr(self._datamodule(), "task_name", "") == "text":
            raise ValueError(
                f"the dense attention of {model.config.model_type} mixes packed documents, so the base model would be "
                "no fair reference on packed text; use a model family that keeps them apart"
            )
        self._choose_trained(model)
        if self.lora is not None:
            model = add_lora(model, self.lora)
        if self.start_from is not None:
            continue_from(self.start_from, model, self.base_name)
        if self.activation_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        sharding.shard(model)
        self.model = model
        self._layers, self._is_causal_only = attention_modules(model), is_causal_only(model.config)
        self._switch = BaseSwitch(model) if self._is_its_own_teacher else None

    def _build_frozen_teacher(self, base: PreTrainedModel) -> PreTrainedModel:
        teacher = self.build_teacher(base).requires_grad_(False).eval()
        lower = self._precision().startswith("bf16") and not self._sharding().born_sharded
        return teacher.to(torch.bfloat16) if lower else teacher

    def _choose_trained(self, model: PreTrainedModel) -> None:
        gates = {id(parameter) for gate in gates_of(model) for parameter in gate.parameters()}
        if self.train_weights == "all":
            return
        attention = {
            id(parameter)
            for module in model.modules()
            if hasattr(module, "edge_gate")
            for parameter in module.parameters()
        }
        wanted = attention if self.train_weights == "attention" else set()
        for parameter in model.parameters():
            if id(parameter) not in gates | wanted:
                parameter.requires_grad_(False)

    def _check_sequence_length(self, base: PreTrainedModel) -> None:
        length = getattr(self._datamodule(), "sequence_length", 0)
        positions = getattr(base.config.get_text_config(), "max_position_embeddings", None) or math.inf
        if length > positions:
            raise ValueError(
                f"data.sequence_length = {length} exceeds the {positions} positions of {self.base_name}; lower it"
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        assert self.model is not None
        gates = [p for gate in gates_of(self.model) for p in gate.parameters() if p.requires_grad]
        known = {id(parameter) for parameter in gates}
        weights = [p for p in self.model.parameters() if p.requires_grad and id(p) not in known]
        groups: list[dict[str, Any]] = []
        if weights:
            groups.append({"params": weights})
        if gates:
            groups.append({"params": gates, "lr": self.gate_lr, "weight_decay": 0.0})
        if not groups:
            raise ValueError("nothing to train: gates are fixed (gate.learnable=false) and train is 'none'")
        return self.scheduled(self.make_optimizer(groups))

    @property
    def teacher(self) -> PreTrainedModel:
        """The frozen base model, by itself."""
        if not self._teacher:  # only asked for by the report: training runs the student without adapters and gates
            self._teacher = [self._build_frozen_teacher(self.build_base())]
            self._place_teacher()
        return self._teacher[0]

    @property
    def _is_its_own_teacher(self) -> bool:
        return self.lora is not None and type(self).build_teacher is SparseAttentionModule.build_teacher

    # --- before training ---------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Moves the teacher, and on a fresh start calibrates the gates and measures where the run begins: on the
        test split, as its end. Constraints are prepared on the validation split, which model selection uses."""
        assert self.model is not None
        follows = self.sharpness_end is not None or self.relaxation > 1 or self.select_from > 0
        if follows and self.trainer.max_steps < 1:
            raise ValueError("sharpness_end, relaxation and select_from follow the run's steps: set trainer.max_steps")
        self.train()  # models are loaded in evaluation mode, in which gates are not sampled
        self._place_teacher()
        self._compile()
        # Strategies that shard load the checkpoint after this hook.
        if self._resumed or self.trainer.ckpt_path is not None or self._datamodule() is None:
            return
        data = self._datamodule()
        few = slice(1) if getattr(self.trainer, "fast_dev_run", False) else slice(None)
        test = list(data.test_dataloader())[few]
        assert self.model is not None
        with self.trainer.precision_plugin.forward_context():
            if type(self.constraint).prepare is not Constraint.prepare:
                validation = self.evaluate(list(data.val_dataloader())[few], "base model")
                self.constraint.prepare(validation.base_ce)
            if self.calibration is None:
                self.start = self.evaluate(test, "start")
            else:
                batches = [self._to_device(batch) for batch in data.calibration_batches()[few]]
                self.start = calibrated_start(
                    self.model,
                    batches,
                    self.calibration,
                    lambda: self.evaluate(test, "start"),
                    self.print,
                )
                self._sharding().weights_written()

    def _compile(self) -> None:
        assert self.model is not None
        sharded = self._sharding().shards_weights
        if self.compile_layers and sharded:
            raise ValueError("compile_layers does not go with strategies that shard weights: set it to false")
        on_gpu = torch.device(self.device).type == "cuda" and not sharded
        if on_gpu if self.compile_layers is None else self.compile_layers:
            self._compiled = CompiledLayers(self.model)
        if self.record_steps:
            self._check_recordable()

    def _check_recordable(self) -> None:
        single = self.trainer.world_size == 1 and isinstance(self.trainer.strategy, SingleDeviceStrategy)
        on_gpu = torch.device(self.device).type == "cuda"
        if not (single and on_gpu and self.trainer.accumulate_grad_batches == 1):
            raise ValueError("record_steps needs one CUDA GPU and accumulate_grad_batches 1: set it to false")

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch], description: str = "evaluating") -> Evaluation:
        """Deterministic gates on batches outside of Lightning's loops; with a progress bar."""
        self._place_teacher()
        metric = EvaluationMetric().to(self.device)
        training = self.training
        self.eval()
        with progress_bar(description) as advance:
            for index, batch in enumerate(batches):
                self._accumulate(metric, self._to_device(batch))
                advance(index + 1, len(batches))
        self.train(training)
        return metric.compute()

    # --- training ----------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> tuple[Tensor, EdgeCounts]:
        """Logits (B, T, vocabulary) of the sparse model and the edges of this pass."""
        assert self.model is not None
        outputs = self.model(**self._inputs(batch, fused=True), output_attentions=True)
        return outputs.logits, edge_counts(outputs.attentions)

    def _inputs(self, batch: Batch, *, fused: bool) -> dict[str, Any]:
        inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
        if fused and self._is_causal_only:
            inputs["attention_mask"] = packed_causal_mask(batch["position_ids"])
        return inputs

    @torch.no_grad()
    def base_logits(self, batch: Batch) -> Tensor:
        """Logits (B, T, vocabulary) of the frozen base model."""
        if self._switch is None:
            return self.teacher(**self._inputs(batch, fused=False)).logits
        assert self.model is not None
        fused = self._is_causal_only and fused_dense.serves(self._layers, batch["input_ids"].device)
        with self._switch.as_base(fused_dense.FUSED_DENSE if fused else None):
            return self.model(**self._inputs(batch, fused=fused)).logits

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        assert self.model is not None
        replicas = self.trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
        noise = self.seed, self.trainer.global_step, batch_idx
        ranks, rank = replicas["num_replicas"], replicas["rank"]
        self._seeds = draw_step_seeds(
            len(self._layers), noise, len(batch["input_ids"]), ranks, rank, torch.device(self.device)
        )
        if self._compiled is not None:
            self._compiled.attach()
        if self.sharpness_end is not None:
            first = self.gate_config.sharpness
            for layer in self._layers:
                layer.edge_gate.set_sharpness(first * (self.sharpness_end / first) ** self._done())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self._seeds is not None
        inputs = {**batch, "seeds": self._seeds, "lambda": self.multiplier.to(self._seeds.device).value}
        self._replayed = self._can_replay(inputs)
        if self._replayed:
            assert self._graph is not None
            step = _Step(*self._graph(inputs))
        else:
            step = self._step(inputs)
        self._window.append(torch.stack([x.detach().to(inputs["lambda"]) for x in step[:4]]))
        self.tokens_seen += batch["input_ids"].numel() * self.trainer.world_size
        mean = step.constraint.detach() / step.tokens
        self.log_dict(
            {
                "train/loss": step.loss.detach(),
                "train/ce": step.ce / step.tokens,
                "train/kl": step.kl / step.tokens,
                "train/constraint": mean,
                "train/slack": self.constraint.tolerance - mean,
                "train/lambda": inputs["lambda"],
                "train/edge_fraction": step.edge_fraction,
                "train/tokens": torch.tensor(float(self.tokens_seen)),  # logging a float copies it to the device
            }
        )
        return step.loss

    def _step(self, inputs: dict[str, Tensor]) -> "_Step":
        """All of a step that depends on the batch, as functions of tensors."""
        give_seeds(self._layers, inputs["seeds"])
        base_logits = self.base_logits(inputs)
        logits, edges = self(inputs)
        losses = token_losses(logits, base_logits, inputs["labels"])
        own_tokens = losses.tokens()
        edges, tokens = over_ranks(edges, own_tokens, self.trainer.world_size, self._sum_over_ranks)
        total = torch.where(losses.scored, self.constraint_per_token(losses), 0).sum()
        value = total / tokens
        weight, sum_of_weights = inputs["lambda"].to(value.dtype), (1 + inputs["lambda"]).to(value.dtype)
        loss = (self.edge_loss(edges) + weight * value) / sum_of_weights
        kl = losses.kl.sum()
        if self.distillation:
            loss = loss + self.distillation * kl / tokens / sum_of_weights
        fraction = (edges.opened.sum() / edges.allowed.sum()).detach()
        return _Step(total, own_tokens, loss, losses.ce.detach().sum(), kl.detach(), fraction)

    def _step_and_backward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        step = self._step(inputs)
        step.loss.backward()
        return tuple(x.detach() for x in step)

    def _can_replay(self, inputs: dict[str, Tensor]) -> bool:
        if self.record_steps and self._graph is None:
            parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
            self._graph = StepGraph(self._step_and_backward, inputs, parameters)
        return self._graph is not None and self._graph.serves(inputs)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """A replayed step has run its backward pass already."""
        if self._replayed:
            assert self._graph is not None
            self._graph.give_gradients()
        else:
            super().backward(loss, *args, **kwargs)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        assert self.model is not None
        give_seeds(self._layers, None)
        if self._compiled is not None:
            self._compiled.detach()
        self._update_multiplier()
        if self._last_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._check_finite()

    def on_train_end(self) -> None:
        super().on_train_end()
        self._check_finite()

    def _update_multiplier(self) -> None:
        # Strategies differ in how often optimizer hooks fire; a step is over when global_step has moved.
        if not self._window or self.trainer.global_step == self._last_step:
            return
        self._last_step = self.trainer.global_step
        micro_batches = len(self._window) * self.trainer.world_size
        summed = torch.stack(self._window).sum(dim=0)
        finite = self._sharding().gradients_are_finite(self).to(summed)
        if self._precision().startswith("16"):  # loss scaling leaves out steps whose gradients overflow float16
            finite = torch.ones_like(finite)
        total, tokens, loss, ce, finite = self._sum_over_ranks(torch.cat([summed, finite[None]]))
        self._window.clear()
        self._note_finite(loss / micro_batches, ce / tokens, finite == self.trainer.world_size)
        violation = self.constraint.violation(total / tokens) + self.margin
        if self.relaxation > 1:
            looser = self.relaxation ** (1.0 - self._done())
            violation = (violation + 1.0) / looser - 1.0
        self.multiplier.update(violation)

    def _note_finite(self, loss: Tensor, ce: Tensor, finite_gradients: Tensor) -> None:
        """Keeps the first step whose loss or gradients are not finite, on the device: looking would wait for the step.

        The step has spoiled the weights that are in memory, but nothing is saved before the next look."""
        step = torch.full_like(loss, self._last_step - 1)
        broken = ~(loss.isfinite() & finite_gradients)
        now = torch.stack([broken.to(loss.dtype), step, loss, ce])
        if self._broken is not None:
            now = torch.where(self._broken[0] > 0, self._broken, now)
        self._broken = now

    def _check_finite(self) -> None:
        """Raises:
        NonFiniteLossError: a step's loss or gradients were not finite. Raised again at each later look, so that what
            is in memory since then cannot be saved.
        """
        if self._broken is None:
            return
        broken, step, loss, ce = self._broken.tolist()
        if broken:
            raise NonFiniteLossError(int(step), loss, ce)
        self._broken = None

    # --- validation --------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._accumulate(self.evaluation, batch)

    def on_validation_epoch_end(self) -> None:
        result = self.last_evaluation = self.evaluation.compute()
        self.evaluation.reset()
        metrics = {f"val/{name}": value for name, value in result.metrics().items()}
        # What model selection minimises: the edges where constraint and exactness hold, else more than any fraction; a
        # model from before `select_from` comes between the two.
        violation = max(self.constraint.violation(result.constraint), 0.0)
        if self.score_sequences:
            violation += max(self.min_exact_match - result.exact_match, 0.0)
        early = self.select_from > 0 and self._done() < self.select_from
        metrics["val/score"] = result.edge_fraction + early if violation == 0 else 2.0 + violation
        self.log_dict(metrics, **_EQUAL_ON_RANKS)

    def on_validation_start(self) -> None:
        self._place_teacher()  # the command may be `validate` or `test`
        self._check_finite()

    on_test_start = on_validation_start

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._accumulate(self.evaluation, batch)

    def on_test_epoch_end(self) -> None:
        metrics = {f"test/{name}": value for name, value in self.evaluation.compute().metrics().items()}
        self.log_dict(metrics, **_EQUAL_ON_RANKS)
        self.evaluation.reset()

    def _accumulate(self, metric: EvaluationMetric, batch: Batch) -> None:
        logits, edges = self(batch)
        losses = token_losses(logits, self.base_logits(batch), batch["labels"])
        predictions = logits.argmax(-1) if self.score_sequences else None
        per_token = self.constraint_per_token(losses)
        metric.update(losses, per_token, edges, batch["input_ids"].numel(), predictions, batch["labels"])

    # --- checkpoints -------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._update_multiplier()  # callbacks that save at the end of a step come before the module's own hook
        self._check_finite()
        start = self.start
        checkpoint["lit_sparse"] = {
            "model": self.base_name,
            "multiplier": self.multiplier.state_dict(),
            "constraint": self.constraint.state_dict(),
            "tokens_seen": self.tokens_seen,
            "seconds": self.seconds,
            "start": None if start is None else start._asdict(),
        }

    def rebuild_whole(self, checkpoints: Path) -> None:
        """After a sharded run: the model whole on each rank, from the best checkpoint or else the last, to report on.

        Raises:
            ValueError: the run wrote no checkpoint.
        """
        written = [path for path in (checkpoints / BEST, recover(checkpoints / LAST)) if path.exists()]
        if not written:
            raise ValueError(f"the run wrote no checkpoint to {checkpoints}, so there is no model to report on")
        weights = AtomicCheckpointIO().load_checkpoint(written[0])["state_dict"]
        self.model, self._teacher, self._sharded = None, [], False
        self.configure_model()
        self.load_state_dict(weights)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get("lit_sparse")
        if state is None:
            raise ValueError("this checkpoint was not written by lit_sparse")
        if state["model"] != self.base_name:
            raise ValueError(
                f"this checkpoint belongs to another model: it post-trains {state['model']!r}, the config says "
                f"{self.base_name!r}"
            )
        if "state_dict" in checkpoint:  # else the strategy has loaded it
            self._check_state(checkpoint["state_dict"])
        self.multiplier.load_state_dict(state["multiplier"])
        self.constraint.load_state_dict(state["constraint"])
        self.tokens_seen = int(state["tokens_seen"])
        self._seconds_before = float(state["seconds"])
        self.start = None if state["start"] is None else Evaluation(**state["start"])
        self._last_step = int(checkpoint["global_step"])
        self._broken = None
        self._resumed = True

    def _check_state(self, saved: dict[str, Tensor]) -> None:
        own = self.state_dict()
        for name in sorted(own.keys() | saved.keys()):
            shapes = [tuple(state[name].shape) if name in state else "missing" for state in (saved, own)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"this checkpoint belongs to another model: {name} is {shapes[0]} there and {shapes[1]} here"
                )

    # --- small helpers -----------------------------------------------------------------------------------------

    def _done(self) -> float:
        """The share of the run's steps that are over."""
        return self.trainer.global_step / self.trainer.max_steps

    def _to_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def _sum_over_ranks(self, tensor: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(tensor, reduce_op="sum")

    def _place_teacher(self) -> None:
        for teacher in self._teacher:  # no submodule, so Lightning does not move it
            self._sharding().place_frozen(teacher, torch.device(self.device))

    def _sharding(self) -> Sharding:
        return sharding_of(self._trainer.strategy if self._trainer is not None and self._sharded else None)

    def _datamodule(self) -> Any:
        return getattr(self._trainer, "datamodule", None)

    def _precision(self) -> str:
        return "32-true" if self._trainer is None else str(self._trainer.precision)
