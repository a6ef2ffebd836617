"""Goals that a circuit of a sentence has to meet: it keeps a logit difference, the answer's probability, or the whole
distribution of the next token."""

import math
from abc import ABC, abstractmethod
from copy import copy

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_ROUNDING = 1e-4
"""Relative rounding error of a probability in float32."""


class Goal(ABC):
    """A loss that must stay at or below its tolerance. Each prompt has a loss of its own."""

    tolerance: float

    @abstractmethod
    def loss(self, logits: Float[Tensor, "sample_batch token"]) -> Float[Tensor, "sample batch"]:
        """Loss of each pass, from next-token logits of samples x prompts."""

    @abstractmethod
    def only(self, prompt: int) -> "Goal":
        """The goal of one of the prompts."""


class Distribution(Goal):
    """KL(whole model || circuit) of the next token, in nats.

    Args:
        logits: logits of the whole model.
        tolerance: largest KL divergence, in nats.
    """

    def __init__(self, logits: Float[Tensor, "batch token"], tolerance: float = 0.2):
        self.tolerance = tolerance
        self._whole = logits.log_softmax(-1)

    def loss(self, logits: Float[Tensor, "sample_batch token"]) -> Float[Tensor, "sample batch"]:
        log_p: Tensor = logits.log_softmax(-1).unflatten(0, (-1, len(self._whole)))
        return (self._whole.exp() * (self._whole - log_p)).sum(-1)

    def only(self, prompt: int) -> "Distribution":
        return Distribution(self._whole[prompt : prompt + 1], self.tolerance)


class Probability(Goal):
    """log(p_whole / p_circuit) of one answer, in nats. At or below -log(keep), p_circuit >= keep p_whole. The share
    1 - p_circuit / p_whole says the same, but has no gradient where p_circuit is close to 0.

    Args:
        answers: one token per prompt.
        logits: logits of the whole model.
        keep: share of its probability that the answer has to keep, up to rounding.
    """

    def __init__(self, answers: Int[Tensor, " batch"], logits: Float[Tensor, "batch token"], keep: float = 0.9):
        self.tolerance = max(-math.log(keep), _ROUNDING)
        self._answers = answers[:, None]
        self._whole = logits.log_softmax(-1).gather(1, self._answers)[:, 0]

    def loss(self, logits: Float[Tensor, "sample_batch token"]) -> Float[Tensor, "sample batch"]:
        log_p: Tensor = logits.log_softmax(-1).unflatten(0, (-1, len(self._answers)))
        return self._whole - log_p.gather(2, self._answers.expand(len(log_p), -1, -1))[..., 0]

    def only(self, prompt: int) -> "Probability":
        one = slice(prompt, prompt + 1)
        found = copy(self)
        found._answers, found._whole = self._answers[one], self._whole[one]
        return found


class Difference(Goal):
    """1 - f with f = (m_circuit - m_ablated) / (m_whole - m_ablated), where m is the log-odds of right against wrong
    answers.

    Args:
        right, wrong: masks of the right and of the wrong tokens.
        whole, ablated: logits of the whole model, and of the model with all edges off.
        keep: the smallest f that meets the goal.
    """

    def __init__(
        self,
        right: Bool[Tensor, "batch token"],
        wrong: Bool[Tensor, "batch token"],
        whole: Float[Tensor, "batch token"],
        ablated: Float[Tensor, "batch token"],
        keep: float = 0.9,
    ):
        self.tolerance = 1 - keep
        self.right, self.wrong = right, wrong
        self.whole, self.ablated = self.metric(whole)[0], self.metric(ablated)[0]

    def metric(self, logits: Float[Tensor, "sample_batch token"]) -> Float[Tensor, "sample batch"]:
        """Log-odds of the right answers against the wrong ones, in nats."""
        logits = logits.unflatten(0, (-1, len(self.right)))
        right = logits.masked_fill(~self.right, -torch.inf).logsumexp(-1)
        return right - logits.masked_fill(~self.wrong, -torch.inf).logsumexp(-1)

    def loss(self, logits: Float[Tensor, "sample_batch token"]) -> Float[Tensor, "sample batch"]:
        return (self.whole - self.metric(logits)) / (self.whole - self.ablated)

    def only(self, prompt: int) -> "Difference":
        one = slice(prompt, prompt + 1)
        found = copy(self)
        found.right, found.wrong = self.right[one], self.wrong[one]
        found.whole, found.ablated = self.whole[one], self.ablated[one]
        return found

    def for_another(self, right: Bool[Tensor, "batch token"], ablated: Float[Tensor, "batch token"]) -> "Difference":
        """A control: the same goal for other answers, with the log-odds kept to the same number of nats."""
        other = Difference(right, self.wrong, ablated, ablated, keep=1 - self.tolerance)
        other.whole = self.whole
        nats = self.tolerance * (self.whole - self.ablated)
        other.tolerance = float((nats / (other.whole - other.ablated)).min())
        return other
