"""Scales, their folding into the weights, massive tokens, and the losses on scaled values."""

import pytest
import torch

from lit_sparse.transcoders import SparsityLoss
from lit_sparse.transcoders.activations import Activations
from lit_sparse.transcoders.fidelity import CrossEntropies
from lit_sparse.transcoders.losses import reconstruction_loss, revival_loss
from lit_sparse.transcoders.metric import TranscoderMetric
from lit_sparse.transcoders.scaling import MASSIVE, Scaling, massive, start_massive_features


def sample(tokens=200, seed=0):
    """Inputs and outputs with means and sizes that differ between layers."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(2):
        means, sizes = torch.randn(4, 1, 8, generator=generator), torch.rand(4, 1, 1, generator=generator) * 3 + 0.1
        parts.append(means + sizes * torch.randn(4, tokens, 8, generator=generator))
    return Activations(*parts)


@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
@pytest.mark.parametrize("cross_layer", [True, False])
def test_folding_changes_no_activation_and_no_output(make_transcoder, activation, cross_layer):
    raw_values, scaling = sample(), Scaling(4, 8)
    scaling.measure(raw_values)
    scaled_values = scaling.apply_to(raw_values)
    scaled = make_transcoder(activation=activation, cross_layer=cross_layer)
    raw = scaling.fold(scaled)
    # the folded bias is a difference of numbers of size 100
    torch.testing.assert_close(raw.encode(raw_values.inputs), scaled.encode(scaled_values.inputs), rtol=1e-4, atol=1e-4)
    expected = scaled(scaled_values.inputs) * scaling.output_scale[:, None, None] + scaling.output_mean[:, None]
    torch.testing.assert_close(raw(raw_values.inputs), expected, rtol=1e-4, atol=1e-4)


def test_scales_are_those_of_ordinary_tokens():
    values = sample()
    scaling = Scaling(4, 8)
    scaling.measure(values)
    scaled = scaling.apply_to(values)
    torch.testing.assert_close(scaled.outputs.mean(1), torch.zeros(4, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.outputs.pow(2).mean((1, 2)), torch.ones(4))
    sunk = Activations(values.inputs.clone(), values.outputs.clone())
    sunk.outputs[2, :3, 1] += 10_000
    other = Scaling(4, 8)
    other.measure(sunk)
    # three of two hundred tokens fewer
    torch.testing.assert_close(other.output_scale, scaling.output_scale, rtol=0.05, atol=0)
    assert massive(other.apply_to(sunk).outputs).sum(1).tolist() == [0, 0, 3, 0]
    sunk.outputs[1] = 2.0
    with pytest.raises(ValueError, match="layer 1 has the same output at every token"):
        Scaling(4, 8).measure(sunk)


def test_massive_tokens_get_a_feature_that_is_off_elsewhere(make_transcoder):
    values = sample()
    values.inputs[2, :3] = 5 * torch.ones(8)
    values.outputs[2, :3, 1] += 10_000
    scaling, transcoder = Scaling(4, 8), make_transcoder()
    scaling.measure(values)
    scaled = scaling.apply_to(values)
    assert start_massive_features(transcoder, scaled) == 1
    acts = transcoder.encode(scaled.inputs)
    assert (acts[2, :3, 0] > 0).all() and (acts[2, 3:, 0] > 0).float().mean() < 0.1
    written = scaling.fold(transcoder)(values.inputs)[2, :3, 1]
    torch.testing.assert_close(written, values.outputs[2, :3, 1], rtol=0.01, atol=0)


def test_reconstruction_loss_counts_a_massive_token_by_its_own_size():
    outputs = torch.randn(4, 50, 8)
    outputs = outputs / outputs.pow(2).mean((1, 2), keepdim=True).sqrt()
    torch.testing.assert_close(reconstruction_loss(outputs, outputs), torch.tensor(4.0))
    huge = outputs.clone()
    huge[1, 0] *= 1e4
    error = torch.zeros_like(huge)
    error[1, 0] = huge[1, 0]  # all of it
    torch.testing.assert_close(reconstruction_loss(error, huge), torch.tensor(MASSIVE / 50))


def test_revival_teaches_dead_features_alone(make_transcoder):
    transcoder = make_transcoder()
    inputs, outputs = torch.randn(4, 30, 8), torch.randn(4, 30, 8)
    dead = torch.zeros(4, 12, dtype=torch.bool)
    dead[0, 3] = dead[2, 5:7] = True
    read = transcoder.preactivate_all(inputs)
    error = (outputs - transcoder.decode(transcoder.activate_all(read))).detach().requires_grad_()
    revival_loss(transcoder, read, error, outputs, dead).backward()
    assert error.grad is None, "what the others left is given"
    taught = transcoder.W_enc.grad.abs().sum(-1) > 0
    assert torch.equal(taught, dead)
    assert (transcoder.W_dec[0].grad[:, 1:] == 0).all(), "a dead feature explains its own layer"


def test_sparsity_loss_against_its_formula(make_transcoder):
    transcoder = make_transcoder(activation="jumprelu")
    read = transcoder.preactivate_all(torch.randn(4, 5, 8))
    acts = transcoder.activate_all(read)
    loss = SparsityLoss(weight=0.3, steepness=2.0, preactivations=0.1, ramp=0.5)
    expected = 0.0
    for layer in range(4):
        for token in range(5):
            for feature in range(12):
                norm = float(transcoder.W_dec[layer][feature].detach().norm())
                below = max(0.0, (transcoder.threshold[layer, feature] - read[layer, token, feature]).item())
                active = torch.tanh(2 * norm * acts[layer, token, feature]).item()
                expected += (0.3 * 0.5 * active + 0.1 * below * norm) / 5
    assert loss(transcoder, read, acts, done=0.25).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        SparsityLoss(ramp=2.0)
    with pytest.raises(ValueError, match="must not be negative"):
        SparsityLoss(weight=-1.0)


def test_metric_over_batches_equals_all_at_once():
    torch.manual_seed(0)
    outputs = torch.randn(4, 60, 8) + 0.5
    outputs[3, 7] *= 100  # massive, so left out
    error, acts = 0.3 * torch.randn(4, 60, 8), torch.randn(4, 60, 12).relu()
    metric = TranscoderMetric(4, 8)
    for part in (slice(0, 20), slice(20, 60)):
        sums = CrossEntropies(*(torch.tensor(float(value), dtype=torch.float64) for value in (20, 40, 80, 10)))
        metric.update(error[:, part], outputs[:, part], acts[:, part], sums)
    result = metric.compute()
    for layer in range(4):
        kept = torch.ones(60, dtype=torch.bool)
        kept[7] = layer != 3
        rows = outputs[layer, kept].double()
        variance = (rows - rows.mean(0)).pow(2).sum()
        expected = 1 - float(error[layer, kept].double().pow(2).sum() / variance)
        assert result.explained_variance[layer] == pytest.approx(expected, abs=1e-5)
        assert result.l0[layer] == pytest.approx(float((acts[layer] > 0).sum(-1).double().mean()))
    assert (result.ce, result.replacement_ce, result.mean_ablation_ce, result.tokens) == (2, 4, 8, 60)
