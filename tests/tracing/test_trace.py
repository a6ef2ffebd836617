"""What a trace says about value flow is exact: oracles on tiny random models, forward passes of their own."""

import json
from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console

from lit_sparse import sparsify
from lit_sparse.anatomy.reach import reachable
from lit_sparse.anatomy.stack import Stack
from lit_sparse.attention import attention_modules, gates_of, open_edges
from lit_sparse.records.trace import Ablation, TraceEdges, traces_json
from lit_sparse.tracing import trace
from lit_sparse.tracing.flow import contributions, cuts, keep_strongest, moving_edges, smallest
from lit_sparse.tracing.frozen import Frozen
from lit_sparse.tracing.paths import NEVER, connected, needed, shortest_path
from lit_sparse.tracing.terminal import trace_view

FAMILIES = ["llama", "gpt2", "qwen3", "gemma2", "gpt_neox", "phi", "mixtral", "deepseek_v3"]
SPARSE = {"threshold": 0.3}  # so few edges that some tokens do not reach, in most draws
EXACT = {"rtol": 1e-4, "atol": 1e-4}

families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def seed() -> int:
    """A new one every time; pytest shows it when a test fails."""
    return int(np.random.SeedSequence().generate_state(1)[0])


@pytest.fixture
def make_sparse(make_model, tokens, seed):
    """make_sparse(family, layers=3) -> a gated model and a prompt (1, 9) some of whose tokens do not reach."""

    def make(family: str, layers: int = 3):
        for attempt in range(20):
            keys: dict[str, object] = {"num_hidden_layers": layers, "n_layer": layers}
            if family in ("qwen3", "gemma2"):  # windows of 3 in some layers
                keys["layer_types"] = (["sliding_attention", "full_attention"] * layers)[:layers]
            model = sparsify(make_model(family, seed + attempt, **keys), SPARSE)
            ids = tokens(1, 9, seed + attempt)
            with Stack(model) as stack:
                seen = reachable(numpy_weights(Frozen(stack, ids)))
            if not seen[0].all() and seen[0].sum() > 1:
                return model, ids
        raise AssertionError("no draw with unreachable tokens")

    return make


@pytest.fixture
def frozen(family, make_sparse):
    """A sparse model of the family, and what it did on some tokens."""
    model, ids = make_sparse(family)
    with Stack(model) as stack:
        yield Frozen(stack, ids)


def numpy_weights(frozen: Frozen) -> list[np.ndarray]:
    return [weight[0].numpy() for weight in frozen.weights]


def edges_of(frozen: Frozen, answer: int) -> TraceEdges:
    weights = numpy_weights(frozen)
    scores = [score.numpy() for score in contributions(frozen, answer)]
    return moving_edges(weights, scores, reachable(weights))


@pytest.mark.parametrize("centered", [False, True])
@torch.no_grad()
def test_gates_that_look_at_values_are_frozen_as_they_are(centered, make_model, tokens, seed):
    gate = {"family": "contribution", "threshold": 0.1, "centered": centered}
    model, ids = sparsify(make_model("llama", seed), gate), tokens(1, 9, seed)
    if centered:
        for one in gates_of(model):
            one.center.normal_()
    expected = model(ids, use_cache=False).logits[0, -1]
    listed = sum(len(edges.weights) for edges in open_edges(model, ids))
    with Stack(model) as stack:
        frozen = Frozen(stack, ids)
        assert sum(int((weight != 0).sum()) for weight in frozen.weights) == listed < frozen.allowed
        torch.testing.assert_close(frozen.logits(frozen.weights)[0], expected, **EXACT)


@families
@torch.no_grad()
def test_frozen_weights_are_the_open_edges_and_give_the_models_logits(family, make_sparse):
    model, ids = make_sparse(family)
    expected = model(ids, use_cache=False).logits[0, -1]
    listed = open_edges(model, ids)
    with Stack(model) as stack:
        frozen = Frozen(stack, ids)
        torch.testing.assert_close(frozen.full, expected, **EXACT)
        torch.testing.assert_close(frozen.logits(frozen.weights)[0], expected, **EXACT)
    for weight, (indices, factors) in zip(frozen.weights, listed, strict=True):
        dense = torch.zeros_like(weight).index_put(tuple(indices), factors)
        torch.testing.assert_close(weight, dense, rtol=1e-5, atol=1e-6)


@families
@torch.no_grad()
def test_what_does_not_reach_does_not_matter(family, make_sparse):
    """Values at positions off the walk back are replaced by noise, layer by layer: the same logits."""
    model, ids = make_sparse(family)
    with Stack(model) as stack:
        frozen = Frozen(stack, ids)
        seen = torch.from_numpy(reachable(numpy_weights(frozen)))

        def logits(replaced: torch.Tensor) -> torch.Tensor:
            residual = frozen.embedding.clone()
            for layer, weight in enumerate(frozen.weights):
                noise = 3 * torch.randn_like(residual)
                residual = torch.where(replaced[layer][None, :, None], noise, residual)
                value = stack.project(layer, residual).value
                value = value.repeat_interleave(weight.shape[1] // value.shape[1], dim=1)
                heads = torch.einsum("bhqk,bhkd->bqhd", weight, value)
                residual = stack.finish_layer(layer, residual, stack.write(layer, heads)[1])
            return stack.logits(residual)[0]

        assert (~seen[0]).any()
        torch.testing.assert_close(logits(~seen), frozen.full, **EXACT)
        reaching = torch.zeros_like(seen)
        reaching[0, int(seen[0].nonzero()[0])] = True
        assert (logits(reaching) - frozen.full).abs().max() > 1e-2


@families
def test_the_walk_back_kept_alone_gives_the_same_logits(frozen):
    answer = int(frozen.full.argmax())
    edges = edges_of(frozen, answer)
    every = sum(int(np.count_nonzero(weight * (1 - np.eye(weight.shape[-1])))) for weight in numpy_weights(frozen))
    assert 0 < len(edges) < every, "some open edges must be off the walk back"
    kept = keep_strongest(frozen, edges, [len(edges), len(edges) - 1, 0])
    torch.testing.assert_close(kept[0], frozen.full, **EXACT)
    assert (kept[2] - frozen.full).abs().max() > 1e-2
    # Of some edges, those that are not connected to the answer can go as well.
    for count in (len(edges) // 3, 2 * len(edges) // 3):
        some = edges[:count]
        on_the_way, _ = connected(some, len(frozen.weights), frozen.embedding.shape[1])
        fewer = some[on_the_way]
        torch.testing.assert_close(
            keep_strongest(frozen, some, [len(some)]), keep_strongest(frozen, fewer, [len(fewer)]), **EXACT
        )


@families
def test_contributions_of_a_layer_are_the_gradient_times_what_its_edges_add(family, make_sparse):
    model, ids = make_sparse(family)
    with Stack(model) as stack:
        frozen = Frozen(stack, ids)
        answer = int(frozen.full.argmax())
        scores = contributions(frozen, answer, scalings=(1.0,))
        between = ~torch.eye(ids.shape[1], dtype=torch.bool)
        outputs, moved = [], []
        residual = frozen.embedding.detach().requires_grad_()
        for layer, weight in enumerate(frozen.weights):
            value = stack.project(layer, residual).value
            value = value.repeat_interleave(weight.shape[1] // value.shape[1], dim=1)
            parts = stack.anatomy.layers[layer]
            output = parts.output(torch.einsum("bhqk,bhkd->bqhd", weight, value).flatten(2))
            moving = torch.einsum("bhqk,bhkd->bqhd", weight * between, value).flatten(2)
            moved.append(moving @ parts.output_weight().T)
            outputs.append(output)
            residual = stack.finish_layer(layer, residual, parts.after_attention(output))
        logits = stack.logits(residual)[0]
        gradients = torch.autograd.grad(logits[answer] - logits.mean(), outputs)
    for score, gradient, moving in zip(scores, gradients, moved, strict=True):
        torch.testing.assert_close(score.sum((0, 2)), (gradient * moving).sum(-1)[0], rtol=1e-3, atol=1e-3)


def test_contributions_integrate_to_what_the_edges_are_worth(make_model, tokens, seed):
    """With many scalings from nothing the sum is the margin with all edges less that with none (an axiom of
    integrated gradients)."""
    model, ids = sparsify(make_model("llama", seed), {"threshold": 0.1}), tokens(1, 7, seed)
    with Stack(model) as stack:
        frozen = Frozen(stack, ids)
        answer, points = int(frozen.full.argmax()), 400
        total = sum(score.sum() for score in contributions(frozen, answer, [(i + 0.5) / points for i in range(points)]))
        ends = keep_strongest(frozen, edges_of(frozen, answer), [0, 10**6])
    margin = ends[:, answer] - ends.mean(-1)
    torch.testing.assert_close(total, margin[1] - margin[0], rtol=0.05, atol=0.05)


@torch.no_grad()
def test_a_cut_closes_the_edges_out_of_one_position(make_sparse):
    model, ids = make_sparse("qwen3")
    with Stack(model) as stack:
        frozen = Frozen(stack, ids)
        answer = int(frozen.full.argmax())
        found = cuts(frozen, answer)
        seen = reachable(numpy_weights(frozen))
        for position in range(ids.shape[1]):
            weights = [weight.clone() for weight in frozen.weights]
            for weight in weights:
                weight[..., torch.arange(ids.shape[1]) != position, position] = 0
            expected = (frozen.logits(weights).log_softmax(-1) - frozen.full.log_softmax(-1))[0, answer]
            assert found[position] == pytest.approx(float(expected), abs=1e-4)
            if not seen[0, position]:
                assert found[position] == pytest.approx(0, abs=1e-4)
    assert found[-1] == pytest.approx(0, abs=1e-5)


def test_paths_against_every_path_of_a_small_graph(seed):
    """Widest and shortest paths against all paths, enumerated."""
    draw = np.random.default_rng(seed)
    layers, positions, number = 4, 5, 14
    key = draw.integers(0, positions - 1, number)
    query = draw.integers(key + 1, positions)
    columns = draw.integers(0, layers, number), np.zeros(number, int), query, key
    edges = TraceEdges(*columns, np.ones(number), np.ones(number))

    def ways(position: int, layer: int):
        if layer == layers:
            if position == positions - 1:
                yield []
            return
        yield from ways(position, layer + 1)
        for edge in range(number):
            if edges.layer[edge] == layer and edges.key[edge] == position:
                yield from ([edge, *rest] for rest in ways(int(query[edge]), layer + 1))

    found = needed(edges, layers, positions)
    _, reached = connected(edges, layers, positions)
    for token in range(positions):
        paths = list(ways(token, 0))
        assert bool(paths) == bool(reached[token])
        assert found[token] == min((max(path, default=-1) + 1 for path in paths), default=NEVER)
        path = shortest_path(edges, layers, positions, token)
        assert (path is None) == (not paths)
        if paths:
            assert path in paths and len(path) == min(map(len, paths))


def test_smallest_is_the_first_from_which_on_all_suffice():
    curve = [Ablation(edges, edges, 1, p) for edges, p in [(0, 0.0), (1, 0.95), (2, 0.3), (4, 0.9), (8, 1.0)]]
    assert smallest(curve, 0.9).edges == 4
    assert smallest(curve, 0.2).edges == 1
    assert smallest(curve, 1.1).edges == 8


class Hostile:
    """A character tokenizer whose tokens would run, or break a terminal's markup."""

    tokens = tuple(
        ["<script>document.title='pwned'</script>", "[red]", "\n", "\x1b[2J", "</script><!--", "$x_{$"]
        + [chr(200 + index) for index in range(58)]
    )

    def encode(self, text: str) -> list[int]:
        return [int(part) for part in text.split()]


def test_a_dense_model_reaches_from_every_token_and_is_left_as_it_was(make_model, seed):
    model = make_model("llama", seed)
    before = model(torch.arange(3, 12)[None]).logits
    result = trace(model, Hostile(), "3 4 5 6 7 8 9")
    assert not attention_modules(model) and not result.sparse
    torch.testing.assert_close(model(torch.arange(3, 12)[None]).logits, before, rtol=0, atol=0)
    assert result.reaches == [True] * 7 and result.open == result.allowed == 2 * 4 * 28
    assert len(result.edges) == 4 * 21 + 4 * 6  # the last layer is read at the last position only
    assert result.shown.probability >= 0.899 * result.probability
    assert result.ablations[-1].probability == pytest.approx(result.probability, rel=1e-4)
    strength = np.abs(result.edges.contribution)
    assert (strength[:-1] >= strength[1:]).all()


def test_hostile_tokens_print_and_are_json(make_model, seed):
    model = sparsify(make_model("llama", seed), SPARSE)
    result = trace(model, Hostile(), "0 1 2 3 4 5 0", " 4")
    assert result.answer == Hostile.tokens[4] and result.answer_id == 4
    output = StringIO()
    Console(file=output, width=120, color_system="truecolor", force_terminal=True).print(trace_view([result, result]))
    assert "[red]" in output.getvalue() and "\x1b[2J" not in output.getvalue()
    content = json.loads(traces_json([result]))
    assert content["tokens"] == [Hostile.tokens[i] for i in (0, 1, 2, 3, 4, 5, 0)]
    entry = content["traces"][0]
    assert {len(column) for column in entry["edges"].values()} == {len(result.edges)}
    assert entry["shown"] in [ablation["edges"] for ablation in entry["ablations"]]


def test_a_prompt_of_one_token_is_refused(make_model):
    with pytest.raises(ValueError, match=r"at least two tokens, .*; '7' became one: 'É'"):
        trace(make_model("llama"), Hostile(), "7")
