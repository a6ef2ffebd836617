"""Attention of a sentence in one model or two.

lit_sparse.show_attention(sparse, tokenizer, "The opposite of hot is cold.", against=dense)
"""

import numpy as np
import torch
from transformers import PreTrainedModel

from lit_sparse.anatomy.stack import Stack
from lit_sparse.attention import attention_modules
from lit_sparse.circuits.attention_edges.passes import record
from lit_sparse.circuits.tasks.vocabulary import Tokenizer, Vocabulary
from lit_sparse.common.modes import frozen
from lit_sparse.models.names import shown_name
from lit_sparse.models.tokens import token_text
from lit_sparse.records.attention import ModelAttention, SentenceAttention

LONGEST = 256
"""Largest number of tokens, since all weights of a dense model are held at once."""


def show_attention(
    model: PreTrainedModel, tokenizer: Tokenizer, text: str, against: PreTrainedModel | None = None
) -> SentenceAttention:
    """The attention of every head on one sentence. Jupyter shows it as a view to explore.

    A weight is the factor of a key's value in its query's output, 0 at the closed edges of a sparse model. Memory grows
    with layers x heads x tokens^2.

    Args:
        tokenizer: a tokenizer of transformers, or a character tokenizer.
        text: the sentence, of at most 256 tokens.
        against: a model to show beside it, such as the dense base, with the same tokenizer, layers and heads.

    Raises:
        ValueError: the text has no tokens or too many, the models differ in layers or heads, or a model's family is
            not understood (see `Stack`).
    """
    ids = list(Vocabulary(tokenizer).encode(text))
    if not 0 < len(ids) <= LONGEST:
        raise ValueError(f"a sentence of 1 to {LONGEST} tokens can be shown; this text has {len(ids)}")
    return SentenceAttention(
        tokens=[token_text(tokenizer, token) for token in ids],
        model=_attention(model, ids),
        against=None if against is None else _attention(against, ids),
    )


def _attention(model: PreTrainedModel, ids: list[int]) -> ModelAttention:
    with frozen(model), Stack(model) as stack:
        passed = record(stack, torch.tensor([ids], device=model.device)).passed
    heads = max(layer.weights.shape[1] for layer in passed)
    weights = np.zeros((len(passed), heads, len(ids), len(ids)), dtype=np.float32)
    for place, layer in enumerate(passed):
        weights[place, : layer.weights.shape[1]] = layer.weights[0].float().cpu().numpy()
    return ModelAttention(model=shown_name(model), sparse=bool(attention_modules(model)), weights=weights)
