"""The attention of a sentence is what the model's open edges are, and what a dense model's softmax gives."""

import numpy as np
import pytest
import torch

from lit_sparse import show_attention, sparsify
from lit_sparse.attention import open_edges, reference_pattern
from lit_sparse.data.addition import AdditionTokenizer
from lit_sparse.records.attention import ModelAttention, SentenceAttention
from lit_sparse.tracing.attention import LONGEST
from tests.tiny import tiny_llama

TEXT = "12+34=046"


@pytest.fixture
def dense():
    return tiny_llama().eval()


@pytest.fixture
def sparse():
    return sparsify(tiny_llama().eval(), {"threshold": 0.3})


def test_open_edges_of_a_sparse_model(sparse, dense):
    tokenizer = AdditionTokenizer()
    attention = show_attention(sparse, tokenizer, TEXT, against=dense)
    ids = torch.tensor([tokenizer.encode(TEXT)])
    assert attention.tokens == list(TEXT)
    for weights, layer in zip(attention.model.weights, open_edges(sparse, ids), strict=True):
        sample, head, query, key = layer.indices
        assert len(sample) == np.count_nonzero(weights)
        np.testing.assert_allclose(weights[head, query, key], layer.weights, rtol=1e-5)
    assert attention.model.sparse and 0 < attention.model.open < attention.against.open

    # Gates close edges and leave the weights of the others: those of the dense model of the same weights.
    both = reference_pattern(sparse, ids)
    np.testing.assert_allclose(attention.against.weights[0], both.weights[0], rtol=1e-4, atol=1e-6)
    assert not attention.against.sparse and attention.against.open == 2 * 4 * 45


def test_it_shows_itself(sparse):
    attention = show_attention(sparse, AdditionTokenizer(), TEXT)
    assert attention.against is None
    assert repr(attention) == f"<SentenceAttention: 9 tokens, {attention.model.open} of 360 edges open (sparse)>"
    assert attention._repr_html_().startswith("<iframe")


@pytest.mark.parametrize(("text", "message"), [("", "this text has 0"), ("1" * (LONGEST + 1), "this text has 257")])
def test_texts_that_cannot_be_shown(sparse, text, message):
    with pytest.raises(ValueError, match=message):
        show_attention(sparse, AdditionTokenizer(), text)


def test_models_of_another_shape(sparse):
    other = tiny_llama(num_hidden_layers=3).eval()
    with pytest.raises(ValueError, match="2 layers of 4 heads with 3 layers of 4 heads"):
        show_attention(sparse, AdditionTokenizer(), TEXT, against=other)


def test_weights_of_other_tokens():
    with pytest.raises(ValueError, match="not those of 3 tokens"):
        SentenceAttention(["a", "b", "c"], ModelAttention("tiny", False, np.ones((1, 1, 2, 2))))
