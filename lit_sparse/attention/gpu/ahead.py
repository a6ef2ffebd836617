"""Compilation of the kernels for a GPU that this machine does not have."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from lit_sparse.attention.gpu.forward_kernel import SIZES
from lit_sparse.attention.gpu.launch import KERNELS, Blocks, padded

_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_SINGLE = {"cutoff", "offset", "sharpness", "lse", "mass", "counts", "d_expected", "row_delta", "row_sum", "d_offset"}
_SCALARS = {"scaling", "softcap"}
_OTHER = {"start": "*i32", "stop": "*i32", "seeds": "*i64"}


def compile_ahead(
    kernel: str,
    capability: int,
    blocks: Blocks,
    *,
    dim: int,
    dtype: str = "bf16",
    normalised: bool = True,
    renormalise: bool = False,
    capped: bool = False,
    sampled: bool = True,
    weighed: bool = False,
) -> CompiledKernel:
    """A kernel ("forward", "query" or "key") for compute capability 80, 90, ..., compiled as for aligned inputs.

    dtype: "fp32", "bf16" or "fp16".
    weighed: True if keys have offsets.
    """
    constants: dict[str, Any] = {
        "DIM": dim,
        "VALUE_DIM": dim,
        "BLOCK_DIM": padded(dim),
        "BLOCK_VALUE": padded(dim),
        "NORMALISED": normalised,
        "RENORMALISE": renormalise,
        "CAPPED": capped,
        "SAMPLED": sampled,
        "WEIGHED": weighed,
        "BLOCK_ROWS": blocks.rows,
        "BLOCK_KEYS": blocks.keys,
    }
    if not sampled:
        constants["seeds"] = None
    if not weighed:
        constants |= {"offset": None, "d_offset": None}
    signature, values, attributes = {}, {}, {}
    for index, name in enumerate(KERNELS[kernel].arg_names):
        if name in constants:
            signature[name], values[index,] = "constexpr", constants[name]
            continue
        signature[name] = _type(name, dtype)
        if name not in _SCALARS.union(SIZES):
            attributes[index,] = [["tt.divisibility", 16]]
    source = ASTSource(KERNELS[kernel], signature, values, attributes)
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _type(name: str, dtype: str) -> str:
    if name in _SCALARS:
        return "fp32"
    if name in _SINGLE:
        return "*fp32"
    pointers = {"query", "key", "value", "output"}
    if name in pointers or name.removeprefix("d_") in pointers:
        return f"*{dtype}"
    return _OTHER.get(name, "i32")


class Resources(NamedTuple):
    """Resources of a kernel: registers of a thread, bytes of its stack (only for spilled registers), and a block's
    shared memory."""

    registers: int
    spills: int
    shared: int


def resources(kernel: CompiledKernel) -> Resources:
    """Resources as cuobjdump reports them. The shared memory is the amount that Triton requests at launch."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", _dump(kernel, "--dump-resource-usage"))
    assert found is not None
    return Resources(int(found[1]), int(found[2]), kernel.metadata.shared)


def instructions(kernel: CompiledKernel) -> list[list[str]]:
    """Machine instructions of every innermost loop with tensor core products: for each sweep, the loop over interior
    tiles, then the loop over tiles that need the mask."""
    code = [
        (int(address, 16), name, operands)
        for address, name, operands in re.findall(
            r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]*)(.*)", _dump(kernel, "-sass"), re.MULTILINE
        )
    ]
    loops = []
    for address, name, operands in code:
        target = re.search(r"0x([0-9a-f]+)", operands) if name.startswith("BRA") else None
        if target and int(target[1], 16) < address:
            loops.append((int(target[1], 16), address))
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    bodies = [[name for at, name, _ in code if first <= at <= last] for first, last in inner]
    return [body for body in bodies if any("MMA" in name for name in body)]


def _dump(kernel: CompiledKernel, what: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([_CUOBJDUMP, what, file.name], capture_output=True, text=True, check=True).stdout
