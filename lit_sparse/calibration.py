"""Calibrated cutoffs: a sparse start without training.

Which edges cost least? With the gates as variables, the KL divergence from the base model is zero and flat at the
start, so to second order it is half the Fisher information of what is removed. One backward pass of the log
likelihood of labels *sampled from the model itself* gives an unbiased estimate of its diagonal: with g_i the
gradient at a head's output o_i, an edge's effect is p_ij (g_i . v_j), and closing every edge of a row whose score is
below a cutoff c costs

    KL_h(c)  ~  1/2 sum_i ( sum_{j: score_ij <= c} p_ij g_i . v_j )^2          per head h

Gates that are `centered` first take the mean of their heads' outputs over the batches; v_j is then a value's deviation
from it.

Heads then share a price mu per edge: each takes the cutoff that minimises KL_h(c) + mu edges_h(c), and mu is
bisected until the requested edge fraction (counted) or KL (measured) is met.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from lit_sparse.attention.bridge import IMPLEMENTATION, attention_modules, dense, set_implementation
from lit_sparse.attention.edges import edge_counts
from lit_sparse.attention.gates import Gate
from lit_sparse.attention.masks import allowed_edges, boolean_mask
from lit_sparse.attention.reference import attention_logits
from lit_sparse.centers import dense_attention, measure_centers
from lit_sparse.objective.losses import IGNORED, token_losses

Batch = dict[str, Tensor]
_LEVELS = 40  # cutoffs tried per head
_MEASUREMENTS = 6  # forward passes over the batches, to meet a KL


@dataclass(frozen=True)
class Calibration:
    """What a calibrated start should look like: exactly one of edge_fraction and kl.

    Args:
        edge_fraction: open edges over allowed edges, in (0, 1].
        kl: KL divergence from the base model in nats per token, > 0.
        train_from_kl: after the start was measured and reported, close more edges, up to this KL, and train from
            there: what calibration can find costs no training step. None trains from the start itself.
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
    """What was reached on the calibration batches, deterministic gates."""

    edge_fraction: float
    kl: float


Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


def calibrate(
    model: nn.Module,
    batches: Sequence[Batch],
    target: Calibration,
    *,
    on_progress: Progress = lambda done, total: None,
) -> Calibrated:
    """Sets every gate's cutoff so that the sparsified model meets `target` on `batches`.

    Args:
        model: a sparsified model; weights and mode are left as they are.
        batches: dicts with input_ids, position_ids and labels, (B, T) each; a few thousand tokens do.
    """
    total = len(batches) + _MEASUREMENTS
    sensitivity = Sensitivity(model, batches, lambda done, _: on_progress(done, total))
    reached = sensitivity.apply(target, lambda done, _: on_progress(len(batches) + done, total))
    on_progress(total, total)
    return reached


class Sensitivity:
    """What closing edges costs in every head, measured once; `apply` then sets cutoffs for any target.

    Args:
        model: a sparsified model; weights and mode are left as they are.
        batches: as for `calibrate`.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch], on_progress: Progress = lambda done, total: None):
        self.model = model
        self.batches = batches
        self.tokens = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
        generator = torch.Generator().manual_seed(0)
        with _evaluating(model):
            measure_centers(model, batches)
        with _evaluating(model), _measuring(model) as layers:
            for index, batch in enumerate(batches):
                _sensitivity_pass(model, batch, generator)
                on_progress(index + 1, len(batches))
        self.layers = layers
        self.closable = [layer for layer in layers if layer.gate.closable]

    def apply(self, target: Calibration, on_progress: Progress = lambda done, total: None) -> Calibrated:
        """Sets the cutoffs and returns what they give on the batches."""
        with _evaluating(self.model):
            if target.edge_fraction is not None:
                wanted = target.edge_fraction * sum(layer.allowed for layer in self.layers)
                wanted -= sum(layer.allowed for layer in self.layers if not layer.gate.closable)
                price = _price(lambda price: self._edges_at(price) <= wanted)
                # One step beyond: the cheapest price at which no more edges are open than wanted.
                return self._set(price * (1 + 1e-6))
            assert target.kl is not None
            return self._search(target.kl, on_progress)

    def _search(self, target: float, on_progress: Progress) -> Calibrated:
        """The most expensive price whose *measured* KL stays within the target. The estimate leads; its error (what
        closing all heads at once does beyond the sum over heads) is corrected by measuring a few times."""
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

    def _edges_at(self, price: float) -> float:
        return sum(layer.open_at(price) for layer in self.closable)

    def _kl_at(self, price: float) -> float:
        return sum(layer.kl_at(price) for layer in self.closable) / self.tokens

    def _set(self, price: float) -> Calibrated:
        for layer in self.closable:
            layer.apply_price(price)
        return measure(self.model, self.batches)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


def _price(is_high: Callable[[float], bool]) -> float:
    """The largest price per edge for which `is_high` does not hold yet (it holds from some price on)."""
    low, high = -40.0, 20.0  # log price
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if is_high(math.exp(middle)) else (middle, high)
    return math.exp(low)


class _LayerSensitivity:
    """Per head and cutoff level of one layer: the KL estimate and the edges left, summed over batches."""

    def __init__(self, module: Any):
        self.gate: Gate = module.edge_gate
        self.cutoffs: Tensor | None = None  # (H, levels), ascending; the first closes nothing

    def add(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, softcap, gradient):
        """Shapes as in `gated_attention`, values as `Gate.deviation` gives them; gradient (B, T, H, Dv) of the log
        likelihood."""
        logits = attention_logits(query, key, scaling=scaling, softcap=softcap)
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
        normaliser = logits.logsumexp(-1, keepdim=True)
        groups = query.shape[1] // key.shape[1]
        g = torch.matmul(gradient.transpose(1, 2), value.repeat_interleave(groups, dim=1).transpose(-1, -2))
        effect = torch.exp(logits - normaliser) * g * mask  # (B, H, T, S)
        score = logits - normaliser if self.gate.form().normalised else logits
        if (offset := self.gate.key_offset(value)) is not None:
            score = score + offset.repeat_interleave(groups, dim=1)[:, :, None]
        heads = score.shape[1]
        mask = mask.expand_as(score)
        if self.cutoffs is None:
            self.cutoffs = torch.stack([_levels(score[:, head][mask[:, head]]) for head in range(heads)])
            self.kl = torch.zeros_like(self.cutoffs)
            self.edges = torch.zeros_like(self.cutoffs)
            self.allowed = 0.0
        levels = self.cutoffs.shape[1]
        flat = score.transpose(0, 1).reshape(heads, -1).contiguous()
        # An edge is closed at level k when its score <= cutoff_k, that is from its bucket on.
        bucket = torch.searchsorted(self.cutoffs, flat).view(heads, score.shape[0], *score.shape[2:]).transpose(0, 1)
        rows = effect.new_zeros(*effect.shape[:-1], levels + 1).scatter_add_(-1, bucket, effect)
        closed_effect = rows.cumsum(-1)[..., :levels]
        closed = torch.zeros_like(rows).scatter_add_(-1, bucket, mask.to(rows.dtype)).sum((0, 2)).cumsum(-1)
        self.kl += 0.5 * closed_effect.square().sum(dim=(0, 2))
        self.edges += closed[:, -1:] - closed[:, :levels]
        self.allowed += float(closed[:, -1].sum())

    def _choice(self, price: float) -> Tensor:
        assert self.cutoffs is not None
        return (self.kl + price * self.edges).argmin(dim=-1, keepdim=True)

    def open_at(self, price: float) -> float:
        """Edges left at a price, over all heads and batches."""
        return float(self.edges.gather(-1, self._choice(price)).sum())

    def kl_at(self, price: float) -> float:
        """Estimated KL at a price, in nats, summed over tokens and heads."""
        return float(self.kl.gather(-1, self._choice(price)).sum())

    def apply_price(self, price: float) -> None:
        assert self.cutoffs is not None
        self.gate.set_cutoff(self.cutoffs.gather(-1, self._choice(price)).squeeze(-1))


def _levels(scores: Tensor) -> Tensor:
    """Cutoffs that leave 1, ..., 0.0003 and none of a head's edges open."""
    ordered = scores.sort().values
    left = torch.logspace(0, -3.5, _LEVELS - 1, dtype=torch.float64)
    index = ((1 - left) * (len(ordered) - 1)).long().to(scores.device)
    cutoffs = ordered[index]
    cutoffs[0] -= 1.0  # below the smallest: all open
    return torch.cat([cutoffs, ordered[-1:] + 1e-3])


@contextmanager
def _measuring(model: nn.Module) -> Iterator[list[_LayerSensitivity]]:
    """Inside, a backward pass through the model adds to the layers' sensitivities."""
    modules = attention_modules(model)
    layers = {id(module): _LayerSensitivity(module) for module in modules}

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask, **kwargs: Any):
        mask = allowed_edges(attention_mask, query.shape[2], key.shape[2], query.device).dense()
        softcap, scaling = kwargs.get("softcap"), kwargs.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        output = dense_attention(query, key, value, mask, scaling, softcap)
        layer = layers[id(module)]
        q, k, v = query.detach(), key.detach(), layer.gate.deviation(value.detach())
        output.register_hook(lambda g: layer.add(q, k, v, mask, scaling, softcap, g))
        return output, None

    name = "lit_sparse_sensitivity"
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, boolean_mask)
    set_implementation(model, name)
    try:
        yield list(layers.values())
    finally:
        set_implementation(model, IMPLEMENTATION)


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
                sampled = (logits.float().softmax(-1).cumsum(-1) < draws).sum(-1).clamp_max(logits.shape[-1] - 1)
            torch.nn.functional.cross_entropy(logits, sampled, reduction="sum").backward()
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@torch.no_grad()
def measure(model: nn.Module, batches: Sequence[Batch]) -> Calibrated:
    """Edges and KL from the base model (the same weights, attending densely) with the cutoffs as they are."""
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
