"""The losses in blocks with hand-written gradients, against plain float64 torch."""

import pytest
import torch
from torch.nn import functional as F

from lit_sparse.objective import blocks, token_losses

BATCH, QUERIES, VOCABULARY = 3, 7, 11


def example(dtype=torch.float64, seed=0, ignored=0.33):
    """Logits, base logits, labels of which some are not scored."""
    generator = torch.Generator().manual_seed(seed)
    logits, base = (3 * torch.randn(BATCH, QUERIES, VOCABULARY, generator=generator).double() for _ in range(2))
    labels = torch.randint(VOCABULARY, (BATCH, QUERIES), generator=generator)
    labels[torch.rand(BATCH, QUERIES, generator=generator) < ignored] = -100
    return logits.to(dtype).requires_grad_(), base.to(dtype), labels


def oracle(logits, base, labels):
    scored = labels != -100
    x, y, label = logits.double(), base.double(), labels.clamp_min(0)
    ce = F.cross_entropy(x.transpose(1, 2), label, reduction="none")
    base_ce = F.cross_entropy(y.transpose(1, 2), label, reduction="none")
    kl = F.kl_div(x.log_softmax(-1), y.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    return *(torch.where(scored, value, 0.0) for value in (ce, base_ce, kl)), scored


@pytest.fixture(params=[1, 4, 10_000], ids=["a token a block", "4 tokens a block", "one block"])
def block(request, monkeypatch):
    monkeypatch.setattr(blocks, "_BLOCK", request.param * VOCABULARY)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("ignored", [0.0, 0.33, 1.0])
def test_values_and_gradients_are_those_of_plain_torch(ignored):
    logits, base, labels = example(ignored=ignored)
    mine, theirs = token_losses(logits, base, labels), oracle(logits, base, labels)
    assert int(mine.tokens()) == (labels != -100).sum()
    for value, expected in zip(mine, theirs, strict=True):
        # float64 throughout; the order of sums differs
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    # Different weights for each token and loss, so that no mix-up cancels.
    weights = torch.linspace(0.5, 2.0, labels.numel(), dtype=torch.float64).view_as(labels)
    (ours,) = torch.autograd.grad((weights * mine.ce - 0.3 * weights.flip(1) * mine.kl).sum(), logits)
    (plain,) = torch.autograd.grad((weights * theirs[0] - 0.3 * weights.flip(1) * theirs[2]).sum(), logits)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    assert (ours[labels == -100] == 0).all()


@pytest.mark.usefixtures("block")
def test_gradcheck():
    logits, base, labels = example()
    assert torch.autograd.gradcheck(lambda x: token_losses(x, base, labels)[:3:2], (logits,))


def test_one_loss_alone_has_its_own_gradient():
    logits, base, labels = example()
    for index in (0, 2):
        (ours,) = torch.autograd.grad(token_losses(logits, base, labels)[index].mean(), logits)
        (plain,) = torch.autograd.grad(oracle(logits, base, labels)[index].mean(), logits)
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_are_left_alone(dtype):
    """Working copies in the inputs' own dtype would be the inputs themselves."""
    logits, base, labels = example(dtype)
    before = logits.detach().clone(), base.clone(), labels.clone()
    losses = token_losses(logits, base, labels)
    (losses.ce.sum() + losses.kl.sum()).backward()
    for value, copy in zip((logits.detach(), base, labels), before, strict=True):
        assert torch.equal(value, copy)
    again = token_losses(logits, base, labels)
    assert torch.equal(again.ce, losses.ce) and torch.equal(again.kl, losses.kl)


def test_positions_that_are_not_scored_may_hold_anything():
    logits, base, labels = example()
    broken = torch.where((labels == -100)[..., None], torch.nan, logits.detach()).requires_grad_()
    losses, expected = token_losses(broken, base, labels), token_losses(logits, base, labels)
    assert all(torch.equal(value, clean) for value, clean in zip(losses, expected, strict=True))
    (losses.ce.sum() + losses.kl.sum()).backward()
    assert (broken.grad[labels == -100] == 0).all() and torch.isfinite(broken.grad).all()


def test_the_operators_are_registered_as_torch_wants_them():
    logits, base, labels = example(torch.float32)
    torch.library.opcheck(torch.ops.lit_sparse.token_losses, (logits.detach(), base, labels))
    lse = torch.zeros(BATCH, QUERIES)
    torch.library.opcheck(
        torch.ops.lit_sparse.token_losses_backward, (logits.detach(), base, labels, lse, lse, lse, lse)
    )


def test_bfloat16_inputs_are_computed_in_float32():
    logits, base, labels = example(torch.bfloat16)
    mine, theirs = token_losses(logits, base, labels), oracle(logits, base, labels)
    for value, expected in zip(mine[:3], theirs[:3], strict=True):
        assert value.dtype == torch.float32
        # the oracle has the same rounded inputs, so what is left is float32's rounding of logits up to about 10
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
    (ours,) = torch.autograd.grad((mine.ce + mine.kl).sum(), logits)
    (plain,) = torch.autograd.grad((theirs[0] + theirs[2]).sum(), logits)
    assert ours.dtype == torch.bfloat16
    # both gradients are rounded to bfloat16's 8 bits at the end: one unit in the last place
    torch.testing.assert_close(ours, plain, rtol=2**-7, atol=1e-4)


def test_the_base_gets_no_gradient_and_equal_logits_have_no_divergence():
    logits, _, labels = example()
    base = logits.detach().clone().requires_grad_()
    losses = token_losses(logits, base, labels)
    assert not losses.base_ce.requires_grad
    (losses.ce + losses.kl).sum().backward()
    assert base.grad is None
    # log-sum-exp of the same row, twice: exact up to float64's rounding of numbers around 10
    assert losses.kl.abs().max() < 1e-14
    assert torch.equal(losses.ce, losses.base_ce)


def test_extreme_logits_stay_finite():
    logits, base, labels = example()
    huge = (1e4 * logits.detach()).float().requires_grad_()
    losses = token_losses(huge, (1e4 * base).float(), labels)
    (losses.ce + losses.kl).sum().backward()
    assert all(torch.isfinite(value).all() for value in (*losses, huge.grad))
