"""FSDP2 on a transformers model: one unit per layer, one for all gates, and the rest. Independent of Lightning."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_sparse.attention import gates_of
from lit_sparse.attention.gates import Gate, build_gate
from lit_sparse.training.strategies.own_shards import give_shares, put_stand_ins, take_shares


def shard_model(
    model: nn.Module,
    mesh: DeviceMesh,
    param_dtype: torch.dtype | None = None,
    kept_dtype: torch.dtype | None = None,
) -> None:
    """Shards a model in place over a one-dimensional mesh. Weights that were read by shares (`own_shards`) are never
    whole.

    Args:
        param_dtype: dtype in which weights are gathered and layers computed; None keeps theirs. Shards and reductions
            stay float32. The gates always do, because cutoffs near -7 do not move in bfloat16.
        kept_dtype: dtype of a frozen model's shards; None leaves them.

    Raises:
        ValueError: the layers of the model's family cannot be found.
    """
    layers = transformer_layers(model)
    put_stand_ins(model)
    held = take_shares(model)
    if kept_dtype is not None:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(kept_dtype)
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32)
    if gates := gates_of(model):
        # Operators read a gate's form and never call its forward. It stays gathered until the backward is over.
        fully_shard(list(gates), mesh=mesh, reshard_after_forward=False)
        for gate in gates:
            register_fsdp_forward_method(gate, "form")
            gate.set_cutoff = partial(_set_cutoff, gate)  # type: ignore[method-assign]
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    give_shares(held, kept_dtype)
    root = model
    assert isinstance(root, FSDPModule)
    # Calibration embeds tokens without a forward pass of the model.
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    embeddings.register_forward_pre_hook(lambda module, args: root.unshard() and None)
    # The gathered parameters take requires_grad from the first gathering, which must not be calibration's.
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """The model's layers, in the order in which they run.

    Raises:
        ValueError: no layers were found.
    """
    layers: list[nn.Module] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"cannot find the layers of {type(model).__name__}, so FSDP2 cannot shard it; use DDP")
    return layers


@torch.no_grad()
def _set_cutoff(gate: Gate, cutoff: Tensor) -> None:
    """`gate.set_cutoff` for a sharded gate: every rank has the same cutoffs and keeps its share."""
    whole = build_gate(gate.config, gate.num_heads).to(cutoff.device)
    whole.set_cutoff(cutoff)
    assert isinstance(gate, FSDPModule)
    gate.reshard()
    for own, value in zip(gate.parameters(), whole.parameters(), strict=True):
        assert isinstance(own, DTensor)
        own.copy_(distribute_tensor(value.to(own.dtype), own.device_mesh, own.placements, src_data_rank=None))
