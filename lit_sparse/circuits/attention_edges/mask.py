"""A circuit learnt as a mask: as few edges as possible subject to a goal, by the project's own constrained objective.

Every open edge of a prompt has a logit x; a pass keeps it with probability sigmoid(x), drawn with a straight-through
binary concrete gate (arXiv 1611.00712), and

    minimise log(1 + sum sigmoid(x))    subject to    E[loss] <= tolerance      (`Lagrangian`, a prompt each)

as post-training does with the model's gates. Edge pruning by learnt masks: arXiv 2406.16778 (component edges of a task);
here they are attention edges of single prompts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lit_sparse.circuits.attention_edges.edges import EdgeList
from lit_sparse.circuits.attention_edges.goals import Goal
from lit_sparse.circuits.attention_edges.passes import Off, Passes
from lit_sparse.objective.constraint import Constraint
from lit_sparse.objective.lagrangian import Lagrangian
from lit_sparse.objective.multiplier import Geco


@dataclass(frozen=True)
class Learning:
    steps: int = 60
    samples: int = 4
    rate: float = 0.25
    start: float = 2.5
    temperature: float = 0.5
    margin: float = 0.3
    relaxation: float = 1.0
    multiplier_rate: float = 0.15
    edge_weight: float = 0.3
    initial: float = 5.0


def learn(
    passes: Passes,
    edges: EdgeList,
    goal: Goal,
    off: Off = "mean",
    learning: Learning = Learning(),
    *,
    seed: int = 0,
    advance: Callable[[int], None] = lambda steps: None,
) -> Float[Tensor, " edge"]:
    """The logit of every listed edge."""
    prompts = len(passes.full.logits)
    device = passes.full.logits.device
    generator = torch.Generator(device).manual_seed(seed)
    logits = torch.full((len(edges),), learning.start, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=learning.rate, betas=(0.8, 0.95))
    objectives = [
        Lagrangian(Constraint(goal.tolerance), multiplier=Geco(initial=learning.initial, rate=learning.multiplier_rate, smoothing=0.0),
                   margin=learning.margin, relaxation=learning.relaxation)
        for _ in range(prompts)
    ]
    log = []
    for step in range(learning.steps):
        uniform = torch.rand(learning.samples, len(edges), generator=generator, device=device).clamp(1e-6, 1 - 1e-6)
        soft = torch.sigmoid((logits + torch.logit(uniform)) / learning.temperature)
        kept = ((soft > 0.5).to(soft.dtype) - soft).detach() + soft
        losses = goal.loss(passes.logits(edges.switches(kept), off)).mean(0)
        expected = logits.new_zeros(prompts).index_add(0, edges.prompt, torch.sigmoid(logits))
        total = logits.new_zeros(())
        for prompt, objective in enumerate(objectives):
            weight = objective.weight(device)
            value = torch.relu(losses[prompt] / goal.tolerance - 1 + learning.margin)
            lw = float(weight)
            total = total + (learning.edge_weight * torch.log1p(expected[prompt]) + lw * value) / (learning.edge_weight + lw)
        (logits.grad,) = torch.autograd.grad(total, logits)
        optimizer.step()
        for prompt, objective in enumerate(objectives):
            objective.observe(losses[prompt].detach(), torch.tensor(1))
            objective.step(step + 1, (step + 1) / learning.steps, lambda x: x)
        advance(step + 1)
    return logits.detach()
