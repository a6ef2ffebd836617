"""Triton kernels on Triton's interpreter; no GPU is needed.

Triton decides when it is imported whether it interprets, and other tests import it first. So tests marked `interpreted`
run in a process of their own, which `run_interpreted` starts; or with TRITON_INTERPRET=1 set by hand.
"""

import os
import subprocess
import sys

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process that test_interpreted starts")
compiled = pytest.mark.skipif(INTERPRETED, reason="needs the compiler")


def run_interpreted(file: str) -> None:
    """The tests of a file, those that are marked `interpreted` included."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", file],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


@pytest.fixture(autouse=INTERPRETED)
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter (3.9) multiplies bfloat16 numbers' bits as integers, and truncates where a GPU rounds. For
    the tests of every file that imports this."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def create_dot(self, a, b, *rest):
        a, b = (cast(self, x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, *rest)

    def truncate(self, x, dtype):
        if (x.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, x, dtype)
        bits = torch.as_tensor(x.data).bfloat16().view(torch.uint16)
        return TensorHandle(bits.numpy(), tl.bfloat16)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    monkeypatch.setattr(InterpreterBuilder, "create_fp_trunc", truncate)
