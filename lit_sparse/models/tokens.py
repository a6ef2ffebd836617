r"""A token's text for tables and pages. Text in other scripts and emoji are often split inside a character: bytes that
are no whole character by themselves are shown as `\xe6`, where decoding would give the same "�" for all of them."""

import re
from typing import Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

_FALLBACK = re.compile("<0x([0-9A-F]{2})>")  # a byte in the vocabularies of SentencePiece
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_MOVED = [byte for byte in range(256) if byte not in _PRINTED]
# The bytes of byte-level BPE by the characters that stand for them, as GPT-2's encoder.py assigns them.
_BYTES = {chr(byte): byte for byte in _PRINTED} | {chr(256 + place): byte for place, byte in enumerate(_MOVED)}


@runtime_checkable
class CharacterTokens(Protocol):
    """Interface of a tokenizer that is not of transformers."""

    tokens: tuple[str, ...]


def token_text(tokenizer: PreTrainedTokenizerBase | CharacterTokens, token: int) -> str:
    """The text that one token stands for."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer.tokens[token]
    text = str(tokenizer.decode([token]))
    piece = tokenizer.convert_ids_to_tokens(token)
    if "\N{REPLACEMENT CHARACTER}" not in text or not isinstance(piece, str):
        return text
    if fallback := _FALLBACK.fullmatch(piece):
        raw = bytes.fromhex(fallback[1])
    elif all(char in _BYTES for char in piece):
        raw = bytes(_BYTES[char] for char in piece)
    else:
        return text
    return raw.decode(errors="backslashreplace")
