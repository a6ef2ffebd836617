"""The losses' Triton kernels against plain PyTorch in float64, on Triton's interpreter; no GPU is needed."""

import pytest
import torch
from torch.nn import functional as F

from tests.triton_interpreter import compiled, interpreted, like_a_gpu, run_interpreted  # noqa: F401 - a fixture

triton = pytest.importorskip("triton")

BATCH, QUERIES = 2, 9


@compiled
def test_interpreted():
    run_interpreted(__file__)


def example(vocabulary, dtype=torch.float32, base_dtype=None, scale=3.0):
    """Logits, base logits, labels of which a third is not scored, and gradients of CE and KL."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits, base = (scale * torch.randn(BATCH, QUERIES, vocabulary, generator=generator) for _ in range(2))
    labels = torch.randint(vocabulary, (BATCH, QUERIES), generator=generator)
    labels[torch.rand(BATCH, QUERIES, generator=generator) < 0.33] = -100
    gradients = [torch.randn(BATCH, QUERIES, generator=generator) for _ in range(2)]
    return logits.to(dtype), base.to(base_dtype or dtype), labels, *gradients


def oracle(logits, base, labels, d_ce, d_kl):
    """CE, base CE, KL, both log-sum-exps and the gradient in the logits."""
    scored = labels != -100
    x, y, label = logits.double().requires_grad_(), base.double(), labels.clamp_min(0)
    ce, base_ce = (F.cross_entropy(z.transpose(1, 2), label, reduction="none") for z in (x, y))
    kl = F.kl_div(x.log_softmax(-1), y.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    (gradient,) = torch.autograd.grad((scored * (d_ce * ce + d_kl * kl)).sum(), x)
    values = ce, base_ce, kl, x.logsumexp(-1), y.logsumexp(-1)
    return [torch.where(scored, value.detach(), 0.0) for value in values], gradient


def check(logits, base, labels, d_ce, d_kl, exact=1e-5, rounding=1e-5):
    from lit_sparse.objective import fused

    expected, gradient = oracle(logits, base, labels, d_ce, d_kl)
    found = fused.forward(logits, base, labels)
    for value, theirs in zip(found, expected, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), theirs, rtol=exact, atol=exact)
    ours = fused.backward(logits, base, labels, *found[3:], d_ce, d_kl)
    assert ours.dtype == logits.dtype and (ours[labels == -100] == 0).all()
    torch.testing.assert_close(ours.double(), gradient, rtol=rounding, atol=rounding)


@interpreted
@pytest.mark.parametrize("vocabulary", [11, 4096, 4097, 9001])
def test_vocabularies_of_any_size(vocabulary):
    check(*example(vocabulary))  # float32: sums of thousands of exponentials, logits up to 12


@interpreted
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_16_bit_logits_are_computed_in_float32(dtype, rounding):
    check(*example(5000, dtype), rounding=rounding)  # the gradient is rounded once, at the end


@interpreted
def test_the_models_may_differ_in_dtype():
    check(*example(5000, torch.float32, torch.bfloat16))
    check(*example(5000, torch.bfloat16, torch.float32), rounding=2**-8)


@interpreted
def test_very_large_logits():
    """Only the largest logits count, and the running maximum moves from block to block."""
    logits, base, *rest = example(9001, scale=1e4)
    logits, base = (x + torch.linspace(0, 1e5, 9001) for x in (logits, base))
    check(logits, base, *rest, exact=1e-6 * 1e5, rounding=5e-2)  # float32 has 2^-7 at 1e5: exp is off by as much


@interpreted
def test_tokens_that_the_base_holds_impossible_have_no_share():
    """A first block without any finite logit, and a vocabulary padded with -inf in both models."""
    from lit_sparse.objective import fused

    logits, base, labels, d_ce, d_kl = example(5000)
    logits[..., 4995:] = -torch.inf
    base[..., :4200], base[..., 4990:] = -torch.inf, -torch.inf
    labels[labels != -100] = 4500
    _, _, kl, lse, base_lse = fused.forward(logits, base, labels)
    log_p, log_base = (x.double().log_softmax(-1)[..., 4200:4990] for x in (logits, base))
    expected = torch.where(labels != -100, (log_base.exp() * (log_base - log_p)).sum(-1), 0.0)
    torch.testing.assert_close(kl.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(fused.backward(logits, base, labels, lse, base_lse, d_ce, d_kl)).all()


@interpreted
def test_positions_that_are_not_scored_and_broken_ones():
    from lit_sparse.objective import fused

    logits, base, labels, d_ce, d_kl = example(5000)
    clean = fused.forward(logits, base, labels)
    logits[labels == -100] = torch.nan
    values = fused.forward(logits, base, labels)
    assert all(torch.equal(value, same) for value, same in zip(values, clean, strict=True))
    gradient = fused.backward(logits, base, labels, *values[3:], d_ce, d_kl)
    assert torch.isfinite(gradient).all()
    for broken in (logits, base):
        spoilt = broken.clone()
        labels[0, 0], broken[0, 0, 4500] = 3, torch.nan
        assert torch.isnan(fused.forward(logits, base, labels)[2][0, 0])
        broken.copy_(spoilt)


@interpreted
def test_rows_that_lie_apart():
    logits, base, *rest = example(300)
    wide = torch.full((BATCH, QUERIES, 640), torch.nan)
    wide[..., :300] = logits
    check(wide[..., :300], base.transpose(1, 2).contiguous().transpose(1, 2), *rest)
