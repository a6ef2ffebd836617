"""Models of which each rank reads its own share of every weight, so that no rank ever holds a whole weight.

If a model under construction has sharded parameters, transformers reads only the wanted slice of a safetensors file,
also when it renames, splits or merges weights. A *stand-in* is a parameter of zeros of the right shape without memory.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn.modules.module import register_module_parameter_registration_hook

Held = list[tuple[nn.Module, str, DTensor]]
"""Owner, name and this rank's share of each weight. Tied weights come once for every owner."""


@contextmanager
def reading_own_shards(mesh: DeviceMesh) -> Iterator[None]:
    """Context in which `from_pretrained` builds models whose parameters are sharded over their first dimension."""

    def shard(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or not parameter.is_meta or isinstance(parameter, DTensor) or parameter.ndim == 0:
            return None  # as it is
        chunks = parameter.detach().chunk(mesh.size())
        rank = mesh.get_local_rank()
        own = chunks[rank] if rank < len(chunks) else parameter.detach()[:0]
        return nn.Parameter(_dtensor(own, mesh, parameter), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(shard)  # type: ignore[arg-type]
    try:
        with warnings.catch_warnings():  # that parameters without values are initialised
            warnings.filterwarnings("ignore", message=".*DTensor random operators.*")
            yield
    finally:
        handle.remove()


def put_stand_ins(model: nn.Module) -> None:
    """Replaces sharded parameters by stand-ins that hold the share. A forward pass then runs, with zeros."""
    stand_ins: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if isinstance(parameter, DTensor):
                if id(parameter) not in stand_ins:
                    zeros = torch.zeros((), dtype=parameter.dtype, device=parameter.device).expand(parameter.shape)
                    stand_in = nn.Parameter(zeros, requires_grad=parameter.requires_grad)
                    stand_in.share = parameter.detach()
                    stand_ins[id(parameter)] = stand_in
                module._parameters[name] = stand_ins[id(parameter)]


def take_shares(model: nn.Module) -> Held:
    """Replaces stand-ins by parameters on the meta device, which `fully_shard` takes without memory."""
    held: Held = []
    empty: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if hasattr(parameter, "share"):
                assert parameter is not None
                held.append((module, name, parameter.share))
                if id(parameter) not in empty:
                    values = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
                    empty[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
                module._parameters[name] = empty[id(parameter)]
    return held


@torch.no_grad()
def give_shares(held: Held, dtype: torch.dtype | None = None) -> None:
    """Puts the shares of `take_shares` into the parameters that `fully_shard` has made of the empty ones."""
    given: dict[int, nn.Parameter] = {}
    while held:
        module, name, share = held.pop()
        sharded = module._parameters[name]
        assert isinstance(sharded, DTensor)
        if id(share) not in given:
            # A copy, because the share that was read is a view of the file.
            own = share.to_local().to(sharded.device_mesh.device_type, dtype or sharded.dtype, copy=True)
            whole = torch.empty(sharded.shape, dtype=own.dtype, device="meta")
            values = _dtensor(own.contiguous(), sharded.device_mesh, whole)
            given[id(share)] = nn.Parameter(values, requires_grad=sharded.requires_grad)
        module._parameters[name] = given[id(share)]


def _dtensor(own: Tensor, mesh: DeviceMesh, whole: Tensor) -> DTensor:
    return DTensor.from_local(own, mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride())
