"""The toy task of the paper (Figure 1 of arXiv 2512.05865): addition, with one token per character.

A sequence of n digits is `12+34=046`: two summands and the sum with one digit more, all of fixed width and
padded with zeros, T = 3 n + 3 tokens. Only the digits of the sum are scored.
"""

import torch
from jaxtyping import Int, Int64
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lit_sparse.data.base import IGNORE_INDEX, Batch, BatchDataModule, BatchDataset, Splits, require_positive

MAX_DIGITS = 9
"""Pairs are numbered first * 10^n + second in int64, which 9 digits just fit."""


class AdditionTokenizer:
    """Tokenizer of single characters. A digit is its own token id; then come `+` and `=`."""

    tokens: tuple[str, ...] = tuple("0123456789+=")
    """The text of each token id, for the axes of plots."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`.

        Raises:
            ValueError: A character is not in the vocabulary.
        """
        if unknown := sorted(set(text) - set(self.tokens)):
            raise ValueError(f"no token for {unknown}: the vocabulary is {''.join(self.tokens)!r}")
        return [self.tokens.index(character) for character in text]

    def decode(self, ids: Int[Tensor, " time"] | list[int]) -> str:
        """Text of token ids."""
        return "".join(self.tokens[int(index)] for index in ids)

    def to_pretrained(self) -> PreTrainedTokenizerFast:
        """This tokenizer as one of transformers, to be saved with a model."""
        backend = Tokenizer(WordLevel({token: index for index, token in enumerate(self.tokens)}))
        backend.pre_tokenizer = Split("", "isolated")
        backend.decoder = Fuse()
        return PreTrainedTokenizerFast(tokenizer_object=backend)


class AdditionPairs(BatchDataset):
    """Sequences for pairs of summands, made when a batch is requested.

    Args:
        pairs: number of each pair, first * 10^digits + second.
        digits: digits of a summand.
    """

    def __init__(self, pairs: Int64[Tensor, " pair"], digits: int) -> None:
        self.pairs = pairs
        self.digits = digits

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, indices: Int64[Tensor, " batch"]) -> Batch:
        pairs = self.pairs[indices]
        first, second = pairs // 10**self.digits, pairs % 10**self.digits
        plus, equals = (torch.full((len(pairs), 1), token) for token in AdditionTokenizer().encode("+="))
        prompt = torch.cat([_digits(first, self.digits), plus, _digits(second, self.digits), equals], dim=1)
        answer = _digits(first + second, self.digits + 1)
        input_ids = torch.cat([prompt, answer], dim=1)
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        labels[:, prompt.shape[1] - 1 : -1] = answer
        position_ids = torch.arange(input_ids.shape[1]).expand_as(input_ids).contiguous()
        return {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}


class AdditionData(BatchDataModule):
    """Addition of two numbers of n digits, every ordered pair at most once, validation and test held out.

    `12+34` may be trained on while `34+12` is held out.

    Args:
        digits: digits of each summand, 1 to 9.
        batch_size: sequences in a training batch of one device.
        eval_batch_size: sequences in a validation, test or calibration batch of one device.
        held_out: fraction of the pairs never trained on; one half of them is for validation, the other for
            the test.
        max_pairs: all 100^digits pairs are used if they are no more than this (up to 3 digits); otherwise about
            this many are drawn.
        calibration_sequences: training sequences that thresholds are set on.
        seed: decides which pairs are drawn and held out, and the order of training.
        num_workers: processes that load batches; 0 loads them in the main process.

    Raises:
        ValueError: A setting is out of its range, or `held_out` leaves a split empty.
    """

    task_name = "addition"

    def __init__(
        self,
        digits: int = 2,
        batch_size: int = 256,
        eval_batch_size: int = 2048,
        held_out: float = 0.1,
        max_pairs: int = 1_000_000,
        calibration_sequences: int = 256,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            calibration_sequences=calibration_sequences,
            seed=seed,
            num_workers=num_workers,
        )
        require_positive(max_pairs=max_pairs)
        if not 1 <= digits <= MAX_DIGITS:
            raise ValueError(f"digits must be 1 to {MAX_DIGITS}, not {digits}")
        if not 0 < held_out < 1:
            raise ValueError(f"held_out is a fraction between 0 and 1, not {held_out}")
        self.digits = digits
        self.held_out = held_out
        self.max_pairs = max_pairs
        self.sequence_length = 3 * digits + 3
        self.tokenizer = AdditionTokenizer()

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that is saved with models of this task."""
        return self.tokenizer.to_pretrained()

    def build(self) -> Splits:
        generator = torch.Generator().manual_seed(self.seed)
        possible = 100**self.digits
        if possible <= self.max_pairs:
            pairs = torch.arange(possible)
        else:
            pairs = torch.randint(possible, (self.max_pairs,), generator=generator).unique()
        pairs = pairs[torch.randperm(len(pairs), generator=generator)]
        held_out = round(len(pairs) * self.held_out / 2)
        if held_out == 0 or len(pairs) <= 2 * held_out:
            raise ValueError(
                f"held_out={self.held_out} of {len(pairs)} pairs leaves training, validation or test empty:"
                " choose another fraction, or more digits"
            )
        val, test, train = pairs.split([held_out, held_out, len(pairs) - 2 * held_out])
        return Splits(*(AdditionPairs(part, self.digits) for part in (train, val, test)))


def _digits(numbers: Int64[Tensor, " batch"], width: int) -> Int64[Tensor, "batch width"]:
    powers = 10 ** torch.arange(width - 1, -1, -1)
    return numbers[:, None] // powers % 10
