"""Circuits learnt as masks: as few edges as possible subject to a goal, by the project's own constrained objective.

Every open edge has a logit x. A pass keeps it with probability sigmoid(x), drawn with a straight-through binary
concrete gate (arXiv 1611.00712), and

    minimise log(1 + sum sigmoid(x))    subject to    E[loss] <= tolerance      (`Lagrangian`, one for each prompt)

as post-training does with the model's gates. Learnt masks find smaller circuits than rankings do (arXiv 2406.16778, for
component edges of a task; here they are attention edges of single prompts).

Logits start by rank of sensitivity: the diagonal of the Fisher information of the next token in the switches, all on.
From an uninformed start, learning takes several times as many steps and ends with ten times as many edges.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lit_sparse.circuits.attention_edges.edges import EdgeList
from lit_sparse.circuits.attention_edges.goals import Goal
from lit_sparse.circuits.attention_edges.passes import TOKENS_AT_ONCE, Passes
from lit_sparse.objective.constraint import Constraint
from lit_sparse.objective.lagrangian import Lagrangian
from lit_sparse.objective.multiplier import Geco

DRAWS = 16
"""Number of next tokens over which the Fisher information is averaged."""
_RANK_POWER = 0.2
"""Start logits fall with rank / edges to this power, which is steep at first."""


@dataclass(frozen=True)
class Learning:
    """Settings for learning a mask. Measured on IOI sentences of SmolLM2-135M (benchmarks/RESULTS.md).

    Args:
        steps: number of steps of Adam.
        samples: number of masks drawn in each step.
        rate: learning rate, in logits.
        first, last: logits of the most and the least sensitive edge at the start.
        margin: share of the tolerance that is left unused.
    """

    steps: int = 30
    samples: int = 2
    rate: float = 0.25
    first: float = 1.0
    last: float = -6.0
    margin: float = 0.3


DEFAULT = Learning()


def learn_mask(
    passes: Passes,
    edges: EdgeList,
    goal: Goal,
    learning: Learning = DEFAULT,
    *,
    seed: int = 0,
    advance: Callable[[int], object] | None = None,
) -> Float[Tensor, " edge"]:
    """Learns the logit of every listed edge. Prompts are learnt side by side, each with a mask of its own. Edges that
    are listed once for all prompts are learnt as one mask for the mean loss.

    Args:
        seed: seed of the draws.
        advance: called with 1 after every step.
    """
    device = passes.whole.logits.device
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same masks on every device
    prompts = edges.prompts
    logits = _start(sensitivity(passes, edges, generator), edges, learning).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=learning.rate, betas=(0.9, 0.99))
    objectives = [
        Lagrangian(Constraint(goal.tolerance), multiplier=Geco(initial=5.0, rate=0.15), margin=learning.margin)
        for _ in range(prompts)
    ]
    for step in range(1, learning.steps + 1):
        kept = _draw(logits, learning.samples, generator)
        losses = goal.loss(passes.logits(edges.switches(kept))).mean(0)
        losses = losses.mean(0, keepdim=True) if prompts == 1 else losses
        expected = logits.new_zeros(prompts).index_add(0, edges.prompt, torch.sigmoid(logits))
        total = logits.new_zeros(())
        for objective, loss, count in zip(objectives, losses, expected, strict=True):
            # A goal that is met already gives no gradient, so that only fewer edges improve the loss.
            missing = torch.relu((loss - goal.tolerance) / goal.tolerance + learning.margin)
            total = total + objective.loss(torch.log1p(count), missing, count.new_zeros(()), objective.weight(device))
        (logits.grad,) = torch.autograd.grad(total, logits)
        optimizer.step()
        for objective, loss in zip(objectives, losses.detach(), strict=True):
            objective.observe(loss, torch.ones((), dtype=torch.int64, device=device))
            objective.step(step, step / learning.steps, lambda total: total)
        if advance is not None:
            advance(1)
    return logits.detach()


def sensitivity(
    passes: Passes, edges: EdgeList, generator: torch.Generator, draws: int = DRAWS
) -> Float[Tensor, " edge"]:
    """E[(d log p(y) / d switch)^2] over next tokens y drawn from the whole model. To second order this is twice the KL
    divergence from switching off one edge."""
    switches = torch.ones(1, len(edges), device=passes.whole.logits.device, requires_grad=True)
    log_p = passes.logits(edges.switches(switches)).log_softmax(-1)
    likely = log_p.detach().exp().cpu()
    drawn = torch.multinomial(likely, draws, replacement=True, generator=generator).to(log_p.device)
    picked = log_p.gather(1, drawn).sum(0)
    found = torch.zeros_like(switches[0])
    # Side by side, so that a backward pass reads the weights once for all of them.
    for some in torch.eye(draws).to(log_p).split(max(1, TOKENS_AT_ONCE // passes.ids.numel())):
        (gradients,) = torch.autograd.grad(picked, switches, some, retain_graph=True, is_grads_batched=True)
        found += gradients[:, 0].square().sum(0) / draws
    return found


def _start(scores: Float[Tensor, " edge"], edges: EdgeList, learning: Learning) -> Float[Tensor, " edge"]:
    """Start logits, which fall with an edge's rank in its prompt."""
    logits = torch.empty_like(scores)
    for prompt in range(edges.prompts):
        (places,) = (edges.prompt == prompt).nonzero(as_tuple=True)
        order = places[scores[places].argsort(descending=True)]
        rank = torch.arange(len(order), device=order.device) / max(1, len(order))
        logits[order] = learning.first + (learning.last - learning.first) * rank**_RANK_POWER
    return logits


def _draw(logits: Float[Tensor, " edge"], samples: int, generator: torch.Generator) -> Float[Tensor, "sample edge"]:
    uniform = torch.rand(samples, len(logits), generator=generator).clamp(1e-6, 1 - 1e-6).to(logits.device)
    soft = torch.sigmoid(logits + torch.logit(uniform))
    return ((soft > 0.5).to(soft.dtype) - soft).detach() + soft
