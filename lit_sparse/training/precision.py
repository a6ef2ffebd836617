"""Choice of precision: bfloat16 only if the processor multiplies it. Otherwise each product is emulated, several times
slower than in float32 (`benchmarks/bfloat16.py`)."""

from typing import Any

import torch


def multiplies_bfloat16() -> bool:
    """True if this CPU has instructions for products of bfloat16, or is not an x86-64 processor."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if capabilities.get("architecture") != "x86_64":
        return True
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def suited_precision(precision: str | None, accelerator: str) -> str | None:
    """The trainer's precision, or float32 instead of mixed bfloat16 on a CPU without instructions for it.

    Args:
        precision: Lightning's name of the precision.
        accelerator: "cpu", "auto" or another of Lightning's names.
    """
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    if precision == "bf16-mixed" and on_cpu and not multiplies_bfloat16():
        return "32-true"
    return precision
