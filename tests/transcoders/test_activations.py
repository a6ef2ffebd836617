"""What hooks catch, against the pieces that `Stack` computes one by one."""

import pytest
import torch

from lit_sparse.anatomy.stack import Stack
from lit_sparse.attention import sparsify
from lit_sparse.transcoders.activations import MLPs
from lit_sparse.transcoders.fidelity import by_mean, cross_entropies
from lit_sparse.transcoders.transcoder import Transcoder, TranscoderConfig

FAMILIES = ["llama", "gpt2", "opt", "gemma2", "olmo2", "phi", "mixtral"]


@pytest.fixture
def batch(tokens):
    ids = tokens(2, 7)
    labels = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], dim=1)
    return {"input_ids": ids, "position_ids": torch.arange(7).expand(2, 7), "labels": labels}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_capture_equals_the_stack(make_model, batch, family, sparse):
    model = make_model(family)
    if sparse:
        sparsify(model, {"family": "probability", "threshold": 0.15}).eval()
    inputs, outputs = MLPs(model).capture(batch)
    with torch.no_grad(), Stack(model) as stack:
        residual = stack.embed(batch["input_ids"])
        for layer, parts in enumerate(stack.anatomy.layers):
            attention = parts.after_attention(
                parts.output(stack.attend(layer, stack.project(layer, residual)).flatten(2))
            )
            read = residual if parts.parallel else residual + attention
            # rounding in float32 through two layers
            torch.testing.assert_close(inputs[layer], parts.before_mlp(read), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(outputs[layer], stack.mlp(layer, read), rtol=1e-4, atol=1e-4)
            residual = residual + attention + outputs[layer]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_replacing_outputs(make_model, batch, family):
    """By what they are changes nothing, by something else does, and afterwards all is as before."""
    model = make_model(family)
    mlps = MLPs(model)
    logits = mlps.logits(batch)
    inputs, outputs = mlps.capture(batch)
    seen = []

    def own(layer, mlp_input):
        seen.append(mlp_input.reshape(2, 7, -1))
        return outputs[layer].reshape(mlp_input.shape)

    with mlps.replaced(own):
        torch.testing.assert_close(mlps.logits(batch), logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.stack(seen), inputs, rtol=1e-5, atol=1e-5)
    with mlps.replaced(by_mean(outputs.mean((1, 2)))):
        assert (mlps.logits(batch) - logits).abs().max() > 1e-2
    assert torch.equal(mlps.logits(batch), logits)


@torch.no_grad()
def test_cross_entropies_against_layers_called_by_hand(make_model, batch):
    """The replacement run: each layer's transcoder input is taken in the replaced run."""
    model = make_model("llama")
    torch.manual_seed(1)
    transcoder = Transcoder(TranscoderConfig(features=24, k=8), layers=2, width=32)
    for weight in transcoder.W_dec:
        weight.normal_(std=0.1)
    means = torch.randn(2, 32)
    (own, replacement, mean_ablation, scored), activations = cross_entropies(MLPs(model), batch, transcoder, means)
    assert scored == 12 and activations.inputs.shape == (2, 2, 7, 32)

    def ce(output):
        acts = []
        hidden = model.model.embed_tokens(batch["input_ids"])
        rotary = model.model.rotary_emb(hidden, batch["position_ids"])
        mask = torch.ones(7, 7, dtype=torch.bool).tril()[None, None]
        for layer, block in enumerate(model.model.layers):
            hidden = (
                hidden
                + block.self_attn(block.input_layernorm(hidden), position_embeddings=rotary, attention_mask=mask)[0]
            )
            read = block.post_attention_layernorm(hidden)
            hidden = hidden + output(layer, read, acts, block.mlp)
        logits = model.lm_head(model.model.norm(hidden))
        kept = batch["labels"] != -100
        return torch.nn.functional.cross_entropy(logits[kept], batch["labels"][kept], reduction="sum").double()

    def by_hand(layer, read, acts, mlp):
        acts.append(transcoder.activate(layer, transcoder.preactivations(layer, read)))
        return sum(a @ transcoder.W_dec[s][:, layer - s] for s, a in enumerate(acts)) + transcoder.b_dec[layer]

    close = {"rtol": 1e-4, "atol": 1e-4}  # sums of 12 float32 cross-entropies
    torch.testing.assert_close(own, ce(lambda layer, read, acts, mlp: mlp(read)), **close)
    torch.testing.assert_close(replacement, ce(by_hand), **close)
    torch.testing.assert_close(mean_ablation, ce(lambda layer, read, acts, mlp: means[layer]), **close)
