"""The blockwise operator, in torch and in C, against the float64 reference on fresh random problems."""

import os
import random
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_sparse.attention import GateConfig, Probability, blockwise, build_gate, native, noise, reference
from lit_sparse.attention.backends import resolve
from lit_sparse.attention.interface import Case
from lit_sparse.attention.masks import EdgeMask
from tests.attention.conftest import described

# Another one in each run, the same in all processes of a run; shown by pytest with every failure, as a parameter.
FRESH = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID")).randrange(2**31)


def causal(rows: int, keys: int, *_) -> Tensor:
    return torch.ones(1, 1, rows, keys, dtype=torch.bool).tril(keys - rows)


def window(rows: int, keys: int, *_) -> Tensor:
    return causal(rows, keys) & ~causal(rows, keys).tril(keys - rows - 7)


def padded(rows: int, keys: int, batch: int) -> Tensor:
    """Sequence b has its first 30 b keys padded away, so its first rows may see nothing at all."""
    mask = causal(rows, keys).repeat(batch, 1, 1, 1)
    for b in range(batch):
        mask[b, ..., : 30 * b] = False
    return mask


def packed(rows: int, keys: int, *_) -> Tensor:
    document = torch.arange(keys) // 17
    return causal(rows, keys) & (document[keys - rows :, None] == document)


def holes(rows: int, keys: int, batch: int) -> Tensor:
    return causal(rows, keys) & (torch.rand(batch, 1, rows, keys) < 0.7)


MASKS = {f.__name__: f for f in (causal, window, padded, packed, holes)}


@dataclass
class Problem:
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor
    gate: GateConfig
    seeds: Tensor | None
    softcap: float | None
    d_output: Tensor
    d_expected: Tensor
    scaling: float = 0.3

    def run(self, operator, dtype: torch.dtype) -> list[Tensor]:
        """Output, edges, and the gradients of q, k, v and the gates, from inputs rounded to dtype."""
        inputs = [x.to(dtype).requires_grad_() for x in (self.query, self.key, self.value)]
        gate = build_gate(self.gate, self.query.shape[1]).to(torch.promote_types(dtype, torch.float32))
        with torch.no_grad():
            for parameter in gate.parameters():
                parameter += 0.3 * torch.arange(len(parameter))  # heads differ
        keys = {"scaling": self.scaling, "softcap": self.softcap, "dropout": 0.0, "seeds": self.seeds}
        output, edges = operator(*inputs, EdgeMask.from_dense(self.mask), gate, **keys)
        cotangents = self.d_output.to(dtype), self.d_expected.to(edges.dtype)
        gradients = torch.autograd.grad((output, edges[..., 0]), [*inputs, *gate.parameters()], cotangents)
        return [output.detach(), edges.detach(), *gradients]

    def decided_by_rounding(self) -> bool:
        """Some edge lies so near its threshold that float32 may open it and float64 not."""
        seen = []
        gate = build_gate(self.gate, self.query.shape[1]).double()
        for parameter in gate.parameters():
            parameter.data += 0.3 * torch.arange(len(parameter))
        gate.register_forward_hook(lambda _, inputs, z: seen.append(z.detach()))
        keys = {"scaling": self.scaling, "softcap": self.softcap, "seeds": self.seeds}
        reference.gated_attention(self.query, self.key, self.value, EdgeMask.from_dense(self.mask), gate, **keys)
        if self.seeds is None:
            return bool((seen[0].abs() < 1e-5)[self.mask.expand_as(seen[0])].any())
        shape = seen[0].shape
        draws = noise.uniform(self.seeds, shape[1], (0, shape[2]), (0, shape[3]))
        return bool(((seen[0].sigmoid() - draws).abs() < 1e-6)[self.mask.expand_as(seen[0])].any())


def make(seed: int, mask: str, family: str, dtype: torch.dtype, *, rows=45, keys=70, kv_heads=3, **config) -> Problem:
    """Six heads of 16, values of 24, inputs exact in `dtype`, from the first seed that decides every edge."""
    sample, softcap = config.pop("sample", True), config.pop("softcap", None)
    gate = described(family, **{"threshold": 0.02, "bias": -0.3, "sharpness": 1.75} | config)
    for attempt in range(100):
        torch.manual_seed(seed + attempt)

        def draw(*shape: int) -> Tensor:
            # (B, T, H, D) seen as (B, H, T, D), as models hand tensors over
            return torch.randn(shape, dtype=torch.float64).to(dtype).double().transpose(1, 2)

        tensors = draw(2, rows, 6, 16), draw(2, keys, kv_heads, 16), draw(2, keys, kv_heads, 24)
        seeds = noise.draw_seeds(2, "cpu") if sample else None
        d_output, d_expected = draw(2, 6, rows, 24), torch.randn(2, 6, dtype=torch.float64)
        problem = Problem(*tensors, MASKS[mask](rows, keys, 2), gate, seeds, softcap, d_output, d_expected)
        if not problem.decided_by_rounding():
            return problem
    raise AssertionError("every problem had an edge that rounding decides")


def assert_near(actual: list[Tensor], exact: list[Tensor], tolerance: float) -> None:
    assert torch.equal(actual[1][..., 1:].double(), exact[1][..., 1:]), "the same gates are open"
    for a, e in zip(actual, exact, strict=True):
        assert torch.isfinite(a).all()
        assert (a.double() - e).abs().max() <= tolerance * e.abs().max().clamp_min(1e-3)


# Relative to the largest entry: float32 sums of up to 70 rounded products; a bfloat16 (float16) has a spacing of 8e-3
# (1e-3), and outputs and gradients are rounded once, d_output once more.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture(params=["one tile", "many tiles"])
def tiles(request, monkeypatch):
    """Many tiles: some of three queries, of one or two key heads."""
    if request.param == "many tiles":
        monkeypatch.setattr(blockwise, "_ROWS", 6)
        monkeypatch.setattr(blockwise, "_EDGES", 500)


@pytest.mark.parametrize("seed", [FRESH])
@pytest.mark.parametrize("family", ["logit", "probability", "contribution"])
@pytest.mark.parametrize("normalisation", ["all", "open"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("sample", [False, True], ids=["deterministic", "drawn"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_it_is_the_reference(fast_operator, tiles, seed, family, normalisation, mask, sample, dtype):
    problem = make(seed, mask, family, dtype, normalisation=normalisation, sample=sample)
    exact = problem.run(reference.gated_attention, torch.float64)
    assert 0.02 < exact[1][..., 1].sum() / exact[1][..., 2].sum() < 0.98, "both open and closed edges, to tell anything"
    assert_near(problem.run(fast_operator, dtype), exact, TOLERANCES[dtype])


@pytest.mark.parametrize("seed", [FRESH])
@pytest.mark.parametrize("family", ["logit", "probability", "contribution"])
@pytest.mark.parametrize("sample", [False, True], ids=["deterministic", "drawn"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("softcap", "kv_heads"), [(0.8, 6), (None, 1), (5.0, 2)])
def test_soft_caps_groups_and_half_precision(fast_operator, seed, family, sample, dtype, softcap, kv_heads):
    problem = make(seed, "causal", family, dtype, softcap=softcap, kv_heads=kv_heads, sample=sample)
    exact = problem.run(reference.gated_attention, torch.float64)
    actual = problem.run(fast_operator, dtype)
    assert actual[0].dtype is dtype and all(gradient.dtype is dtype for gradient in actual[2:5])
    assert actual[1].dtype is torch.promote_types(dtype, torch.float32)
    assert_near(actual, exact, TOLERANCES[dtype])


def test_the_default_tiles(fast_operator):
    """T = S = 300: several tiles of the real size."""
    problem = make(FRESH, "causal", "probability", torch.float32, rows=300, keys=300, threshold=3e-3)
    exact = problem.run(reference.gated_attention, torch.float64)
    assert_near(problem.run(fast_operator, torch.float32), exact, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [6, 2])
@pytest.mark.parametrize("mask", ["causal", "window", "padded", "holes"])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("normalisation", ["all", "open"])
def test_decoding_one_token(fast_operator, dtype, kv_heads, mask, softcap, normalisation):
    keys = {"rows": 1, "kv_heads": kv_heads, "softcap": softcap, "normalisation": normalisation, "sample": False}
    problem = make(FRESH, mask, "probability", dtype, **keys)
    exact = problem.run(reference.gated_attention, torch.float64)
    with torch.no_grad():
        gate = build_gate(problem.gate, 6)
        for parameter in gate.parameters():
            parameter += 0.3 * torch.arange(6)
        inputs = [x.to(dtype) for x in (problem.query, problem.key, problem.value)]
        keys = {"scaling": 0.3, "softcap": softcap, "dropout": 0.0, "seeds": None}
        actual = fast_operator(*inputs, EdgeMask.from_dense(problem.mask), gate, **keys)
    assert_near(list(actual), exact[:2], TOLERANCES[dtype])


def test_values_of_closed_edges_are_not_read(fast_operator):
    """A NaN behind a closed edge would spread if its value were multiplied, even by zero."""
    if native.library() is None:
        pytest.skip("the torch kernels multiply all values")
    problem = make(FRESH, "causal", "probability", torch.float32, sample=False, threshold=0.1, rows=70, keys=70)
    gate = build_gate(problem.gate, 6)
    q, k, v = (x.float() for x in (problem.query, problem.key, problem.value))
    keys = {"scaling": 1.5, "softcap": None, "dropout": 0.0, "seeds": None}
    for rows in (70, 1):
        mask = EdgeMask.causal(rows, 70)
        weights = 1.5 * q[:, :, -rows:] @ k.repeat_interleave(2, 1).transpose(-1, -2)
        weights = weights.masked_fill(~mask.dense(), -torch.inf).softmax(-1)
        unused = (weights < 0.09).unflatten(1, (3, 2)).all(2).all(-2)  # (B, G, S): by no query of the group
        assert unused.any()
        poisoned = v.masked_fill(unused[..., None], torch.nan)
        with torch.no_grad():
            clean, dirty = (fast_operator(q[:, :, -rows:], k, x, mask, gate, **keys).output for x in (v, poisoned))
        assert torch.equal(clean, dirty)


def test_padding_rows_without_keys_give_nothing(fast_operator):
    problem = make(FRESH, "padded", "logit", torch.float32)
    output, edges, d_query, *_ = problem.run(fast_operator, torch.float32)
    empty = ~problem.mask.any(-1)[:, 0]
    assert empty.any()
    assert not output[empty].any() and not d_query.transpose(1, 2)[empty].any()
    assert torch.equal(edges[..., 2], problem.mask.sum((-2, -1)).expand(-1, 6).float())


@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_nan_is_not_hidden(fast_operator, where):
    problem = make(FRESH, "causal", "probability", torch.float32)
    x = getattr(problem, where).clone()
    x[0, 0, 0, 0] = torch.nan
    if where == "value":  # reached by every query of the sample that keeps the edge to the first key
        problem = replace(problem, gate=replace(problem.gate, threshold=1e-6))
    output = replace(problem, **{where: x}).run(fast_operator, torch.float32)[0]
    assert output.isnan().any(), "a diverging run must be seen"
    assert not output[1].isnan().any()


def test_the_same_seed_gives_the_same_gates_whatever_the_blocks(fast_operator, monkeypatch):
    problem = make(FRESH, "causal", "probability", torch.float32)
    whole = problem.run(fast_operator, torch.float32)
    monkeypatch.setattr(blockwise, "_ROWS", 8)
    monkeypatch.setattr(blockwise, "_EDGES", 300)
    # Float32 sums in another order; entries are of order 1 to 10.
    torch.testing.assert_close(problem.run(fast_operator, torch.float32), whole, rtol=1e-5, atol=1e-5)
    other = replace(problem, seeds=problem.seeds + 1).run(fast_operator, torch.float32)
    assert not torch.equal(other[1], whole[1])


class LargestTensor(TorchDispatchMode):
    """The largest tensor that any torch operation inside gives back."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("sample", [False, True])
def test_nothing_of_a_sequence_squared_is_ever_held(fast_operator, monkeypatch, sample):
    length, heads = 1024, 2
    monkeypatch.setattr(blockwise, "_ROWS", 16)
    inputs = [torch.randn(1, heads, length, 8, requires_grad=True) for _ in range(3)]
    gate = build_gate(Probability(), heads)
    seeds = noise.draw_seeds(1, "cpu") if sample else None
    keys = {"scaling": 0.3, "softcap": None, "dropout": 0.0, "seeds": seeds}
    with LargestTensor() as largest:
        output, edges = fast_operator(*inputs, EdgeMask.causal(length, length), gate, **keys)
        (output.sum() + edges[..., 0].sum()).backward()
    # Four 64-bit words of noise a group of four keys are the widest: 16 queries of all heads.
    assert heads * length * 8 <= largest.elements <= heads * 16 * length * 2 < length * length


def test_the_registered_operator_keeps_its_promises():
    problem = make(FRESH, "holes", "probability", torch.float32, normalisation="open")
    mask = EdgeMask.from_dense(problem.mask)
    inputs = [x.float().detach().requires_grad_() for x in (problem.query, problem.key, problem.value)]
    cutoff = torch.full((6,), -4.0, requires_grad=True)
    formula = (torch.tensor(2.0), True, True, 0.3, 0.0)
    mask_, rest = (mask.start, mask.stop, mask.holes), (problem.seeds, *formula, "blockwise")
    for offset in (None, torch.randn(2, 3, 70, requires_grad=True)):
        arguments = (*inputs, *mask_, cutoff, offset, *rest)
        torch.library.opcheck(torch.ops.lit_sparse.gated_attention.default, arguments)


def test_torch_compile_sees_one_call():
    """No graph break in the operator: fullgraph would raise. The eager backend needs no compiler."""
    operator = resolve("blockwise", Case(build_gate(Probability(), 6)))
    gate, mask = build_gate(Probability(threshold=0.05), 6), EdgeMask.causal(9, 9)
    inputs = [torch.randn(2, 6, 9, 8, requires_grad=True) for _ in range(3)]
    seeds = torch.tensor([3, 4])

    def attend(q, k, v):
        output, edges = operator(q, k, v, mask, gate, scaling=0.3, softcap=None, dropout=0.0, seeds=seeds)
        return output.square().sum() + edges[..., 0].sum()

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    eager, traced = (torch.autograd.grad(f(*inputs), [*inputs, gate.log_threshold]) for f in (attend, compiled))
    torch.testing.assert_close(traced, eager, rtol=1e-6, atol=1e-6)  # the same kernels
