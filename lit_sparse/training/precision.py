"""bfloat16 only where the processor multiplies it: elsewhere each product is emulated, several times slower than
float32 (`benchmarks/bfloat16.py`)."""

from typing import Any

import torch


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16. Unknown processors are taken at their word."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if capabilities.get("architecture") != "x86_64":
        return True
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def suited_precision(precision: str | None, accelerator: str) -> str | None:
    """The trainer's precision, or float32 in place of mixed bfloat16 on a CPU without instructions for it.

    Args:
        precision: Lightning's name of it.
        accelerator: "cpu", "auto" or another of Lightning's names.
    """
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    if precision == "bf16-mixed" and on_cpu and not multiplies_bfloat16():
        return "32-true"
    return precision
