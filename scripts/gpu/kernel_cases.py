"""Part a of kernels.py: outputs and gradients against the reference in float64, the noise bit for bit, two runs equal.

The reference is given the same inputs, rounded to the kernels' type, and the same seeds, so gates agree but for those
whose uniform number lies next to the gate's probability: these are counted (`undecided`), and the error that as many
wrong gates would make is added to what is allowed. `blockwise` is the same in float32 by torch, a second opinion.
"""

import json
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_sparse.attention import GateConfig, build_gate, noise
from lit_sparse.attention.gates import ContributionGate, Gate, KeyOffset
from lit_sparse.attention.masks import EdgeMask
from lit_sparse.attention.operator import gated_attention
from lit_sparse.attention.reference import attention_logits
from lit_sparse.attention.reference import gated_attention as reference

FLOATS = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Relative Frobenius error: 16-bit inputs of the products after the softmax are rounded to 2^-9 each.
ALLOWED = {"bf16": 1e-2, "fp32": 5e-5}
MARGIN = 1e-5  # between a probability and its uniform number, below which float32 may decide otherwise
NAMES = ("output", "edges", "query", "key", "value", "cutoff", "offset")


@dataclass(frozen=True)
class Case:
    length: int
    mask: str = "causal"
    heads: int = 9
    kv_heads: int = 3
    batch: int = 2
    normalisation: str = "all"
    sampled: bool = True


# By type, head dimension and family; the most important first.
COMMON = [Case(512), Case(333, "packed"), Case(1000, "window"), Case(17), Case(1), Case(512, sampled=False)]
LONG = Case(8192, heads=2, kv_heads=1, batch=1)
CASES: dict[str, list[Case]] = {
    "bf16-64-contribution": [*COMMON, LONG, Case(333, "padded", normalisation="open")],
    "bf16-128-contribution": [*COMMON, LONG],
    "bf16-64-probability": [*COMMON, LONG],
    "bf16-128-probability": [*COMMON, Case(333, "padded", normalisation="open")],
    "bf16-64-logit": [*COMMON[:4], LONG],
    "bf16-128-logit": COMMON[:4],
    "fp32-64-contribution": [*COMMON[:5], Case(2048, heads=3, kv_heads=1, batch=1)],
    "fp32-128-logit": [*COMMON[:5]],
}
# What kernels are compiled for, which takes longer than all else: each in a process of its own.
GROUPS: dict[str, list[Case]] = {}
for _name, _cases in CASES.items():
    for _case in _cases:
        _variant = f"{_name}-{'sampled' if _case.sampled else 'deterministic'}-{_case.normalisation}"
        GROUPS.setdefault(_variant, []).append(_case)
REHEARSED = ["bf16-64-contribution-sampled-all", "fp32-64-contribution-sampled-all"]


class GivenOffset(ContributionGate):
    """The contribution's gate with its keys' offsets as an input, so that their gradient can be compared."""

    given: Tensor

    def key_offset(self, value: Tensor) -> KeyOffset:
        return self.given


def run_group(name: str, device: str, quick: bool, folder: Path, until: float) -> None:
    """The cases of a group, then the noise; all results so far in `folder/NAME.json`."""
    rows: list[dict[str, Any]] = []

    def keep(case: str, result: dict[str, Any]) -> None:
        rows.append({"case": f"{name} {case}", **result})
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=1))

    cases = GROUPS[name]
    if quick:
        cases = [Case(50), Case(37, "packed", normalisation="open")] if device == "cpu" else cases[:3]
    for case in cases:
        if time.time() > until:
            keep(str(case), {"passed": None, "left_out": "no time"})
            continue
        try:
            keep(str(case), compare(name, case, device))
        except Exception:
            keep(str(case), {"passed": False, "error": traceback.format_exc()[-3000:]})
    if name.startswith("fp32-64-contribution"):
        try:
            keep("noise", {"passed": noise_agrees(device)})
        except Exception:
            keep("noise", {"passed": False, "error": traceback.format_exc()[-3000:]})


def compare(name: str, case: Case, device: str) -> dict[str, Any]:
    kind, dim, family = name.split("-")[:3]
    backend = "blockwise" if device == "cpu" and kind == "bf16" else "triton"  # interpreted bfloat16 is not right
    began = time.time()
    problem = Problem(case, family, FLOATS[kind], int(dim) if device == "cuda" else 16, device)
    found, again = problem.run(backend), problem.run(backend)
    exact, undecided = problem.exact()
    second = problem.run("blockwise") if case.length <= 1000 else None
    opened = float(exact["edges"][..., 1].sum())
    slack = 3 * (undecided / max(opened, 1.0)) ** 0.5
    # The weight of a single key is 1 whatever it is, so at T = 1 some gradients are zero: what is left of terms that
    # cancel is compared with the values' gradient, which is of their size.
    size = float(exact["value"].double().norm())

    def distance(found: Tensor, exact: Tensor) -> float:
        found, exact = found.double(), exact.double()
        norm = float(exact.norm())
        return float((found - exact).norm()) / (norm if norm > 1e-9 * size else size)

    errors = {key: distance(found[key], exact[key]) for key in found}
    allowed = {key: ALLOWED[kind] + slack for key in found}
    # Sums of terms of both signs: their rounding is relative to the terms.
    allowed |= {key: allowed[key] * 5 for key in ("cutoff", "offset") if key in allowed}
    repeats = all(torch.equal(found[key], again[key]) for key in found)
    return {
        "passed": repeats and all(errors[key] <= allowed[key] for key in errors),
        "errors": errors,
        "allowed": allowed,
        "blockwise_errors": None if second is None else {key: distance(second[key], exact[key]) for key in second},
        "gates_that_differ": int((found["edges"][..., 1] - exact["edges"][..., 1]).abs().sum()),
        "undecided": undecided,
        "open": int(opened),
        "allowed_edges": int(exact["edges"][..., 2].sum()),
        "repeats": repeats,
        "backend": backend,
        "seconds": round(time.time() - began, 2),
    }


class Problem:
    """Inputs of one case, exact in the kernels' type."""

    def __init__(self, case: Case, family: str, dtype: torch.dtype, dim: int, device: str):
        generator = torch.Generator().manual_seed(case.length)

        def normal(*shape: int) -> Tensor:  # (B, H, T, D) as projections come: (B, T, H, D) in memory
            drawn = torch.randn(shape[0], shape[2], shape[1], shape[3], generator=generator)
            return drawn.to(device, dtype).transpose(1, 2)

        self.case, self.dtype = case, dtype
        batch, length = case.batch, case.length
        self.query = normal(batch, case.heads, length, dim)
        self.key, self.value = (normal(batch, case.kv_heads, length, dim) for _ in range(2))
        self.d_output = normal(batch, length, case.heads, dim).contiguous()
        self.d_expected = torch.randn(batch, case.heads, generator=generator).to(device)
        self.seeds = torch.randint(2**63 - 1, (batch,), generator=generator).to(device) if case.sampled else None
        self.mask = mask_of(case, device)
        self.scaling = 2.0 * dim**-0.5
        config = GateConfig.of({"family": family, "normalisation": case.normalisation})
        self.gate: Gate
        self.offset: Tensor | None = None
        if family == "contribution":
            self.gate = GivenOffset(config, case.heads).to(device)
            self.offset = ContributionGate.key_offset(self.gate, self.value).detach()
        else:
            self.gate = build_gate(config, case.heads).to(device)
        # Cutoffs at which about half of the edges of a long row are open.
        middle = 0.0 if family == "logit" else -float(torch.tensor(float(length)).log()) - 1.5
        shift = (dim**0.5 if family == "contribution" else 1.0) ** 0.5
        middle += float(torch.tensor(shift).log()) * 2 if family == "contribution" else 0.0
        self.gate.set_cutoff((middle + 0.3 * torch.randn(case.heads, generator=generator)).to(device))

    def inputs(self, dtype: torch.dtype) -> dict[str, Tensor]:
        found = {"query": self.query, "key": self.key, "value": self.value}
        found = {name: x.detach().to(dtype).requires_grad_() for name, x in found.items()}
        wide = torch.promote_types(dtype, torch.float32)
        if self.offset is not None:
            found["offset"] = self.offset.to(wide).requires_grad_()
        return found

    def run(self, backend: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        inputs = self.inputs(dtype or self.dtype)
        gate = self.gate.double() if dtype is torch.float64 else self.gate.float()
        if self.offset is not None:
            gate.given = inputs["offset"]  # type: ignore[assignment]
        keys = {"scaling": self.scaling, "seeds": self.seeds} | ({} if backend == "reference" else {"backend": backend})
        operator: Any = reference if backend == "reference" else gated_attention
        output, edges = operator(inputs["query"], inputs["key"], inputs["value"], self.mask, gate, **keys)
        (cutoff,) = gate.parameters()
        gradients = torch.autograd.grad(
            (output, edges[..., 0]),
            (*inputs.values(), cutoff),
            (self.d_output.to(output.dtype), self.d_expected.to(edges.dtype)),
        )
        return {"output": output.detach(), "edges": edges.detach()} | dict(
            zip((*inputs, "cutoff"), gradients, strict=True)
        )

    def exact(self) -> tuple[dict[str, Tensor], int]:
        """The reference in float64, and the number of allowed edges next to their threshold."""
        found = self.run("reference", torch.float64)
        with torch.no_grad():
            undecided = 0
            offset = None if self.offset is None else self.offset.double()
            allowed = self.mask.dense()
            logits = attention_logits(self.query.double(), self.key.double(), scaling=self.scaling, softcap=None)
            logits = logits.masked_fill_(~allowed, torch.finfo(logits.dtype).min)
            z = self.gate(logits, torch.logsumexp(logits, dim=-1, keepdim=True), offset)
            del logits
            if self.seeds is None:
                near = z.abs() < 4 * MARGIN
            else:
                size = self.case.length
                near = (noise.uniform(self.seeds, self.case.heads, (0, size), (0, size)) - z.sigmoid()).abs() < MARGIN
            undecided = int((near & allowed).sum())
        return found, undecided


def mask_of(case: Case, device: str) -> EdgeMask:
    causal = EdgeMask.causal(case.length, case.length, device)
    index = torch.arange(case.length, dtype=torch.int32, device=device)[None]
    if case.mask == "window":
        return EdgeMask((causal.stop - 200).clamp_min(0), causal.stop, case.length)
    if case.mask == "packed":  # documents of 100, differently in each sequence
        shift = 13 * torch.arange(case.batch, device=device, dtype=torch.int32)[:, None]
        return causal.within_documents(((index + shift) % 100).long())
    if case.mask == "padded":  # the last sequence lacks its first 33 keys, so that its first rows see nothing
        start = torch.zeros(case.batch, case.length, dtype=torch.int32, device=device)
        start[-1] = 33
        return EdgeMask(start, torch.maximum(causal.stop, start), case.length)
    return causal


def noise_agrees(device: str) -> bool:
    from kernel_noise import kernel_uniform

    seeds = torch.tensor([0, 2**63 - 2, 0x0123456789ABCDEF], device=device)
    agrees = True
    for row, key in ((0, 0), (5, 48), (100_003, 2**20 + 16)):
        expected = noise.uniform(seeds, 5, (row, row + 64), (key, key + 64))
        agrees &= torch.equal(kernel_uniform(seeds, 5, row, key), expected)
    return agrees
