"""A second device without a second device: tensors that say they are on `pretend:0` and compute on the CPU.

What a GPU refuses is refused here: operations between devices, a generator of another device, numpy of a tensor that
is not on the CPU. Unlike fake tensors these have values, so that whole runs can be tried, with their decisions by
values. Operations that a GPU would have to be waited for are counted.

Only for a process of its own: torch then takes every default for a machine with an accelerator.
"""

from collections import Counter
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend


class _Backend:
    """What torch asks a device's module for: nothing that matters, but that the device has its own generator."""

    generator = torch.Generator()

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        self.generator.manual_seed(seed + 1)  # as different from the CPU's as a GPU's is

    def get_rng_state(self, device: int | str = 0) -> Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: Tensor, device: int | str = 0) -> None:
        self.generator.set_state(state)


_backend = _Backend()
_setup_privateuseone_for_python_backend("pretend", _backend)  # for good: torch has one such device in a process

DEVICE = torch.device("pretend:0")

_aten = torch.ops.aten
_MOVES = {_aten._to_copy.default, _aten.copy_.default}
_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
    _aten._unsafe_index_put.default,
}
_WAITS = {
    _aten._local_scalar_dense.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.equal.default,
    _aten.bincount.default,
    _aten.unique_dim.default,
    _aten._unique2.default,
    _aten.unique_consecutive.default,
    _aten.repeat_interleave.Tensor,
}


class Pretended(Tensor):
    """A tensor on the device; `inner` is where its values are."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Pretended":
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Outside of the mode, such as in the thread of a backward pass.
        return _compute(func, args, kwargs or {}, Counter())

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        return self.cpu().tolist()


class PretendDevice(TorchDispatchMode):
    """Inside, `torch.device("pretend")` can be used.

    Attributes:
        waits: how often each operation ran for whose result a GPU would have been waited for.
        operations: how often each operation ran on the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()

    def __enter__(self) -> "PretendDevice":
        # `torch.tensor(..., device=...)` makes it on the CPU and moves it, where the mode can see it.
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        torch._C._set_only_lift_cpu_tensors(self._lifted)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = self.waits.total()
        result = _compute(func, args, kwargs, self.waits)
        here = any(isinstance(x, Pretended) for x in tree_flatten((args, kwargs, result))[0])
        self.operations[str(func)] += here or self.waits.total() > before
        return result


def values(tensor: Tensor) -> Tensor:
    """A tensor's values on the CPU, unnoticed."""
    return tensor.inner.detach() if isinstance(tensor, Pretended) else tensor.detach()


def _compute(func: Any, args: Any, kwargs: Any, waits: Counter[str]) -> Any:
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, Pretended)]
    device = kwargs.get("device")
    asked = torch.device(device) if device is not None else None
    if not there and (asked is None or asked.type != "pretend"):
        return func(*args, **kwargs)
    if there:
        _check(func, args, tensors)
    if _is_waited_for(func, args, there, asked):
        waits[str(func)] += 1
    inner_args, inner_kwargs = tree_map_only(Pretended, lambda x: x.inner, (args, kwargs))
    if asked is not None:
        inner_kwargs = {**inner_kwargs, "device": torch.device("cpu")}
    if func is _aten._to_copy.default:  # a copy also where the CPU's tensor would do
        inner_kwargs.pop("non_blocking", None)
    if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
        result = _drawn(func, inner_args, inner_kwargs)
    else:
        result = func(*inner_args, **inner_kwargs)
    if asked is not None and asked.type != "pretend":
        return result
    if func is _aten.copy_.default and not isinstance(args[0], Pretended):
        return args[0]
    wrapped = tree_map_only(Tensor, Pretended, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if there else wrapped


def _check(func: Any, args: Any, tensors: list[Tensor]) -> None:
    if func in _MOVES:
        return
    if func in _INDEXING:  # indices may be on the CPU, for any tensor
        tensors = [args[0], *(x for x in args[2:] if isinstance(x, Tensor))]
        if not isinstance(args[0], Pretended) and any(isinstance(x, Pretended) for x in tree_flatten(args[1])[0]):
            raise RuntimeError(f"{func}: indices should be on the CPU or on the indexed tensor's device")
    elsewhere = [x for x in tensors if not isinstance(x, Pretended) and x.dim() > 0]
    if elsewhere:
        shapes = [(str(x.device), tuple(x.shape)) for x in tensors]
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {shapes}")
    first = tensors[0]
    if func._schema.name.endswith("_") and not isinstance(first, Pretended):
        raise RuntimeError(f"{func}: a scalar on the CPU cannot take the result of tensors on {DEVICE}")
    for argument in args:
        if isinstance(argument, torch.Generator) and argument.device.type == "cpu":
            raise RuntimeError(f"{func}: expected a generator of {DEVICE}, found one of the CPU")


def _is_waited_for(func: Any, args: Any, there: list[Pretended], asked: torch.device | None) -> bool:
    if func in _WAITS:
        return bool(there)
    if func is _aten._to_copy.default:
        return asked is not None and bool(there) != (asked.type == "pretend")
    if func is _aten.copy_.default:
        return len(there) == 1
    if func in _INDEXING:
        indices = [x for x in args[1] if isinstance(x, Tensor)]
        return any(x.dtype in (torch.bool, torch.uint8) or not isinstance(x, Pretended) for x in indices)
    return False


def _drawn(func: Any, args: Any, kwargs: Any) -> Any:
    """With the device's own generator in place of the CPU's."""
    kept = torch.get_rng_state()
    torch.set_rng_state(_backend.generator.get_state())
    try:
        return func(*args, **kwargs)
    finally:
        _backend.generator.set_state(torch.get_rng_state())
        torch.set_rng_state(kept)
