"""Noise of the gates: one uniform number per (seed, head, query, key), the same in every operator.

It is counter-based (Philox4x32 with 7 rounds: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC'11,
table 2: the fewest that pass BigCrush). So nothing has to be stored for the backward pass, blocks may run in any order,
and the C and Triton kernels can be compared with this file edge by edge:

    words      = philox4x32_7(counter = (key // 4, query, head, 0), key = (low, high 32 bits of the sample's seed))
    uniform    = ((words[key % 4] >> 9) + 1/2) * 2^-23                      in (0, 1), exact in float32

An edge with gate logit z is open in training if uniform < sigmoid(z), so its logistic noise is -logit(uniform).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROUNDS = 7
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF


def draw_seeds(batch: int, device: torch.device | str) -> Int[Tensor, " batch"]:
    """A seed for every sample, from the device's default generator, so that activation checkpointing replays it."""
    return torch.randint(0, 2**63 - 1, (batch,), dtype=torch.int64, device=device)


def uniform(
    seeds: Int[Tensor, " batch"], heads: int, queries: tuple[int, int], keys: tuple[int, int]
) -> Float[Tensor, "batch head query key"]:
    """Numbers of all heads in float32, for a block of queries and keys given as (first, one past the last)."""
    first, last = keys[0] // 4, -(-keys[1] // 4)
    device = seeds.device

    def axis(start: int, stop: int, dim: int) -> Tensor:
        shape = [1, 1, 1, 1]
        shape[dim] = -1
        return torch.arange(start, stop, dtype=torch.int64, device=device).view(shape)

    seed = seeds.view(-1, 1, 1, 1)
    words = _philox(axis(first, last, 3), axis(*queries, 2), axis(0, heads, 1), seed & _WORD, (seed >> 32) & _WORD)
    batch = seeds.shape[0]
    shape = (batch, heads, queries[1] - queries[0], last - first)
    numbers = torch.stack([word.expand(shape) for word in words], dim=-1).flatten(-2)
    numbers = numbers[..., keys[0] - 4 * first : keys[1] - 4 * first]
    return ((numbers >> 9).to(torch.float32) + 0.5) * 2.0**-23


def _philox(c0: Tensor, c1: Tensor, c2: Tensor, k0: Tensor, k1: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """32-bit words kept in int64, whose products wrap around like the unsigned ones they stand for."""
    c3 = torch.zeros_like(c0)
    for _ in range(ROUNDS):
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (b >> 32 & _WORD) ^ c1 ^ k0, b & _WORD, (a >> 32 & _WORD) ^ c3 ^ k1, a & _WORD
        k0, k1 = k0 + _WEYL[0] & _WORD, k1 + _WEYL[1] & _WORD
    return c0, c1, c2, c3
