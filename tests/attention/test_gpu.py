"""The Triton kernels against autograd through the definition in float64, on Triton's interpreter; no GPU is needed."""

import importlib
import math
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lit_sparse.attention import noise
from lit_sparse.attention.interface import Formula
from lit_sparse.attention.masks import EdgeMask
from tests.triton_interpreter import INTERPRETED, compiled, interpreted, like_a_gpu, run_interpreted  # noqa: F401 - a fixture

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from lit_sparse.attention import gpu  # noqa: E402

FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Largest error over the largest value. float32: sums of 53 products and two exponentials, each a few 2^-24.
# 16 bits: output, weights and score gradients are rounded once each, to 2^-9 and 2^-12.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@compiled
def test_interpreted():
    run_interpreted(__file__)


def causal(batch: int, rows: int, keys: int) -> Tensor:
    return torch.ones(1, rows, keys, dtype=torch.bool).tril(keys - rows)


def window(batch: int, rows: int, keys: int) -> Tensor:
    return causal(batch, rows, keys).triu(keys - rows - 6)


def broad(batch: int, rows: int, keys: int) -> Tensor:
    """A window of several blocks, so that there are tiles inside it and on both of its edges."""
    return causal(batch, rows, keys).triu(keys - rows - 80)


def uneven(batch: int, rows: int, keys: int) -> Tensor:
    """Causal, but every seventh row sees its own key only: those that see a whole block do not follow each other."""
    mask = causal(batch, rows, keys).clone()
    mask[:, ::7] &= torch.ones(rows, keys, dtype=torch.bool).triu(keys - rows)[::7]
    return mask


def full(batch: int, rows: int, keys: int) -> Tensor:
    return torch.ones(1, rows, keys, dtype=torch.bool)


def packed(batch: int, rows: int, keys: int) -> Tensor:
    """Three documents; differently in every sequence."""
    index = torch.arange(keys) + 5 * torch.arange(batch)[:, None]
    document = (index > keys // 4).long() + (index > keys // 2).long()
    return causal(batch, rows, keys) & (document[:, -rows:, None] == document[:, None])


def padded(batch: int, rows: int, keys: int) -> Tensor:
    """The first 33 keys of the last sequence are missing, so its first rows see nothing at all."""
    mask = causal(batch, rows, keys).repeat(batch, 1, 1)
    mask[-1, :, :33] = False
    return mask


@dataclass(frozen=True)
class Case:
    """Kernels differ by all of these, and by heads: 4 on 2 key heads, or 2 on 1."""

    dim: int
    value_dim: int
    mask: str
    normalised: bool
    renormalise: bool
    sampled: bool
    softcap: float = 0.0
    dtype: str = "fp32"
    rows: int = 37
    keys: int = 53
    weighed: bool = False
    heads: int = 4

    def __str__(self) -> str:
        words = [self.dtype, str(self.dim), str(self.value_dim), self.mask]
        words += [name for name in ("normalised", "renormalise", "sampled", "weighed") if getattr(self, name)]
        return "-".join([*words, f"cap{self.softcap}"] if self.softcap else words)


CASES = [
    # every combination of gate, normalisation, sampling and cap once
    Case(32, 32, "causal", False, False, False),
    Case(32, 32, "causal", False, False, True),
    Case(32, 48, "window", False, True, False),
    Case(48, 32, "packed", False, True, True),
    Case(64, 64, "padded", True, False, False),
    Case(64, 80, "causal", True, False, True),
    Case(80, 48, "window", True, True, False),
    Case(32, 32, "padded", True, True, True),
    Case(32, 32, "packed", False, False, False, softcap=2.0),
    Case(32, 32, "padded", False, False, True, softcap=2.0),
    Case(16, 32, "full", False, True, True, softcap=3.0),
    Case(32, 24, "window", True, False, True, softcap=2.0),
    Case(32, 32, "packed", True, True, True, softcap=30.0),
    # widths, and queries and keys of one and of many blocks
    Case(128, 128, "causal", True, False, True, rows=21, keys=40),
    Case(256, 256, "causal", True, True, True, rows=9, keys=20),
    Case(32, 32, "causal", True, False, True, rows=1, keys=70),
    Case(32, 32, "window", True, False, True, rows=98, keys=98),
    # 16 bits
    Case(64, 64, "causal", True, False, True, dtype="bf16"),
    Case(64, 64, "padded", True, True, True, dtype="bf16"),
    Case(80, 80, "packed", False, False, True, dtype="bf16"),
    Case(128, 64, "causal", True, False, False, dtype="bf16"),
    Case(64, 64, "window", True, False, True, dtype="fp16"),
    Case(48, 64, "causal", False, True, True, dtype="fp16"),
    # keys with offsets
    Case(32, 48, "packed", False, False, False, weighed=True),
    Case(48, 32, "padded", True, False, True, weighed=True),
    Case(32, 32, "window", True, True, False, softcap=2.0, weighed=True),
    Case(32, 32, "window", False, True, True, rows=98, keys=98, weighed=True),
    Case(128, 128, "causal", True, True, True, dtype="bf16", rows=21, keys=70, weighed=True),
    Case(64, 64, "causal", True, False, True, dtype="fp16", weighed=True),
    # tiles that every row sees whole, before, between and behind tiles that need the mask; odd lengths. They take
    # long in the interpreter, and have half of the heads
    Case(32, 32, "causal", True, False, True, rows=131, keys=131, heads=2),
    Case(32, 32, "causal", False, False, True, softcap=2.0, rows=96, keys=160, heads=2),
    Case(32, 48, "broad", True, True, True, rows=150, keys=171, weighed=True, heads=2),
    Case(48, 32, "broad", False, False, False, rows=130, keys=130, heads=2),
    Case(32, 32, "packed", True, False, True, rows=201, keys=201, weighed=True, heads=2),
    Case(32, 32, "padded", True, False, True, rows=128, keys=128, heads=2),
    Case(32, 32, "uneven", True, False, True, rows=99, keys=130, heads=2),
    Case(32, 32, "full", False, True, True, rows=70, keys=64, heads=2),
    Case(64, 64, "causal", True, False, True, dtype="bf16", rows=190, keys=190, weighed=True, heads=2),
    Case(128, 128, "broad", True, False, True, dtype="bf16", rows=200, keys=200, heads=2),
]


@dataclass
class Problem:
    query: Tensor
    key: Tensor
    value: Tensor
    mask: EdgeMask
    cutoff: Tensor
    offset: Tensor | None
    seeds: Tensor | None
    formula: Formula
    d_output: Tensor
    d_expected: Tensor

    def arguments(self) -> tuple:
        return self.query, self.key, self.value, self.mask, self.cutoff, self.offset, self.seeds, self.formula

    def run(self) -> dict[str, Tensor]:
        forward = gpu.forward(*self.arguments())
        saved = forward.output, forward.lse, forward.mass
        gradients = gpu.backward(*self.arguments(), *saved, self.d_output, self.d_expected)
        assert (gradients.offset is None) == (self.offset is None)
        found = {f"d {name}": x for name, x in gradients._asdict().items() if x is not None}
        return {**forward._asdict(), **found}

    def exact(self) -> dict[str, Tensor]:
        """The same in float64, by autograd; `gap`: how near an allowed edge comes to its threshold."""
        offset = torch.zeros(self.key.shape[:3]) if self.offset is None else self.offset
        inputs = [self.query, self.key, self.value, self.cutoff, offset]
        q, k, v, cutoff, offset = inputs = [x.detach().double().requires_grad_() for x in inputs]
        f, allowed = self.formula, self.mask.dense()
        group = q.shape[1] // k.shape[1]
        s = f.scaling * q @ k.repeat_interleave(group, dim=1).mT
        s = f.softcap * torch.tanh(s / f.softcap) if f.softcap else s
        s = s.masked_fill(~allowed, -1e300)
        lse = torch.logsumexp(s, dim=-1, keepdim=True)
        p = torch.exp(s - lse) * allowed
        z = f.sharpness * (s - lse * f.normalised - cutoff[:, None, None])
        z = z + f.sharpness * offset.repeat_interleave(group, dim=1)[:, :, None]
        z = z.masked_fill(~allowed, -1e9)
        e = torch.sigmoid(z)
        if self.seeds is None:
            gates = (z > 0) & allowed
            gap = z.abs()
            gates = gates.double()
        else:
            u = noise.uniform(self.seeds, q.shape[1], (0, q.shape[2]), (0, k.shape[2])).double()
            gates, gap = ((u < e) & allowed).double(), (u - e).abs()
            relaxed = torch.sigmoid(z - torch.logit(u)) * allowed
            gates = gates + relaxed - relaxed.detach()
        w = p * gates
        mass = w.sum(-1, keepdim=True)
        mass = torch.where(mass > 0, mass, 1.0)
        w = w / mass if f.renormalise else w
        output = (w @ v.repeat_interleave(group, dim=1)).transpose(1, 2)
        expected = (e * allowed).sum(dim=(-2, -1))
        loss = (output * self.d_output.double()).sum() + (expected * self.d_expected.double()).sum()
        names = ("d query", "d key", "d value", "d cutoff", "d offset")
        gradients = dict(zip(names, torch.autograd.grad(loss, inputs), strict=True))
        counts = [expected, gates.sum(dim=(-2, -1)), allowed.expand(p.shape).sum(dim=(-2, -1)).double()]
        lse = lse[..., 0].masked_fill(~allowed.any(-1).expand(lse.shape[:-1]), torch.inf)
        found = {"output": output, "edges": torch.stack(counts, dim=-1), "lse": lse, "gap": gap[allowed.expand_as(gap)]}
        found |= {"mass": mass[..., 0]} if f.renormalise else {}
        if self.offset is None:
            del gradients["d offset"]
        return {name: x.detach() for name, x in (found | gradients).items()}


def draw(case: Case, seed: int) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def projected(heads: int, length: int, dim: int) -> Tensor:  # (B, heads, length, dim) as projections come
        return normal(2, length, heads, dim).to(FLOATS[case.dtype]).transpose(1, 2)

    mask = EdgeMask.from_dense(globals()[case.mask](2, case.rows, case.keys)[:, None])
    assert mask.holes is None
    problem = Problem(
        query=projected(case.heads, case.rows, case.dim),
        key=projected(case.heads // 2, case.keys, case.dim),
        value=projected(case.heads // 2, case.keys, case.value_dim),
        mask=mask,
        cutoff=0.5 * normal(case.heads) - (3.0 if case.normalised else 0.0),  # closes roughly half of the edges
        offset=None,
        seeds=torch.randint(2**63 - 1, (2,), generator=generator) if case.sampled else None,
        formula=Formula(torch.tensor(1.7), case.normalised, case.renormalise, 1.5 / math.sqrt(case.dim), case.softcap),
        d_output=normal(2, case.rows, case.heads, case.value_dim).to(FLOATS[case.dtype]),
        d_expected=normal(2, case.heads),
    )
    if case.weighed:
        problem.offset = normal(2, case.heads // 2, case.keys)
    return problem


def decided(case: Case) -> tuple[Problem, dict[str, Tensor]]:
    """A problem of which rounding decides no edge, and its solution."""
    for seed in range(100):
        problem = draw(case, seed)
        exact = problem.exact()
        if exact["gap"].min() > 1e-5:
            return problem, exact
    raise AssertionError("every draw has an edge on its threshold")


@interpreted
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_autograd_in_float64(case):
    problem, exact = decided(case)
    found = problem.run()
    opened = exact["edges"][..., 1] / exact["edges"][..., 2]
    assert 0.05 < opened.mean() < 0.95
    assert torch.equal(found["edges"][..., 1:].double(), exact["edges"][..., 1:])
    for name in exact.keys() - {"gap"}:
        tolerance = TOLERANCE[torch.float32 if name in ("edges", "lse", "mass") else problem.query.dtype]
        error = (found[name].double() - exact[name]).nan_to_num(0.0) if name == "lse" else found[name] - exact[name]
        largest = exact[name][exact[name].isfinite()].abs().max()
        assert error.abs().max() <= tolerance * largest, f"{name}: {error.abs().max() / largest:.1e}"
    assert torch.equal(found["lse"].isinf(), exact["lse"].isinf())
    assert found["output"].is_contiguous()
    assert [found[f"d {name}"].dtype for name in ("query", "key", "value")] == [problem.query.dtype] * 3


@interpreted
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("renormalise", [False, True])
def test_rows_without_keys_are_zero(normalised, renormalise):
    problem = draw(Case(32, 32, "padded", normalised, renormalise, True), 0)
    empty = ~problem.mask.dense().any(-1).expand(2, 4, -1)
    assert empty.any()
    found = problem.run()
    assert not any(x.isnan().any() for x in found.values())
    assert found["lse"][empty].eq(torch.inf).all()
    assert found["output"].transpose(1, 2)[empty].eq(0).all() and found["d query"][empty].eq(0).all()
    assert found["d key"][1, :, :33].eq(0).all() and found["d value"][1, :, :33].eq(0).all()


@interpreted
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_gates_far_from_their_threshold(normalised, renormalise, sampled):
    """Open for good, a head is plain attention; closed for good, it is silent. Logits of hundreds overflow nothing."""
    problem = draw(Case(32, 32, "padded", normalised, renormalise, sampled), 1)
    problem.formula = problem.formula._replace(scaling=30.0)
    problem.cutoff = torch.tensor([-1e9, -1e9, 1e9, 1e9])
    found, exact = problem.run(), problem.exact()
    assert not any(x.isnan().any() for x in found.values())
    share = found["edges"] / found["edges"][..., 2:]
    assert share[:, :2].eq(1).all() and share[:, 2:, :2].eq(0).all()
    assert found["output"][:, :, 2:].eq(0).all()
    if renormalise:
        assert found["mass"][:, 2:].eq(1).all()
    # A logit of 500 carries an error of 500 * 2^-24 into its exponential.
    assert (found["output"] - exact["output"]).abs().max() < 1e-4 * exact["output"].abs().max()
    assert found["d cutoff"].abs().max() < 1e-20  # odds are kept below 1e30


@interpreted
def test_block_sizes_change_nothing(monkeypatch):
    from lit_sparse.attention.gpu import launch

    problem = draw(Case(32, 32, "broad", True, False, True, rows=136, keys=150, weighed=True), 2)
    found = []
    for rows, keys in ((16, 16), (32, 64), (64, 32)):
        monkeypatch.setattr(launch, "blocks", lambda *_, sizes=(rows, keys), **__: [launch.Blocks(*sizes, 4, 1)])
        found.append(problem.run())
    for other in found[1:]:
        assert torch.equal(other["edges"][..., 1:], found[0]["edges"][..., 1:])
        for name in found[0].keys() - {"mass"}:  # sums in another order
            error = (other[name] - found[0][name]).abs().max()
            assert error <= 1e-5 * found[0][name].abs().max(), name


@interpreted
def test_views():
    """Any strides, values whose last dimension is not contiguous, a mask that is a view: as from contiguous ones."""
    problem = draw(Case(32, 32, "causal", True, False, True, weighed=True), 3)
    bounds = torch.stack([problem.mask.start, problem.mask.stop], dim=-1)
    views = Problem(**vars(problem))
    views.mask = EdgeMask(bounds[..., 0], bounds[..., 1], 53)
    views.value = problem.value.mT.contiguous().mT
    views.offset = problem.offset.mT.contiguous().mT
    views.key = torch.cat([problem.key, problem.key], dim=-1)[..., :32]
    problem.query, problem.key = problem.query.contiguous(), problem.key.contiguous()
    assert views.value.stride(-1) != 1 and not (views.mask.start.is_contiguous() or views.offset.is_contiguous())
    for (name, x), y in zip(problem.run().items(), views.run().values(), strict=True):
        assert torch.equal(x, y), name


if INTERPRETED:
    from lit_sparse.attention.gpu import noise as gpu_noise

    @triton.jit
    def uniform_kernel(out, seeds, first_row, first_key, heads, ROWS: tl.constexpr, KEYS: tl.constexpr):
        batch, head = tl.program_id(0) // heads, tl.program_id(0) % heads
        seed = tl.load(seeds + batch)
        row = tl.arange(0, ROWS)
        u = gpu_noise.uniform(seed, head, first_row + row, first_key, ROWS, KEYS)
        block = tl.program_id(0) * ROWS * KEYS + row[:, None] * KEYS
        tl.store(out + block + gpu_noise.columns(KEYS)[None, :], u)


@interpreted
@pytest.mark.parametrize("keys", [16, 64])
@pytest.mark.parametrize("first_row, first_key", [(0, 0), (5, 48), (100_003, 2**20 + 16)])
def test_noise_bit_by_bit(first_row, first_key, keys):
    seeds = torch.tensor([0, 2**63 - 2, 0x0123456789ABCDEF])
    out = torch.zeros(3, 5, 16, keys)
    uniform_kernel[(15,)](out, seeds, first_row, first_key, 5, 16, keys)
    expected = noise.uniform(seeds, 5, (first_row, first_row + 16), (first_key, first_key + keys))
    assert torch.equal(out, expected)


@interpreted
@pytest.mark.parametrize("weighed", [False, True])
def test_operator(weighed):
    """Through torch.library: the kernels' own numbers, autograd, and what torch.compile asks of an operator."""
    problem = draw(Case(32, 32, "padded", True, False, True, rows=19, keys=39, weighed=weighed), 4)
    names = ["query", "key", "value", "cutoff", *(["offset"] if weighed else [])]
    inputs = [getattr(problem, name).detach().requires_grad_() for name in names]
    q, k, v, cutoff, *offset = inputs
    mask = problem.mask
    arguments = (
        q,
        k,
        v,
        mask.start,
        mask.stop,
        None,
        cutoff,
        *(offset or [None]),
        problem.seeds,
        *problem.formula,
        "triton",
    )
    output, edges, _, _ = torch.ops.lit_sparse.gated_attention(*arguments)
    gradients = torch.autograd.grad((output, edges[..., 0]), inputs, (problem.d_output, problem.d_expected))
    found = problem.run()
    assert torch.equal(output, found["output"]) and torch.equal(edges, found["edges"])
    for name, x in zip(names, gradients, strict=True):
        assert torch.equal(x, found[f"d {name}"]), name
    utilities = ["test_schema", "test_autograd_registration", "test_faketensor"]
    torch.library.opcheck(torch.ops.lit_sparse.gated_attention.default, arguments, test_utils=utilities)


def test_refusals():
    from lit_sparse.attention.gpu import launch

    problem = draw(Case(16, 16, "causal", True, False, True, rows=3, keys=3), 0)
    query, key, value, mask, *rest = problem.arguments()
    holes = EdgeMask(mask.start, mask.stop, 3, torch.ones(1, 1, 3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="one run of keys"):
        launch.forward(query, key, value, holes, *rest)
    with pytest.raises(ValueError, match=r"one kind, got \['torch.float64'\]"):
        launch.forward(query.double(), key.double(), value.double(), mask, *rest)
    with pytest.raises(ValueError, match="scaling must be positive"):
        launch.forward(query, key, value, mask, *rest[:-1], problem.formula._replace(scaling=-1.0))
    with pytest.raises(ValueError, match="up to 256, got 300"):
        launch.forward(query, key, value.new_zeros(2, 2, 3, 300), mask, *rest)


def test_without_triton(monkeypatch):
    assert gpu.available()
    monkeypatch.setitem(sys.modules, "triton", None)  # `import triton` raises
    for name in [name for name in sys.modules if name.startswith("lit_sparse.attention.gpu")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("lit_sparse.attention.gpu", gpu)  # put back afterwards
    fresh = importlib.import_module("lit_sparse.attention.gpu")
    assert fresh is not gpu and not fresh.available()
    for call in (fresh.forward, fresh.backward):
        with pytest.raises(ImportError, match="pip install triton"):
            call()


@compiled
@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("kernel", ["forward", "query", "key"])
def test_compiles_without_spills(kernel, weighed):
    """For compute capability 8.0 with no GPU at hand; benchmarks/gpu_kernels.py does so for every configuration."""
    from lit_sparse.attention.gpu import ahead, launch

    blocks = launch.blocks(kernel, 2, 64, 80, weighed=weighed)[0]
    result = ahead.compile_ahead(kernel, 80, blocks, dim=64, weighed=weighed)
    use = ahead.resources(result)
    assert use.spills == 0
    assert use.registers <= 255 and use.shared <= 163 * 1024  # CUDA C Programming Guide, compute capability 8.0
