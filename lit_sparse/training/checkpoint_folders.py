"""Checkpoints that are folders of files from each rank, joined without a GPU and without the run's processes."""

from pathlib import Path
from typing import Any

import torch

TAG = "checkpoint"
"""The subfolder in which Lightning makes DeepSpeed save."""


def consolidated(folder: Path) -> dict[str, Any]:
    """The checkpoint as a single process would have written it, without the optimizer's state.

    DeepSpeed's own files are pickles, which run code when they are loaded. Only open folders that you trust.

    Raises:
        ValueError: the folder is no checkpoint folder of FSDP2 or DeepSpeed.
    """
    if (folder / "meta.pt").is_file() and (folder / ".metadata").is_file():
        return _from_fsdp(folder)
    if (folder / TAG).is_dir():
        return _from_deepspeed(folder)
    raise ValueError(f"{folder} is no checkpoint folder: neither FSDP2 nor DeepSpeed wrote it")


def _from_fsdp(folder: Path) -> dict[str, Any]:
    from lightning.fabric.utilities.load import _load_distributed_checkpoint

    whole = _load_distributed_checkpoint(folder)
    metadata = torch.load(folder / "meta.pt", map_location="cpu", weights_only=True)
    return {**metadata, "state_dict": whole["state_dict"]}


def _from_deepspeed(folder: Path) -> dict[str, Any]:
    try:
        from deepspeed.utils import zero_to_fp32
    except ImportError:
        raise ValueError(f"{folder} was written by DeepSpeed; pip install 'lit-sparse[deepspeed]' to read it") from None
    state = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=TAG)
    first = zero_to_fp32.get_model_state_files(str(folder / TAG))[0]
    saved = torch.load(first, map_location="cpu", weights_only=False)
    # ZeRO-1 leaves frozen weights out of the joined state; ZeRO-3 has them nowhere else, and these are empty.
    frozen = {name: tensor for name, tensor in saved["module"].items() if name not in state and tensor.numel() > 0}
    client = {name: value for name, value in saved.items() if name in _LIGHTNINGS}
    return {**client, "state_dict": {**frozen, **state}}


_LIGHTNINGS = {"epoch", "global_step", "pytorch-lightning_version", "lit_sparse"}
