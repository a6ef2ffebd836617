"""What each protocol gives on prompts of one length, in one model."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.attention_edges.edges import EdgeList
from lit_sparse.circuits.attention_edges.goals import Difference, Distribution
from lit_sparse.circuits.attention_edges.mask import learn_mask
from lit_sparse.circuits.attention_edges.minimal import Ablations, shortest_prefix
from lit_sparse.circuits.attention_edges.passes import Means, Passes
from lit_sparse.circuits.attention_edges.ranking import crossing, gradient_scores
from lit_sparse.circuits.attention_edges.search import Level, find, find_each, listed
from lit_sparse.circuits.prompts import answer_mask
from lit_sparse.circuits.tasks import Pair

Row = dict[str, Any]

ELSEWHERE = 4
"""Other sentences of the template that a circuit is tried on."""
AVERAGED = 8
"""Sentences of the template over which a ranking's scores are averaged."""


@dataclass(frozen=True)
class Setting:
    """What all groups of a task share.

    others: pairs that are not measured, of all templates.
    means: heads' means, by what they were taken over.
    control: a token that is no answer.
    """

    stack: Stack
    others: list[Pair]
    means: dict[str, Means]
    control: int

    def like(self, pair: Pair) -> list[Pair]:
        """Others of the same template and length."""
        return [other for other in self.others if kind(other) == kind(pair)]

    def rephrased(self, pair: Pair) -> list[Pair]:
        """One other of each other template."""
        return list({other.template: other for other in self.others if other.template != pair.template}.values())


def kind(pair: Pair) -> tuple[str, int]:
    """Edges of pairs of one kind stand at the same positions."""
    return pair.template, len(pair.clean)


class Group:
    """Prompts of one length."""

    def __init__(self, setting: Setting, pairs: list[Pair]):
        self.setting, self.stack, self.pairs = setting, setting.stack, pairs
        self.ids = torch.tensor([pair.clean for pair in pairs])
        self.right, self.wrong = (
            torch.cat([answer_mask(getattr(pair, side), self.stack.vocabulary) for pair in pairs])
            for side in ("answers", "wrong")
        )

    def measure(self, level: Level, what: str, over: str) -> list[Row]:
        """A row a prompt. One that the model gets wrong has no circuit (but for "uncut", of what a model says, right or
        wrong), nor, of what is about f, one that it gets no better than without attention.

        Args:
            what: a goal of learnt masks ("distribution", "difference"), "control", "template", "uncut", or a ranking.
            over: what an edge passes that is off.
        """
        passes = self.passes(over)
        goal = self.difference(passes)
        rows: list[Row] = [
            {
                "tokens": self.ids.shape[1],
                "open": sum(int(layer[number].sum()) for layer in passes.open),
                "whole": round(float(goal.whole[number]), 3),
                "ablated": round(float(goal.ablated[number]), 3),
            }
            for number in range(len(self.pairs))
        ]
        if what == "template":
            found = self.template(passes)
            return [row | found for row in rows]
        if what == "uncut":
            return [row | self.uncut(passes.only(number)) for number, row in enumerate(rows)]
        about_f = what in ("difference", "control")
        fair = [n for n, row in enumerate(rows) if row["whole"] > (max(0.0, row["ablated"]) if about_f else 0.0)]
        for number, row in enumerate(rows):
            if number not in fair:
                row["wrong"] = True
        if not fair:
            return rows
        some = Group(self.setting, [self.pairs[number] for number in fair])
        for number, row in zip(fair, some.circuits(level, what, over), strict=True):
            rows[number] |= row
        return rows

    def circuits(self, level: Level, what: str, over: str) -> list[Row]:
        """A row a prompt, all of which the model gets right."""
        if what in ("difference", "distribution", "another seed"):
            return self.masks(level, what, over, seed=int(what == "another seed"))
        passes = self.passes(over)
        goal = self.difference(passes)
        measure: Callable[[Passes, Difference, int], Row] = {
            "control": self.other_answer,
            "exact": self.exact,
            **dict.fromkeys(("attribution", "gradient", "averaged"), lambda *a: self.ranking(*a, level, what)),
        }[what]
        return [measure(passes.only(number), goal.only(number), number) for number in range(len(self.pairs))]

    def passes(self, over: str) -> Passes:
        if over == "zero":
            return Passes(self.stack, self.ids, "zero")
        if over == "corrupted":
            corrupted = torch.tensor([pair.corrupted for pair in self.pairs])
            return Passes(self.stack, self.ids, "corrupted", corrupted=corrupted)
        return Passes(self.stack, self.ids, "mean", means=self.setting.means[over])

    def difference(self, passes: Passes) -> Difference:
        return Difference(self.right, self.wrong, passes.whole.logits, passes.ablated())

    def goal(self, what: str, passes: Passes) -> Difference | Distribution:
        return self.difference(passes) if what == "difference" else Distribution(passes.whole.logits)

    # --- learnt masks -------------------------------------------------------------------------------------------

    def masks(self, level: Level, what: str, over: str, seed: int) -> list[Row]:
        """A circuit's size, what is lost with it, without it, by zero ablation, and on other sentences."""
        passes = self.passes(over)
        goal = self.goal(what, passes)
        started = time.perf_counter()
        found = find_each(passes, goal, level=level, seed=seed)
        seconds = (time.perf_counter() - started) / len(found)
        zero = self.passes("zero")
        rows = []
        for number, one in enumerate(found):
            assert one is not None, "all edges together meet the goal"
            alone, mine = passes.only(number), goal.only(number)
            kept = one.ablations.edges.switches(one.kept.float()[None])
            without = [edges.float()[None] * (1 - some) for edges, some in zip(alone.open, kept, strict=True)]
            with torch.no_grad():
                losses = {
                    "loss": mine.loss(alone.logits(kept)),
                    "loss_without": mine.loss(alone.logits(without)),
                    "loss_ablated": mine.loss(alone.ablated()),
                    "loss_zero": mine.loss(zero.only(number).logits(kept)),
                }
            row: Row = {"edges": one.size, "seconds": round(seconds, 1), "kept": sorted(one.edges())}
            row |= {name: round(float(loss), 4) for name, loss in losses.items()}
            others = self.setting.like(self.pairs[number])[:ELSEWHERE]
            row["loss_elsewhere"] = [self.elsewhere(kept, other, what, over) for other in others]
            if level == "head":
                others = self.setting.rephrased(self.pairs[number])[:ELSEWHERE]
                row["loss_rephrased"] = [self.elsewhere(kept, other, what, over) for other in others]
            rows.append(row)
        return rows

    def template(self, passes: Passes) -> Row:
        """One circuit by position for all of the prompts, and what it loses on others."""
        found = find(passes, Distribution(passes.whole.logits))
        assert found is not None, "all edges together meet the goal"
        kept = found.ablations.edges.switches(found.kept.float()[None])
        others = self.setting.like(self.pairs[0])[:ELSEWHERE]
        losses = [self.elsewhere(kept, other, "distribution", "everyday") for other in others]
        return {"edges": found.size, "sentences": len(self.pairs), "loss_elsewhere": losses}

    @torch.no_grad()
    def elsewhere(self, kept: list[Tensor], other: Pair, what: str, over: str) -> float:
        """What a circuit's edges, at the same positions, lose on another sentence."""
        some = Group(self.setting, [other])
        passes = some.passes(over)
        return round(float(some.goal(what, passes).loss(passes.logits(kept))), 4)

    def other_answer(self, passes: Passes, goal: Difference, number: int) -> Row:
        """As many nats of log-odds for an answer that has no claim to them."""
        if bool((goal.right | goal.wrong)[0, self.setting.control]):
            return {"edges": None}
        mask = answer_mask([self.setting.control], self.stack.vocabulary)
        found = find(passes, goal.for_another(mask, passes.ablated()))
        return {"edges": None if found is None else found.size}

    def uncut(self, passes: Passes) -> Row:
        """The first edges of a learnt order that keep the next token, before any is taken out."""
        edges, whole = listed(passes), Distribution(passes.whole.logits)
        order = learn_mask(passes, edges, whole).argsort(descending=True)
        kept = shortest_prefix(Ablations(passes, edges, whole), order)
        assert kept is not None, "all edges together meet the goal"
        return {"edges": int(kept.sum()), "loss_ablated": round(float(whole.loss(passes.ablated())), 4)}

    # --- rankings -----------------------------------------------------------------------------------------------

    def ranking(self, passes: Passes, goal: Difference, number: int, level: Level, score: str) -> Row:
        """By "attribution", the corrupted run's effect on this sentence (the paper's first way, probably); "averaged"
        over the template's sentences (its second); or "gradient", the ablation's own effect to first order."""
        edges = listed(passes, level)
        if score == "gradient":
            scores = gradient_scores(passes, edges, goal.metric)
        elif score == "attribution":
            scores = edges.gathered([layer[number : number + 1] for layer in self.attributions(level)])
        else:
            others = (self.setting.like(self.pairs[number]) or [self.pairs[number]])[:AVERAGED]
            layers = Group(self.setting, others).attributions(level)
            scores = edges.gathered([layer.abs().mean(0, keepdim=True) for layer in layers])
        return self.crossing(passes, edges, goal, scores.abs())

    def exact(self, passes: Passes, goal: Difference, number: int) -> Row:
        """Heads, by what the metric loses when each is taken out for real."""
        heads = listed(passes, "head")
        ablations = Ablations(passes, heads, goal)
        everything = torch.ones(len(heads), dtype=torch.bool)
        return self.crossing(passes, heads, goal, ablations.switched(everything, torch.arange(len(heads))))

    def attributions(self, level: Level) -> list[Tensor]:
        """By layer and prompt, what each edge or head loses of the metric to first order when it passes what it does on
        the corrupted prompt."""
        passes = self.passes("corrupted")
        edges = listed(passes, level)
        scores = gradient_scores(passes, edges, self.difference(passes).metric)
        return [layer[0] for layer in edges.switches(scores[None])]

    def crossing(self, passes: Passes, edges: EdgeList, goal: Difference, scores: Tensor) -> Row:
        """How many of the best "explain 90 %": of the log-odds themselves, as the paper says, and not of what ablation
        takes away."""
        share = goal.only(0)
        share.ablated = torch.zeros_like(share.whole)
        order = scores.argsort(descending=True, stable=True)
        found = crossing(Ablations(passes, edges, share), order, share.tolerance)
        return {"first": found.first, "edges": found.last, "area": round(found.area(), 4)}
