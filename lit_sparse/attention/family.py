"""Check that a model's family can have gates, without the model's weights."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lit_sparse.attention.bridge import sparsify


def check_family(name: str, *, trust_remote_code: bool = False) -> None:
    """Checks a model whose configuration is on this machine, in a folder or the hub's cache. Other models, and those
    that cannot be built without weights, can only be checked when they are loaded.

    Raises:
        ValueError: `sparsify` would refuse the model, with its reason.
    """
    try:
        source = Path(name).expanduser()
        config: Any = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, local_files_only=True)
        with torch.device("meta"):  # bfloat16: the one type in which PyTorch knows shapes of experts' grouped products
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=trust_remote_code)
    except Exception:  # transformers and the hub raise a dozen kinds of errors here
        return
    try:
        sparsify(model)
    except (NotImplementedError, RuntimeError):  # no forward pass without values
        return
