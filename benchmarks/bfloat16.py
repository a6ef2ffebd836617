"""Does this CPU multiply bfloat16, or emulate it? Why `lit_sparse/training/precision.py` changes a run's precision.

python benchmarks/bfloat16.py          prints GFLOP/s of SmolLM2-135M's MLP product, 512 tokens, one thread
"""

import time

import torch

from lit_sparse.training.precision import multiplies_bfloat16

TOKENS, WIDTH, HIDDEN, ROUNDS = 512, 576, 1536, 10


def speed(dtype: torch.dtype) -> float:
    """The best of some rounds, in GFLOP/s."""
    x, weight = torch.randn(TOKENS, WIDTH, dtype=dtype), torch.randn(HIDDEN, WIDTH, dtype=dtype)
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        seconds.append(time.perf_counter() - started)
    return 2 * TOKENS * WIDTH * HIDDEN / min(seconds) / 1e9


if __name__ == "__main__":
    torch.set_num_threads(1)
    full, half = speed(torch.float32), speed(torch.bfloat16)
    print(f"float32 {full:.0f}, bfloat16 {half:.0f} GFLOP/s, {half / full:.2f}x; instructions: {multiplies_bfloat16()}")
