"""The whole graph: values are reproduced by incoming edges, closed edges are not there, the model is left alone."""

import copy

import numpy as np
import pytest
import torch

from lit_sparse.attention import attention_modules
from lit_sparse.attribution import Kind, build_graph, heads_for
from lit_sparse.transcoders import Transcoder, TranscoderConfig

FAMILIES = ["llama", "gpt2", "gemma2", "gpt_neox", "phi", "qwen3", "olmo2"]  # grouped, biases, two norms, parallel, ...

SPARSE = {"family": "contribution", "threshold": 0.2}


def incoming(graph) -> np.ndarray:
    """Of each node, its incoming edges and its bias."""
    return np.bincount(graph.edges.target, graph.edges.weight, minlength=len(graph.nodes)) + graph.bias


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gate", [None, SPARSE, SPARSE | {"centered": True}], ids=["dense", "sparse", "centered"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.no_grad()
def test_values_are_the_models_and_the_sum_of_incoming_edges(family, gate, dtype, make_problem):
    model, transcoder, ids = make_problem(family, gate, dtype=dtype, seed=3)
    read: list[torch.Tensor] = []
    mlps = [module for name, module in model.named_modules() if name.endswith(".mlp")]
    handles = [mlp.register_forward_pre_hook(lambda _, args: read.append(args[0][0])) for mlp in mlps]
    logits = model(ids, use_cache=False).logits[0, -1].double()
    for handle in handles:
        handle.remove()
    graph = build_graph(model, transcoder, ids)
    nodes, sums = graph.nodes, incoming(graph)
    feature, head, logit = (nodes.kind == kind for kind in (Kind.FEATURE, Kind.HEAD, Kind.LOGIT))
    read_by = np.stack([transcoder.preactivations(layer, x).double().numpy() for layer, x in enumerate(read)])
    preactivation = read_by[nodes.layer[feature], nodes.position[feature], nodes.index[feature]]
    if (cap := getattr(model.config, "final_logit_softcapping", None)) is not None:
        logits = cap * torch.atanh(logits / cap)
    height = (logits - logits.mean())[graph.logit_ids].numpy()
    # Attention weights are listed in float32 (1e-7); float32 sums of some hundred terms are at 1e-6.
    tolerance = 1e-6 if dtype is torch.float64 else 1e-5
    for kept, true in ((feature, preactivation), (head, nodes.value[head]), (logit, height)):
        assert kept.any()
        np.testing.assert_allclose(nodes.value[kept], true, rtol=tolerance, atol=tolerance * np.abs(true).max())
        np.testing.assert_allclose(sums[kept], true, rtol=tolerance, atol=tolerance * np.abs(true).max())
    for attributed, edges, weight in zip(graph.head_attribution, graph.edge_attribution, graph.attention, strict=True):
        np.testing.assert_allclose(edges.sum(-1), attributed, rtol=1e-5, atol=1e-5 * np.abs(attributed).max())
        assert not edges[weight == 0].any()
    assert not graph.edges.weight[np.isin(graph.edges.target, np.flatnonzero(nodes.kind <= Kind.EMBEDDING))].size


def test_the_table_is_in_the_order_of_computation(make_problem):
    model, transcoder, ids = make_problem("gpt_neox", layers=3)
    graph = build_graph(model, transcoder, ids)
    nodes, edges = graph.nodes, graph.edges
    assert (edges.source < edges.target).all() and (np.diff(graph.stages) >= 0).all()
    assert (np.diff(graph.stages[edges.target]) >= 0).all()
    assert nodes.index[: ids.shape[1]].tolist() == ids[0].tolist()
    assert (nodes.kind[: ids.shape[1]] == Kind.EMBEDDING).all()
    assert nodes.index[-len(graph.logit_ids) :].tolist() == graph.logit_ids.tolist()
    assert len(set(nodes.keys())) == len(nodes)
    positions = nodes.position[edges.source] != nodes.position[edges.target]
    assert (nodes.kind[edges.target[positions]] == Kind.HEAD).all(), "only heads move between positions"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@torch.no_grad()
def test_features_that_read_the_residual_stream(family, make_problem):
    """As published cross-layer transcoders do: no norm lies between writers and features."""
    model, transcoder, ids = make_problem(family, SPARSE, dtype=torch.float64)
    transcoder.reads = "hook_resid_mid"
    names = ("pre_feedforward_layernorm", "ln_2") if family != "llama" else ("post_attention_layernorm",)
    read = []
    norms = [module for name, module in model.named_modules() if name.rpartition(".")[2] in names]
    for norm in norms:
        norm.register_forward_pre_hook(lambda _, args: read.append(args[0][0]))
    model(ids, use_cache=False)
    read_by = np.stack([transcoder.preactivations(layer, x).numpy() for layer, x in enumerate(read[:2])])
    graph = build_graph(model, transcoder, ids)
    nodes, sums = graph.nodes, incoming(graph)
    feature = nodes.kind == Kind.FEATURE
    true = read_by[nodes.layer[feature], nodes.position[feature], nodes.index[feature]]
    np.testing.assert_allclose(nodes.value[feature], true, rtol=1e-6, atol=1e-6 * np.abs(true).max())
    np.testing.assert_allclose(sums[feature], true, rtol=1e-6, atol=1e-6 * np.abs(true).max())
    assert np.isfinite(graph.replacement_kl) and feature.any()


def test_transcoders_of_the_mlps_own_output(make_problem):
    """They write the same as the others where no norm follows the MLP, and are refused where one does."""
    model, transcoder, ids = make_problem("gemma2")
    transcoder.writes = "mlp.hook_out"
    with pytest.raises(ValueError, match=r"mlp\.hook_out.*'gemma2' a norm comes between"):
        build_graph(model, transcoder, ids)
    model, transcoder, ids = make_problem("llama")
    transcoder.writes = "mlp.hook_out"
    assert len(build_graph(model, transcoder, ids).nodes)


@torch.no_grad()
def test_head_nodes_and_their_edges_come_from_open_edges_alone(make_problem):
    model, transcoder, ids = make_problem("llama", {"threshold": 0.2}, layers=3)
    for head in (0, 2):
        attention_modules(model)[1].edge_gate.log_threshold[head] = 5.0  # above every probability
    graph = build_graph(model, transcoder, ids)
    nodes = graph.nodes
    is_head = nodes.kind == Kind.HEAD
    assert 0 < graph.open_edges < graph.allowed_edges
    assert sum(np.count_nonzero(weight) for weight in graph.attention) == graph.open_edges
    assert not is_head[(nodes.layer == 1) & np.isin(nodes.index, (0, 2)) & is_head].any()
    assert not graph.head_attribution[1, [0, 2]].any() and graph.head_attribution[1, [1, 3]].any()
    shares = heads_for(graph)
    assert shares.attribution[1, 0] == shares.influence[1, 0] == 0
    keys: dict[int, set[int]] = {}
    for source, target in zip(graph.edges.source, graph.edges.target, strict=True):
        if is_head[target]:
            keys.setdefault(int(target), set()).add(int(nodes.position[source]))
    assert sum(len(some) for some in keys.values()) <= graph.open_edges


def test_one_answer_and_the_logits_that_cover(make_problem):
    model, transcoder, ids = make_problem("llama")
    probabilities = model(ids).logits[0, -1].softmax(-1).detach()
    graph = build_graph(model, transcoder, ids, answer_id=5)
    assert graph.logit_ids.tolist() == [5]
    assert graph.probabilities[0] == pytest.approx(float(probabilities[5]), rel=1e-4)
    graph = build_graph(model, transcoder, ids)
    assert 1 <= len(graph.logit_ids) <= 10 and (np.diff(graph.probabilities) <= 0).all()
    assert len(graph.logit_ids) == 10 or graph.probabilities.sum() >= 0.95 > graph.probabilities[:-1].sum()


@pytest.mark.parametrize("gate", [None, {"threshold": 0.2}])
def test_the_model_is_left_as_it_was(gate, make_problem):
    model, transcoder, ids = make_problem("gpt2", gate)
    before, expected = copy.deepcopy(model.state_dict()), model(ids).logits
    build_graph(model, transcoder, ids)
    assert bool(attention_modules(model)) == (gate is not None)
    assert all(torch.equal(before[name], after) for name, after in model.state_dict().items())
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)


def test_what_is_refused(make_problem, make_transcoder):
    model, transcoder, ids = make_problem("llama")
    with pytest.raises(ValueError, match="3 layers of width 32, the model has 2"):
        build_graph(model, make_transcoder(3), ids)
    with pytest.raises(ValueError, match="answer_id is a token of 0 to 63"):
        build_graph(model, transcoder, ids, answer_id=64)
    with pytest.raises(ValueError, match="load it in float32"):
        build_graph(model.bfloat16(), transcoder, ids)
    latent = make_problem("deepseek_v3")
    with pytest.raises(ValueError, match=r"deepseek_v3.*values are not linear"):
        build_graph(*latent)
    assert not attention_modules(latent[0])


def test_a_norm_that_is_none_of_the_known_is_refused(make_problem):
    model, transcoder, ids = make_problem("llama")
    norm = model.model.layers[1].post_attention_layernorm
    whole = norm.forward
    norm.forward = lambda x: torch.tanh(whole(x))
    with pytest.raises(ValueError, match=r"llama.*LlamaRMSNorm does not become linear"):
        build_graph(model, transcoder, ids)


@torch.no_grad()
def test_how_well_the_transcoder_replaces_is_measured(make_problem):
    """On a model whose MLPs a transcoder can equal: with ReLU, their neurons are features."""
    model, _, ids = make_problem("gpt2")
    transcoder = Transcoder(TranscoderConfig(128, cross_layer=False, k=128), 2, 32)
    for layer, block in enumerate(model.transformer.h):
        block.mlp.act = torch.nn.ReLU()
        up, down = block.mlp.c_fc, block.mlp.c_proj
        transcoder.W_enc[layer] = up.weight.T
        transcoder.b_enc[layer] = up.bias
        transcoder.W_dec[layer][:, 0] = down.weight
        transcoder.b_dec[layer] = down.bias
    graph = build_graph(model, transcoder, ids)
    assert graph.replacement_error < 1e-5 and abs(graph.replacement_kl) < 1e-5
    assert graph.explained_variance == pytest.approx(1, abs=1e-5)
    transcoder.W_dec[0].zero_()
    worse = build_graph(model, transcoder, ids)
    assert worse.replacement_error > 0.1 and worse.replacement_kl > 1e-3 and worse.explained_variance < 0.9
