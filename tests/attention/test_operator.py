"""Every operator against loops and formulas written from the method's definition."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lit_sparse.attention import Gate, build_gate, noise
from lit_sparse.attention.masks import EdgeMask
from tests.attention.conftest import described

THETA, KAPPA, BIAS = 0.08, 1.5, 0.3  # cutoffs that close roughly half of the edges below
FAMILIES = ["logit", "probability"]


@dataclass
class Case:
    """One attention problem; heads 4, key heads 2, value dim != dim."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor
    gate: Gate
    scaling: float = 0.45
    softcap: float | None = None

    def run(self, operator, *, seeds: Tensor | None = None):
        """(output, edges) and the gradients of q, k, v and the gate's parameter under fixed random cotangents."""
        mask = EdgeMask.from_dense(self.mask)
        inputs = [x.detach().clone().requires_grad_() for x in (self.query, self.key, self.value)]
        self.gate.zero_grad()
        keys = {"scaling": self.scaling, "softcap": self.softcap, "dropout": 0.0, "seeds": seeds}
        output, edges = operator(*inputs, mask, self.gate, **keys)
        d_output, d_expected = cotangents(output, edges)
        ((output * d_output).sum() + (edges[..., 0] * d_expected).sum()).backward()
        gates = [parameter.grad for parameter in self.gate.parameters()]
        return [output.detach(), edges.detach(), *(x.grad for x in inputs), *gates]


def cotangents(output: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(99)
    draw = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (output, edges[..., 0])]
    return draw[0].to(output.dtype), draw[1].to(edges.dtype)


def causal(rows: int, keys: int) -> Tensor:
    return torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)


def padded(batch: int, rows: int, keys: int) -> Tensor:
    """Causal; sequence b has its first 2 b keys padded away, so its first rows see nothing at all."""
    mask = causal(rows, keys).repeat(batch, 1, 1, 1)
    for b in range(batch):
        mask[b, ..., : 2 * b] = False
    return mask


def make_case(family: str, rows: int = 5, keys: int = 7, dtype=torch.float64, seed: int = 0, **config) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    config = {"threshold": THETA, "sharpness": KAPPA, "bias": BIAS} | config
    gate = build_gate(described(family, **config), 4).to(dtype)
    with torch.no_grad():  # heads differ
        for parameter in gate.parameters():
            parameter += 0.2 * torch.arange(4)
    shapes = draw(2, 4, rows, 8), draw(2, 2, keys, 8), draw(2, 2, keys, 3)
    return Case(*shapes, padded(2, rows, keys), gate)


SEEDS = torch.tensor([5, 2**62 + 77])


def uniform_draws(case: Case) -> Tensor:
    """What every operator draws: one uniform a pair, open when below sigmoid(z)."""
    return noise.uniform(SEEDS, 4, (0, case.query.shape[2]), (0, case.key.shape[2])).double()


def naive(case: Case, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
    """The definition, one query at a time."""
    query, key, value, gate = case.query, case.key, case.value, case.gate
    batch, heads, rows, _ = query.shape
    output = torch.zeros(batch, rows, heads, value.shape[-1], dtype=torch.float64)
    edges = torch.zeros(batch, heads, 3, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            kv = h // 2
            for i in range(rows):
                visible = [j for j in range(key.shape[2]) if case.mask[b, 0, i, j]]
                s = {j: case.scaling * float(query[b, h, i] @ key[b, kv, j]) for j in visible}
                if case.softcap is not None:
                    s = {j: case.softcap * math.tanh(x / case.softcap) for j, x in s.items()}
                total = sum(math.exp(x) for x in s.values())
                p = {j: math.exp(x) / total for j, x in s.items()}
                if gate.family == "logit":
                    z = {j: s[j] + gate.bias[h].item() for j in visible}
                else:
                    z = {j: KAPPA * (math.log(p[j]) - gate.log_threshold[h].item()) for j in visible}
                e = {j: 1 / (1 + math.exp(-z[j])) for j in visible}
                opened = [j for j in visible if (z[j] > 0 if uniform is None else uniform[b, h, i, j] < e[j])]
                mass = sum(p[j] for j in opened) if gate.config.normalisation == "open" else 1.0
                for j in opened:
                    output[b, i, h] += p[j] / mass * value[b, kv, j]
                edges[b, h] += torch.tensor([sum(e.values()), len(opened), len(visible)], dtype=torch.float64)
    return output, edges


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("normalisation", ["all", "open"])
@pytest.mark.parametrize("softcap", [None, 1.2])
@pytest.mark.parametrize("sample", [False, True])
def test_an_operator_is_the_definition(operator, family, normalisation, softcap, sample):
    case = make_case(family, normalisation=normalisation, seed=1)
    case.softcap = softcap
    output, edges, *_ = case.run(operator, seeds=SEEDS if sample else None)
    expected_output, expected_edges = naive(case, uniform_draws(case) if sample else None)
    # float64 against float64: only the order of sums differs
    torch.testing.assert_close(output, expected_output, rtol=0, atol=1e-12)
    torch.testing.assert_close(edges, expected_edges, rtol=0, atol=1e-12)
    opened, allowed = edges[..., 1].sum(), edges[..., 2].sum()
    assert 0.2 < opened / allowed < 0.9, "the case must have both open and closed edges to tell anything"


def formula_gradients(case: Case, uniform: Tensor | None) -> list[Tensor]:
    """The method's gradients as written down, with whole matrices: d query, d key, d value, d gate parameter."""
    query, gate, mask = case.query, case.gate, case.mask
    key, value = (x.repeat_interleave(2, dim=1) for x in (case.key, case.value))
    s = (case.scaling * query @ key.transpose(-1, -2)).masked_fill(~mask, -torch.inf)
    p = s.softmax(-1).nan_to_num(0.0)  # rows without a key
    (parameter,) = (parameter.detach().view(-1, 1, 1) for parameter in gate.parameters())
    z = s + parameter if gate.family == "logit" else KAPPA * (p.log() - parameter)
    z = z.masked_fill(~mask, -torch.inf)
    e = z.sigmoid()
    gates = ((z > 0) if uniform is None else uniform < e).double()
    output = (gates * p) @ value
    d_output, d_expected = cotangents(output.transpose(1, 2), e[:, :, :3, 0])
    d_output = d_output.transpose(1, 2)
    g = d_output @ value.transpose(-1, -2)
    delta = (d_output * output).sum(-1, keepdim=True)
    c = d_expected[..., None, None] * e * (1 - e)
    if uniform is not None:
        noisy = (z - torch.logit(uniform)).sigmoid()
        c = c + p * g * noisy * (1 - noisy)
    ds = p * (gates * g - delta)
    if gate.family == "logit":
        ds, d_gate = ds + c, c.sum((0, 2, 3))
    else:
        ds, d_gate = ds + KAPPA * (c - p * c.sum(-1, keepdim=True)), -KAPPA * c.sum((0, 2, 3))

    def grouped(x: Tensor) -> Tensor:
        return x.unflatten(1, (2, 2)).sum(2)

    d_key, d_value = ds.transpose(-1, -2) @ query, (gates * p).transpose(-1, -2) @ d_output
    return [case.scaling * ds @ key, case.scaling * grouped(d_key), grouped(d_value), d_gate]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sample", [False, True])
def test_gradients_are_the_formulas(operator, family, sample):
    case = make_case(family, seed=2)
    _, _, *gradients = case.run(operator, seeds=SEEDS if sample else None)
    expected = formula_gradients(case, uniform_draws(case) if sample else None)
    for actual, formula in zip(gradients, expected, strict=True):
        torch.testing.assert_close(actual, formula.detach(), rtol=1e-10, atol=1e-12)  # float64, sums reordered


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("normalisation", ["all", "open"])
def test_evaluation_gradients_are_finite_differences(operator, family, normalisation):
    case = make_case(family, rows=3, keys=4, normalisation=normalisation, seed=4)
    (name, parameter), *_ = case.gate.named_parameters()
    del case.gate._parameters[name]

    def run(query, key, value, cutoff):
        setattr(case.gate, name, cutoff)
        keys = {"scaling": case.scaling, "softcap": None, "dropout": 0.0, "seeds": None}
        output, edges = operator(query, key, value, EdgeMask.from_dense(case.mask), case.gate, **keys)
        return output, edges[..., 0]

    inputs = [x.clone().requires_grad_() for x in (case.query, case.key, case.value, parameter.detach())]
    # Deterministic gates are constant almost everywhere, so the true derivative is what autograd must give.
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sample", [False, True])
def test_gates_kept_open_are_dense_attention(operator, family, sample):
    case = make_case(family, rows=7, keys=7, seed=7)
    case.gate.keep_open()
    output, edges, d_query, *_ = case.run(operator, seeds=SEEDS if sample else None)
    query = case.query.clone().requires_grad_()
    key, value = (x.repeat_interleave(2, dim=1) for x in (case.key, case.value))
    dense = torch.nn.functional.scaled_dot_product_attention(query, key, value, case.mask, scale=case.scaling)
    dense = dense.nan_to_num(0.0).transpose(1, 2)
    (dense * cotangents(dense, edges)[0]).sum().backward()
    torch.testing.assert_close(output, dense.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(d_query, query.grad, rtol=0, atol=1e-12)
    assert torch.equal(edges[..., 0], edges[..., 2]) and torch.equal(edges[..., 1], edges[..., 2])
