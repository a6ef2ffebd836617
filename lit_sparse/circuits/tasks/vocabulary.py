"""Vocabulary of a transformers tokenizer or a plain character tokenizer, as templates need it."""

import re
from collections.abc import Iterable, Sequence
from random import Random
from typing import Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

_CARRIER = "the"
_WORD = re.compile("[a-z]{3,}")


class NotExpressible(ValueError):
    """A task that a tokenizer cannot express, with the reason."""


@runtime_checkable
class CharacterTokenizer(Protocol):
    """A tokenizer with one token per character and no special tokens: `lit_sparse.data.AdditionTokenizer`."""

    tokens: tuple[str, ...]

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


Tokenizer = PreTrainedTokenizerBase | CharacterTokenizer


class Vocabulary:
    """Tokens of texts and words.

    Texts are encoded as a user feeds them to the model, with the special tokens that the tokenizer adds by itself
    (`add_special_tokens=True`). Pieces are never joined as tokens; the tokenizer always gets a whole text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a whole prompt.

        Raises:
            NotExpressible: the text has characters that the tokenizer does not know.
        """
        if not isinstance(self.tokenizer, PreTrainedTokenizerBase):
            try:
                return tuple(self.tokenizer.encode(text))
            except ValueError as error:
                raise NotExpressible(str(error)) from None
        unknown = self.tokenizer.unk_token_id
        try:
            plain = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        except Exception as error:  # what the tokenizers library raises where there is no unknown token
            raise NotExpressible(f"{text!r}: {error}") from None
        if unknown is not None and unknown in plain:
            raise NotExpressible(f"it has unknown tokens in {text!r}")
        return tuple(self.tokenizer(text, add_special_tokens=True)["input_ids"])

    def continuation(self, prompt: str, text: str) -> int:
        """The single token that `text` becomes after `prompt`, without a change of the prompt's tokens.

        Raises:
            NotExpressible: the text is not one token there.
        """
        before, after = self.encode(prompt), self.encode(prompt + text)
        if after[:-1] != before:
            raise NotExpressible(f"{text!r} is not one token after {prompt!r}")
        return after[-1]

    def knows(self, text: str) -> bool:
        """True if a text can be encoded."""
        try:
            return bool(self.encode(text))
        except NotExpressible:
            return False

    def is_one_token(self, text: str, after: str = _CARRIER) -> bool:
        """True if `text` (with its leading space, if any) is one token in the middle of a sentence."""
        try:
            self.continuation(after, text)
        except NotExpressible:
            return False
        return True

    def keep(self, words: Sequence[str], at_least: int, kind: str) -> list[str]:
        """The words that are single tokens after a space.

        Raises:
            NotExpressible: fewer than `at_least` are; the message calls them `kind`.
        """
        kept = [word for word in words if self.is_one_token(f" {word}")]
        self._require(len(kept), at_least, f"of {len(words)} {kind}", words)
        return kept

    def keep_pairs(self, words: Iterable[tuple[str, str]], at_least: int, kind: str) -> list[tuple[str, str]]:
        """The pairs of words of which both are single tokens after a space.

        Raises:
            NotExpressible: fewer than `at_least` are; the message calls them `kind`.
        """
        pairs = list(words)
        kept = [pair for pair in pairs if all(self.is_one_token(f" {word}") for word in pair)]
        self._require(len(kept), at_least, f"of {len(pairs)} {kind}", [word for pair in pairs for word in pair])
        return kept

    def own_words(self, at_most: int, at_least: int) -> list[str]:
        """Random choice of runs of three or more lower-case letters that are single tokens after a space.

        Most are words; some are stems that the tokenizer continues.

        Raises:
            NotExpressible: fewer than `at_least` are found.
        """
        if not isinstance(self.tokenizer, PreTrainedTokenizerBase):
            raise NotExpressible(f"its tokens are characters ({''.join(self.tokenizer.tokens)!r}), not words")
        ids = list(range(len(self.tokenizer)))
        Random("own words").shuffle(ids)
        words: dict[str, None] = {}
        for token in ids:
            word = str(self.tokenizer.decode([token])).strip()
            if _WORD.fullmatch(word) and self.is_one_token(f" {word}"):
                words[word] = None
            if len(words) == at_most:
                break
        self._require(len(words), at_least, "words in its vocabulary", ["the"])
        return list(words)

    def splits_digits(self) -> bool:
        """True if every digit is a token of its own, at any position in a number."""
        text = "=0918273645"
        return all(self.is_one_token(text[end], after=text[:end]) for end in range(1, len(text)))

    def _require(self, found: int, at_least: int, kind: str, words: Sequence[str]) -> None:
        if found < at_least:
            raise NotExpressible(
                f"only {found} {kind} are single tokens (such as {words[0]!r} after a space), but {at_least} are needed"
            )
