"""The transcoder against plain loops in float64."""

import pytest
import torch

from lit_sparse.transcoders import TranscoderConfig
from lit_sparse.transcoders.transcoder import BANDWIDTH

KINDS = [(activation, cross) for activation in ("topk", "jumprelu") for cross in (True, False)]
kinds = pytest.mark.parametrize("activation, cross_layer", KINDS)


def plain(transcoder, inputs):
    """Activations and outputs, a token and a feature at a time, in float64."""
    weights = {name: value.detach().double() for name, value in transcoder.named_parameters()}
    layers, tokens, _ = inputs.shape
    acts = torch.zeros(layers, tokens, transcoder.config.features, dtype=torch.float64)
    outputs = weights["b_dec"][:, None].repeat(1, tokens, 1)
    for layer in range(layers):
        for token in range(tokens):
            read = weights["W_enc"][layer] @ inputs[layer, token].double() + weights["b_enc"][layer]
            if transcoder.config.activation == "topk":
                kept = sorted(range(len(read)), key=lambda f: -float(read[f]))[: transcoder.config.k]
            else:
                kept = [f for f in range(len(read)) if read[f] > weights["threshold"][layer, f]]
            for feature in kept:
                if read[feature] > 0:
                    acts[layer, token, feature] = read[feature]
                    for slot, row in enumerate(weights[f"W_dec.{layer}"][feature]):
                        outputs[layer + slot, token] += read[feature] * row
    return acts, outputs


@kinds
def test_equals_plain_loops(make_transcoder, activation, cross_layer):
    transcoder = make_transcoder(activation=activation, cross_layer=cross_layer)
    inputs = torch.randn(4, 2, 5, 8)
    acts, outputs = plain(transcoder, inputs.flatten(1, 2))
    # float32 sums of 48 products of size 1
    torch.testing.assert_close(transcoder.encode(inputs).flatten(1, 2).double(), acts, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(transcoder(inputs).flatten(1, 2).double(), outputs, atol=1e-5, rtol=1e-5)
    assert (acts > 0).any() and (acts == 0).any()


@kinds
def test_a_layer_at_a_time_equals_all_at_once(make_transcoder, activation, cross_layer):
    transcoder = make_transcoder(activation=activation, cross_layer=cross_layer)
    inputs = torch.randn(4, 3, 8)
    acts = transcoder.encode(inputs)
    for layer in range(4):
        one = transcoder.activate(layer, transcoder.preactivations(layer, inputs[layer]))
        torch.testing.assert_close(one, acts[layer], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(transcoder.write(layer, acts[: layer + 1]), transcoder.decode(acts)[layer])


def test_topk_keeps_at_most_k_and_only_positive_ones(make_transcoder):
    transcoder = make_transcoder(k=3)
    read = torch.tensor([[5.0, 4, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0], [1.0, -1, -2, *[-3] * 9]])
    acts = transcoder.activate(0, read)
    assert (acts > 0).sum(1).tolist() == [3, 1]
    assert acts[0, 0] == 5 and acts[1].tolist() == [1] + [0] * 11


def test_shapes_of_decoders(make_transcoder):
    assert [tuple(weight.shape) for weight in make_transcoder().W_dec] == [(12, 4 - layer, 8) for layer in range(4)]
    assert [tuple(weight.shape) for weight in make_transcoder(cross_layer=False).W_dec] == [(12, 1, 8)] * 4


def test_gradients_of_decoders_equal_those_of_a_sum(make_transcoder):
    """The stacked products' backward against one small product a pair of layers."""
    transcoder = make_transcoder().double()
    acts = torch.rand(4, 6, 12, dtype=torch.float64)
    direction = torch.randn(4, 6, 8, dtype=torch.float64)
    (transcoder.decode(acts) * direction).sum().backward()
    for layer, weight in enumerate(transcoder.W_dec):
        expected = torch.einsum("nf,snd->fsd", acts[layer], direction[layer:])
        torch.testing.assert_close(weight.grad, expected)


def test_jumprelu_gradients(make_transcoder):
    """Inside the kernel a threshold gets -threshold / bandwidth of the output's gradient (equation 11), and active
    preactivations all of it."""
    transcoder = make_transcoder(activation="jumprelu")
    with torch.no_grad():
        transcoder.threshold.fill_(0.8)
    read = torch.full((1, 12), 2.0)
    read[0, :3] = torch.tensor([0.8 + 0.4 * BANDWIDTH, 0.8 - 0.4 * BANDWIDTH, 0.8 - 0.6 * BANDWIDTH])
    read.requires_grad_()
    (transcoder.activate(0, read) * 3).sum().backward()
    near = -0.8 / BANDWIDTH * 3
    assert read.grad[0].tolist() == [3, 0, 0] + [3] * 9
    torch.testing.assert_close(transcoder.threshold.grad[0], torch.tensor([near, near] + [0.0] * 10))
    assert not transcoder.threshold.grad[1:].any()


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"features": 0}, "features must be at least 1"),
        ({"features": 8, "activation": "gelu"}, "topk, jumprelu"),
        ({"features": 8, "k": 9}, "between 1 and features = 8"),
        ({"features": 8, "k": 0}, "between 1 and features = 8"),
    ],
)
def test_impossible_configs(keys, words):
    with pytest.raises(ValueError, match=words):
        TranscoderConfig(**keys)
