"""Build of the C kernels: finds a compiler, builds `rows.c` once for this processor in the cache, and loads it."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from lit_sparse.common.files import cache_dir, replacing

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("rows.c")
DISABLE = "LIT_SPARSE_NO_NATIVE"
# The parts of -ffast-math that allow vector code, without those that ignore NaN and infinity.
_FLAGS = [
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fassociative-math",
    "-ffp-contract=fast",
]
# Threads and code for this processor first; then plainer variants for compilers that cannot build these.
_VARIANTS = [["-march=native", "-fopenmp"], ["-mcpu=native", "-fopenmp"], ["-march=native"], ["-mcpu=native"], []]

_POINTER, _LONG, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32


class Block(ctypes.Structure):
    """`Block` of rows.c."""

    _fields_ = [
        *((name, _POINTER) for name in ("scores", "gradients")),
        *((name, _LONG) for name in ("first_head", "count", "kv_heads", "group", "queries")),
        *((name, _LONG) for name in ("first_query", "rows", "first_key", "columns")),
        *((name, _POINTER) for name in ("start", "stop")),
        ("mask_stride", _LONG),
        *((name, _POINTER) for name in ("cutoff", "offset")),
        ("keys", _LONG),
        *((name, _POINTER) for name in ("seeds", "sharpness")),
        *((name, _FLOAT) for name in ("scaling", "softcap")),
        *((name, _INT) for name in ("normalised", "renormalise")),
        *((name, _POINTER) for name in ("lse", "mass", "expected", "opened")),
        *((name, _POINTER) for name in ("delta", "d_expected", "gate_gradient", "key_gradient")),
    ]


class Rows(ctypes.Structure):
    """`Rows` of rows.c: keys or values as a model holds them."""

    _fields_ = [("data", _POINTER), ("offsets", _POINTER), ("stride", _LONG), ("dim", _LONG), ("bfloat", _INT)]


def pointer(tensor: Tensor | None) -> int | None:
    """Address of a tensor's data for C."""
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None if no compiler can build them, which is logged once.

    The environment variable LIT_SPARSE_NO_NATIVE=1 turns them off.
    """
    if os.environ.get(DISABLE, "0") not in ("", "0"):
        return None
    compiler = next(
        (path for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (path := shutil.which(name))), None
    )
    if compiler is None:
        logger.warning("no C compiler found: attention on the CPU runs several times slower; install gcc or clang")
        return None
    try:
        loaded = ctypes.CDLL(str(_build(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("the C kernels for the CPU could not be built, the slower torch ones are used: %s", error)
        return None
    block, rows = ctypes.POINTER(Block), ctypes.POINTER(Rows)
    signatures = {
        "gated_rows_forward": [block],
        "gated_rows_backward": [block],
        "open_values": [block, rows, _POINTER],
        "gated_decode": [block, _POINTER, rows, rows, _POINTER],
    }
    for name, arguments in signatures.items():
        getattr(loaded, name).argtypes = arguments
        getattr(loaded, name).restype = None
    return loaded


def _build(compiler: str) -> Path:
    """The shared library of this source, compiler and processor, which is built if it is missing.

    Raises:
        OSError, subprocess.SubprocessError: the library cannot be built or written.
    """
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    identity = "\0".join([SOURCE.read_text(), version, _processor(), torch.__version__, *_FLAGS])
    target = cache_dir() / "native" / f"rows-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    if target.is_file():
        return target
    errors = ""
    with replacing(target) as built:
        for variant in _VARIANTS:
            command = [compiler, *_FLAGS, *variant, "-shared", "-fPIC", str(SOURCE), "-o", str(built), "-lm"]
            result = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if result.returncode == 0:
                break
            errors = result.stderr.strip().splitlines()[0] if result.stderr.strip() else f"exit {result.returncode}"
        else:
            raise OSError(f"{compiler} failed: {errors}")
    return target


def _processor() -> str:
    """Description of this processor, on which compiled code depends: machines may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
    except OSError:
        return platform.processor() + platform.machine()
