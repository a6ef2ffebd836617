"""DeepSpeed ZeRO through Lightning, corrected where the two accumulate gradients differently."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from lit_sparse.attention.bridge import attention_modules
from lit_sparse.attention.gates import Gate
from lit_sparse.training.checkpoint_folders import TAG
from lit_sparse.training.checkpoint_io import AtomicCheckpointIO
from lit_sparse.training.frozen import keep_all, left_out_of
from lit_sparse.training.strategies.sharding import Sharding

_GLOO_BUCKET = 5_000_000
"""Number of elements: 20 MB in float32, which malloc still takes from the heap."""


class SparseDeepSpeedStrategy(Sharding, DeepSpeedStrategy):
    """ZeRO 1, 2 or 3, with or without offload. The arguments are Lightning's.

    - Lightning divides a micro-batch's loss once by the length of the accumulation window. The engine steps when
      Lightning counts a step, also at the end of an epoch whose last window is short.
    - Under ZeRO-3 the student and the teacher are partitioned while they are loaded, one safetensors file at a time.
    - Checkpoints from which training resumes are folders, replaced as a whole; weights alone (`best.ckpt`) are one
      file.
    """

    @property
    def shards_weights(self) -> bool:  # type: ignore[override]
        return self.zero_stage_3

    @property
    def born_sharded(self) -> bool:  # type: ignore[override]
        return self.zero_stage_3

    # --- gradient accumulation ---------------------------------------------------------------------------------

    @property
    def handles_gradient_accumulation(self) -> bool:
        # Lightning asks before each micro-batch; "no" at the last of an epoch makes it a step, as under DDP.
        assert self.lightning_module is not None
        return not self.lightning_module.trainer.fit_loop.epoch_loop._num_ready_batches_reached()

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        assert self.lightning_module is not None
        ends_step = not self.lightning_module.trainer.fit_loop._should_accumulate()
        self.deepspeed_engine.set_gradient_accumulation_boundary(ends_step)
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    # --- speed -------------------------------------------------------------------------------------------------

    def _init_optimizers(self) -> tuple[Any, Any]:
        """Chooses torch's fused optimizer kernel. ZeRO joins a rank's share of all weights to one tensor, for which
        torch's default takes a pass over memory and a temporary for each of a dozen operations; the fused kernel takes
        one pass."""
        optimizer, scheduler = super()._init_optimizers()
        for group in optimizer.param_groups:
            if {"fused", "foreach"} <= group.keys() and group["fused"] is None and group["foreach"] is None:
                group["fused"] = not group.get("differentiable", False)
        return optimizer, scheduler

    def _init_deepspeed_distributed(self) -> None:
        super()._init_deepspeed_distributed()
        from deepspeed.comm import comm

        # Without this function DeepSpeed gathers in buckets of allgather_bucket_size; see `_format_config`.
        buckets = self._over_gloo and not self.zero_stage_3
        comm.cdb.all_gather_function = None if buckets else comm.cdb.get_all_gather_function()

    @property
    def _over_gloo(self) -> bool:
        return self._get_process_group_backend() == "gloo"

    # --- building ----------------------------------------------------------------------------------------------

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        # Not Lightning's zero.Init around all building: adapters initialise themselves after their construction, when
        # it would have emptied their weights. transformers enters it for base models; the engine shards the rest.
        self._init_config_if_needed()
        yield

    def _format_config(self) -> None:
        assert isinstance(self.config, dict)
        zero = self.config.get("zero_optimization")
        if zero is not None and self._over_gloo:
            # Memory of gloo's buffers is fresh for each of them, and touching it costs more than sending: small buckets
            # come from the heap. Gradients are reduced where they are, without copies in and out.
            for size in ("reduce_bucket_size", "allgather_bucket_size"):
                zero[size] = min(zero.get(size, _GLOO_BUCKET), _GLOO_BUCKET)
            if not self.zero_stage_3:
                zero |= {"reduce_scatter": False, "contiguous_gradients": False}
        # Offloaded states are updated by torch's fused kernel (`_init_optimizers`), not by DeepSpeed's own optimizer.
        self.config.setdefault("zero_force_ds_cpu_optimizer", False)
        mixed = self.precision_plugin.precision == "bf16-mixed"
        if mixed and self.zero_stage_3 and not {"bf16", "torch_autocast"} & self.config.keys():
            # The engine's own bfloat16 wants all weights in it, and gates stay float32.
            self.config["bf16"] = {"enabled": False}
            self.config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        super()._format_config()

    @contextmanager
    def building(self) -> Iterator[None]:
        if not self.zero_stage_3:
            yield
            return
        from transformers.integrations.deepspeed import HfDeepSpeedConfig

        self._init_config_if_needed()
        config = HfDeepSpeedConfig(self.config)  # transformers holds it by a weak reference only
        yield
        del config

    @contextmanager
    def running(self, model: nn.Module) -> Iterator[None]:
        if not self.zero_stage_3:
            yield
            return
        with _gathering_as_it_runs(model):
            yield

    def shard(self, model: nn.Module) -> None:
        if not self.zero_stage_3:
            return
        import deepspeed

        for module in attention_modules(model):
            gate = module.edge_gate
            for parameter in gate.parameters():
                # Operators read a gate's form and never call its forward: the layer fetches its parameters.
                deepspeed.zero.register_external_parameter(module, parameter)
            gate.set_cutoff = partial(self._set_cutoff, gate)

    def place_frozen(self, model: nn.Module, device: torch.device) -> None:
        if not self.zero_stage_3:
            model.to(device)
        elif not hasattr(model, "_frozen_engine"):
            import deepspeed

            assert isinstance(self.config, dict)
            kept = ("bf16", "fp16", "zero_optimization", "zero_allow_untested_optimizer")
            config = {key: self.config[key] for key in kept if key in self.config}
            engine, *_ = deepspeed.initialize(
                model=model,
                config={"train_micro_batch_size_per_gpu": 1, **config},
                model_parameters=[],
                dist_init_required=False,
            )
            # In a list: as a submodule it would contain the model that it belongs to. It must live as long.
            model._frozen_engine = [engine]  # type: ignore[assignment]

    @torch.no_grad()
    def _set_cutoff(self, gate: Gate, cutoff: Tensor) -> None:
        """`gate.set_cutoff` for a partitioned gate."""
        import deepspeed

        # A backward pass outside of the engine (calibration's) leaves weights gathered.
        self.deepspeed_engine.empty_partition_cache()
        with deepspeed.zero.GatheredParameters(list(gate.parameters()), modifier_rank=0):
            type(gate).set_cutoff(gate, cutoff)

    def weights_written(self) -> None:
        for optimizer in self.optimizers:
            if hasattr(optimizer, "refresh_fp32_params"):
                optimizer.refresh_fp32_params()

    def gradients_are_finite(self, module: nn.Module) -> Tensor:
        # The engine skips the update if they are not finite, and always clears them.
        return torch.tensor(self.deepspeed_engine.was_step_applied(), device=self.root_device)

    # --- checkpoints -------------------------------------------------------------------------------------------

    @contextmanager
    def whole(self, tensor: Tensor) -> Iterator[Tensor]:
        import deepspeed

        with deepspeed.zero.GatheredParameters(
            [tensor], enabled=self.zero_stage_3 and isinstance(tensor, nn.Parameter)
        ):
            yield tensor

    def save_folder(self, checkpoint: dict[str, Any], folder: Path) -> None:
        """The engine leaves out all frozen weights or none: all are written where gates are fixed, which no base model
        gives again."""
        assert self.lightning_module is not None
        left_out = left_out_of(checkpoint)
        names = set(left_out["names"]) if left_out is not None else set()
        named = self.lightning_module.named_parameters(remove_duplicate=False)
        self.exclude_frozen_parameters = names >= {name for name, value in named if not value.requires_grad}
        if not self.exclude_frozen_parameters:
            keep_all(checkpoint)
            names = set()

        def leave_out(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
            for name in names & state.keys():  # the engine knows tied weights by one of their names only
                del state[name]

        handle = self.lightning_module.register_state_dict_post_hook(leave_out)  # type: ignore[no-untyped-call]
        try:
            super().save_checkpoint(checkpoint, str(folder))
        finally:
            handle.remove()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        self.save_sharded(checkpoint, filepath)

    def check_resumable(self, path: Path) -> None:
        wrote = len(list((path / TAG).glob("*_optim_states.pt")))
        if wrote == 0:
            raise ValueError(
                f"{path} is no folder that a DeepSpeed run wrote, so it has no sharded optimizer state to resume from; "
                "resume under the strategy that wrote it, or start a new run from the exported model"
            )
        if wrote != self.world_size:
            raise ValueError(
                f"{path} was written by {wrote} processes, and DeepSpeed resumes only on the same number; this run has "
                f"{self.world_size}. Use {wrote}, or start a new run from the exported model"
            )

    @property
    def _fits(self) -> bool:
        assert self.lightning_module is not None
        return self.lightning_module.trainer.state.fn == TrainerFn.FITTING

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads a checkpoint. Training loads each rank's part of a folder. Evaluation loads any checkpoint, joined on
        the first rank if no rank can hold it beside its own model."""
        if self._fits:
            return self._resume(checkpoint_path, weights_only)
        if not self.zero_stage_3:
            return AtomicCheckpointIO().load_checkpoint(checkpoint_path)
        checkpoint = AtomicCheckpointIO().load_checkpoint(checkpoint_path) if self.is_global_zero else {}
        self._weights_to_load = checkpoint.pop("state_dict", {})
        return self.broadcast(checkpoint)

    def _resume(self, checkpoint_path: Any, weights_only: bool | None) -> dict[str, Any]:
        """Frozen weights that the folder leaves out stay as they are; the optimizer's part has a shape for all others,
        which DeepSpeed compares."""
        module = self.lightning_module
        assert module is not None
        strict = module.strict_loading
        module.strict_loading = strict and all(parameter.requires_grad for parameter in module.parameters())
        try:
            return super().load_checkpoint(checkpoint_path, weights_only)
        finally:
            module.strict_loading = strict

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        if self._fits:
            super().load_model_state_dict(checkpoint, strict)
        elif self.zero_stage_3:
            self._restore_zero_state({"state_dict": self._weights_to_load}, strict)
            self._weights_to_load = {}
        else:
            self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def _initialize_deepspeed_inference(self, model: nn.Module) -> None:
        # Lightning's engine needs a CUDA device and the run's own checkpoint folders.
        self.place_frozen(model, self.root_device)


@contextmanager
def _gathering_as_it_runs(model: nn.Module) -> Iterator[None]:
    """Context in which each module's own weights are gathered while it runs, as the engine does later, but without
    prefetching."""
    import deepspeed

    handles = []
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if not own:
            continue
        stack = ExitStack()

        def gather(module: nn.Module, args: Any, own: list[nn.Parameter] = own, stack: ExitStack = stack) -> None:
            stack.enter_context(deepspeed.zero.GatheredParameters(own))

        def release(module: nn.Module, args: Any, output: Any, stack: ExitStack = stack) -> None:
            stack.close()

        handles += [module.register_forward_pre_hook(gather), module.register_forward_hook(release, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
