"""The gates' noise: known answers, independence of blocks, uniformity."""

import pytest
import torch

from lit_sparse.attention import noise


def philox(counter: list[int], key: list[int], rounds: int = 7) -> list[int]:
    """Philox4x32 with Python's integers, from the paper."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(rounds):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b % 2**32, (a >> 32) ^ c3 ^ k1, a % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def test_the_generator_has_its_published_answers():
    # Random123's kat_vectors, philox4x32 with 7 rounds
    assert philox([0] * 4, [0] * 2) == [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]
    ones = [2**32 - 1]
    assert philox(ones * 4, ones * 2) == [0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662]


def test_every_number_is_the_definitions():
    seeds = torch.tensor([2**62 + 12345678912345, 7, 2**63 - 1])
    drawn = noise.uniform(seeds, 3, (5, 9), (6, 19))
    assert drawn.shape == (3, 3, 4, 13) and drawn.dtype is torch.float32
    for b, seed in enumerate(seeds.tolist()):
        for h in range(3):
            for i in range(4):
                for j in range(13):
                    word = philox([(6 + j) // 4, 5 + i, h, 0], [seed % 2**32, seed >> 32])[(6 + j) % 4]
                    assert drawn[b, h, i, j].item() == ((word >> 9) + 0.5) * 2**-23


def test_a_block_is_a_part_of_the_whole():
    seeds = noise.draw_seeds(2, "cpu")
    whole = noise.uniform(seeds, 4, (0, 40), (0, 50))
    assert torch.equal(noise.uniform(seeds, 4, (7, 20), (13, 49)), whole[:, :, 7:20, 13:49])
    assert torch.equal(noise.uniform(seeds[1:], 4, (0, 40), (0, 50)), whole[1:])


def test_numbers_are_uniform_and_never_0_or_1():
    drawn = noise.uniform(torch.tensor([11, 12]), 3, (0, 300), (0, 301)).double()
    count = drawn.numel()
    assert drawn.min() > 0 and drawn.max() < 1
    # 5 standard deviations of a mean of `count` uniform numbers (their variance is 1/12)
    assert abs(drawn.mean() - 0.5) < 5 * (1 / 12 / count) ** 0.5
    histogram = torch.histc(drawn, 256, 0, 1)
    chi = ((histogram - count / 256).square() / (count / 256)).sum()
    assert abs(chi - 255) < 5 * (2 * 255) ** 0.5  # chi-squared: mean 255, variance 510


@pytest.mark.parametrize("axis", ["batch", "head", "query", "key"])
def test_neighbours_are_not_correlated(axis):
    drawn = noise.uniform(torch.tensor([1, 2]), 2, (0, 200), (0, 200)).double() - 0.5
    dim = ["batch", "head", "query", "key"].index(axis)
    size = drawn.shape[dim]
    left, right = drawn.narrow(dim, 0, size - 1), drawn.narrow(dim, 1, size - 1)
    correlation = 12 * (left * right).mean()
    assert correlation.abs() < 5 / left.numel() ** 0.5  # 5 standard deviations of independent pairs


def test_seeds_come_from_the_default_generator():
    torch.manual_seed(3)
    first, second = noise.draw_seeds(4, "cpu"), noise.draw_seeds(4, "cpu")
    torch.manual_seed(3)
    assert torch.equal(noise.draw_seeds(4, "cpu"), first) and not torch.equal(first, second)
    assert first.unique().numel() == 4, "a seed for every sample"
