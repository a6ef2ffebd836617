"""Calibrated cutoffs: a sparse start without training.

The cutoffs close the edges that cost least. With the gates as variables, the KL divergence from the base model is zero
and flat at the start, so to second order it is half the Fisher information of what is removed. One backward pass of the
log likelihood of labels *sampled from the model itself* gives an unbiased estimate of its diagonal: with g_i the
gradient at a head's output o_i, an edge's effect is p_ij (g_i . v_j), and closing every edge of a row whose score is
below a cutoff c costs

    KL_h(c)  ~  1/2 sum_i ( sum_{j: score_ij <= c} p_ij g_i . v_j )^2          per head h

Gates that are `centered` first take the mean of their heads' outputs over the batches; v_j is then a value's deviation
from it.

All heads share a price mu per edge. Each takes the cutoff that minimises KL_h(c) + mu edges_h(c), and mu is bisected
until the requested edge fraction (counted) or KL (measured) is met.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_sparse.attention.bridge import attending, attention_modules, dense
from lit_sparse.attention.dense_attention import dense_attention, measure_centers
from lit_sparse.attention.edges import edge_counts
from lit_sparse.attention.masks import allowed_edges
from lit_sparse.common.modes import evaluating
from lit_sparse.data.base import Batch
from lit_sparse.objective.losses import IGNORED, token_losses
from lit_sparse.training.start.sensitivity import LEVELS, LayerSensitivity

_ROWS = 1 << 10  # tokens whose labels are drawn together
_MEASUREMENTS = 6  # forward passes over the batches, to meet a KL


@dataclass(frozen=True)
class Calibration:
    """Target of a calibrated start: exactly one of edge_fraction and kl.

    Args:
        edge_fraction: open edges over allowed edges, in (0, 1].
        kl: KL divergence from the base model in nats per token, > 0.
        train_from_kl: after the start was measured and reported, close more edges, up to this KL, and train from
            there. Edges that calibration closes cost no training steps. None trains from the start itself.

    Raises:
        ValueError: both or neither of edge_fraction and kl are given, or a number is out of its range.
    """

    edge_fraction: float | None = None
    kl: float | None = None
    train_from_kl: float | None = None

    def __post_init__(self) -> None:
        if (self.edge_fraction is None) == (self.kl is None):
            raise ValueError("calibration needs exactly one of edge_fraction and kl")
        if self.edge_fraction is not None and not 0 < self.edge_fraction <= 1:
            raise ValueError(f"calibration edge_fraction must lie in (0, 1], got {self.edge_fraction}")
        if self.kl is not None and not self.kl > 0:
            raise ValueError(f"calibration kl must be positive, got {self.kl}")
        if self.train_from_kl is not None and not self.train_from_kl > 0:
            raise ValueError(f"calibration train_from_kl must be positive, got {self.train_from_kl}")


@dataclass(frozen=True)
class Calibrated:
    """Edge fraction and KL reached on the calibration batches, with deterministic gates."""

    edge_fraction: float
    kl: float


Progress = Callable[[int, int], None]
"""Called with (steps done, all steps)."""


def calibrate(
    model: nn.Module,
    batches: Sequence[Batch],
    target: Calibration,
    *,
    on_progress: Progress = lambda done, total: None,
) -> Calibrated:
    """Sets every gate's cutoff so that the sparsified model meets `target` on `batches`.

    Args:
        model: a sparsified model. Its weights and mode are not changed.
        batches: dicts with input_ids, position_ids and labels, (B, T) each. A few thousand tokens suffice.
    """
    total = len(batches) + _MEASUREMENTS
    sensitivity = Sensitivity(model, batches, lambda done, _: on_progress(done, total))
    reached = sensitivity.apply(target, lambda done, _: on_progress(len(batches) + done, total))
    on_progress(total, total)
    return reached


class Sensitivity:
    """Cost of closing edges in every head, measured once. `apply` then sets cutoffs for any target.

    Args:
        model: a sparsified model. Its weights and mode are not changed.
        batches: see `calibrate`.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch], on_progress: Progress = lambda done, total: None):
        self.model = model
        self.batches = batches
        self.tokens = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
        generator = torch.Generator().manual_seed(0)
        with evaluating(model):
            measure_centers(model, batches)
        with evaluating(model), _measuring(model) as layers:
            for index, batch in enumerate(batches):
                _sensitivity_pass(model, batch, generator)
                on_progress(index + 1, len(batches))
        self.layers = layers
        self.closable = [layer for layer in layers if layer.gate.closable]
        # (heads of all these layers, levels), where the search for a price reads them without waiting for a GPU
        nothing = torch.zeros(0, LEVELS, dtype=torch.float64)
        self._kl = torch.cat([nothing, *(layer.kl.cpu() for layer in self.closable)])
        self._edges = torch.cat([nothing, *(layer.edges.cpu() for layer in self.closable)])

    def apply(self, target: Calibration, on_progress: Progress = lambda done, total: None) -> Calibrated:
        """Sets the cutoffs for a target and returns what is reached on the batches."""
        with evaluating(self.model):
            if target.edge_fraction is not None:
                wanted = target.edge_fraction * sum(float(layer.allowed) for layer in self.layers)
                wanted -= sum(float(layer.allowed) for layer in self.layers if not layer.gate.closable)
                price = _price(lambda price: self._edges_at(price) <= wanted)
                # One step beyond: the cheapest price at which no more edges are open than wanted.
                return self._set(price * (1 + 1e-6))
            assert target.kl is not None
            return self._search(target.kl, on_progress)

    def _search(self, target: float, on_progress: Progress) -> Calibrated:
        """Sets the highest price whose *measured* KL stays within the target. The estimate guides the search. A few
        measurements correct its error, the effect of closing all heads together beyond the sum over heads."""
        predicted, best = target, (0.0, 0.0)  # (price, measured KL); price 0 closes nothing that costs anything
        done = 0
        while done < _MEASUREMENTS - 1 or (best[1] == 0.0 and done < 4 * _MEASUREMENTS):
            price = _price(lambda price: self._kl_at(price) > predicted)  # noqa: B023
            result = self._set(price)
            done += 1
            on_progress(min(done, _MEASUREMENTS), _MEASUREMENTS)
            if best[1] < result.kl <= target:
                best = price, result.kl
            if 0.85 * target <= result.kl <= target:
                return result
            # Aim below the target: only KL within it counts.
            predicted *= min(max(0.92 * target / max(result.kl, 1e-12), 0.1), 10.0)
        return self._set(best[0])

    def _levels_at(self, price: float) -> Tensor:
        """Cutoff level of each head at a price."""
        return (self._kl + price * self._edges).argmin(dim=-1, keepdim=True)

    def _edges_at(self, price: float) -> float:
        """Number of open edges at a price, over all heads and batches."""
        return float(self._edges.gather(-1, self._levels_at(price)).sum())

    def _kl_at(self, price: float) -> float:
        """Estimated KL at a price, in nats per token, summed over heads."""
        return float(self._kl.gather(-1, self._levels_at(price)).sum()) / self.tokens

    def _set(self, price: float) -> Calibrated:
        heads = [layer.gate.num_heads for layer in self.closable]
        for layer, level in zip(self.closable, self._levels_at(price).squeeze(-1).split(heads), strict=True):
            layer.set_cutoffs(level)
        return measure(self.model, self.batches)


def _price(is_high: Callable[[float], bool]) -> float:
    """The largest price per edge for which `is_high` does not hold yet (it holds from some price on)."""
    low, high = -40.0, 20.0  # log price
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if is_high(math.exp(middle)) else (middle, high)
    return math.exp(low)


@contextmanager
def _measuring(model: nn.Module) -> Iterator[list[LayerSensitivity]]:
    """Context in which a backward pass through the model adds to the layers' sensitivities."""
    modules = attention_modules(model)
    layers = {id(module): LayerSensitivity(module) for module in modules}

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        mask = allowed_edges(attention_mask, query.shape[2], key.shape[2], query.device)
        softcap, scaling = kwargs.get("softcap"), kwargs.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        output = dense_attention(query, key, value, mask, scaling, softcap)
        layer = layers[id(module)]
        q, k, v = query.detach(), key.detach(), layer.gate.deviation(value.detach())
        output.register_hook(lambda g: layer.add(q, k, v, mask, scaling, softcap, g))
        return output, None

    name = "lit_sparse_sensitivity"
    with attending(model, name, attend):
        yield list(layers.values())


def _sensitivity_pass(model: nn.Module, batch: Batch, generator: torch.Generator) -> None:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            embeds = (
                model.get_input_embeddings()(  # type: ignore[operator]
                    batch["input_ids"]
                )
                .detach()
                .requires_grad_()
            )
            logits = model(inputs_embeds=embeds, position_ids=batch["position_ids"], use_cache=False).logits
            logits = logits[batch["labels"] != IGNORED]
            with torch.no_grad():
                draws = torch.rand(len(logits), 1, generator=generator).to(logits.device)
                sampled = torch.cat(
                    [_drawn(some, draw) for some, draw in zip(logits.split(_ROWS), draws.split(_ROWS), strict=True)]
                )
            torch.nn.functional.cross_entropy(logits, sampled, reduction="sum").backward()
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _drawn(logits: Tensor, draws: Tensor) -> Tensor:
    """Labels (N,) drawn from softmax(logits) with uniform numbers (N, 1)."""
    return (logits.float().softmax(-1).cumsum(-1) < draws).sum(-1).clamp_max(logits.shape[-1] - 1)


@torch.no_grad()
def measure(model: nn.Module, batches: Sequence[Batch]) -> Calibrated:
    """Edge fraction, and KL from the base model (the same weights with dense attention), at the present cutoffs."""
    kl = tokens = opened = allowed = 0.0
    for batch in batches:
        inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
        with dense(model):
            base = model(**inputs).logits
        sparse = model(**inputs, output_attentions=True)
        losses = token_losses(sparse.logits, base, batch["labels"])
        kl += float(losses.kl.sum())
        tokens += float(losses.tokens())
        edges = edge_counts(sparse.attentions)
        opened += float(edges.opened.sum())
        allowed += float(edges.allowed.sum())
    return Calibrated(edge_fraction=opened / allowed, kl=kl / tokens)
