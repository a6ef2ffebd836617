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
from lit_sparse.circuits.attention_edges import Ablations, EdgeList, Passes, Probability
from lit_sparse.records.trace import TraceEdges, traces_json
from lit_sparse.tracing import trace
from lit_sparse.tracing.flow import contributions, cuts, everyday_average, kept_first, ordered, traced_passes
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
                seen = reachable(numpy_weights(traced_passes(stack, ids, None)))
            if not seen[0].all() and seen[0].sum() > 1:
                return model, ids
        raise AssertionError("no draw with unreachable tokens")

    return make


def numpy_weights(passes: Passes) -> list[np.ndarray]:
    return [layer.weights[0].numpy() for layer in passes.whole.passed]


def measured_with(passes: Passes, keep: float = 0.9) -> Ablations:
    """Ablations of the likeliest token's probability."""
    goal = Probability(passes.whole.logits.argmax(-1), passes.whole.logits, keep)
    return Ablations(passes, EdgeList(passes.open), goal)


def scores_of(measured: Ablations, **options) -> torch.Tensor:
    return contributions(measured.passes, measured.edges, int(measured.passes.whole.logits.argmax()), **options)


def formula(passes: Passes, kept: list[torch.Tensor]) -> torch.Tensor:
    """Logits by the formula of flow.py: per layer, which edges (head, query, key) are kept."""
    stack, residual = passes.stack, passes.whole.residuals[0]
    for layer, (some, own) in enumerate(zip(kept, passes.whole.passed, strict=True)):
        weight, instead = own.weights[0], passes.instead[layer].values[0]
        value = stack.project(layer, residual).value[0]
        value = value.repeat_interleave(len(weight) // len(value), dim=0)
        some = some | torch.eye(weight.shape[-1], dtype=torch.bool)
        heads = torch.einsum("hqk,hkd->qhd", weight * some, value)
        heads = heads + torch.einsum("hqk,hkd->qhd", weight * ~some, instead)
        residual = stack.finish_layer(layer, residual, stack.write(layer, heads[None])[1])
    return stack.logits(residual)[0]


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
        passes = traced_passes(stack, ids, None)
        assert sum(int((weight != 0).sum()) for weight in numpy_weights(passes)) == listed < passes.allowed
        every = [edges[None].float() for edges in passes.open]
        torch.testing.assert_close(passes.logits(every)[0], expected, **EXACT)


@families
@torch.no_grad()
def test_only_edges_between_positions_close_and_they_pass_the_average(family, make_sparse, seed):
    model, ids = make_sparse(family)
    draw = torch.Generator().manual_seed(seed % 2**31)
    with Stack(model) as stack:
        passes = traced_passes(stack, ids, None)
        assert not any(edges.diagonal(dim1=-2, dim2=-1).any() for edges in passes.open)
        kept = [torch.rand(edges.shape, generator=draw) < 0.5 for edges in passes.open]
        found = passes.logits([some[None].float() for some in kept])
        torch.testing.assert_close(found[0], formula(passes, [some[0] for some in kept]), **EXACT)


@families
@torch.no_grad()
def test_what_does_not_reach_does_not_matter(family, make_sparse):
    """Values at positions off the walk back are replaced by noise, layer by layer: the same logits."""
    torch.manual_seed(0)
    model, ids = make_sparse(family)
    with Stack(model) as stack:
        passes = traced_passes(stack, ids, None)
        seen = torch.from_numpy(reachable(numpy_weights(passes)))

        def logits(replaced: torch.Tensor) -> torch.Tensor:
            residual = passes.whole.residuals[0].clone()
            for layer, weight in enumerate(own.weights for own in passes.whole.passed):
                noise = 3 * torch.randn_like(residual)
                residual = torch.where(replaced[layer][None, :, None], noise, residual)
                value = stack.project(layer, residual).value
                value = value.repeat_interleave(weight.shape[1] // value.shape[1], dim=1)
                heads = torch.einsum("bhqk,bhkd->bqhd", weight, value)
                residual = stack.finish_layer(layer, residual, stack.write(layer, heads)[1])
            return stack.logits(residual)[0]

        assert (~seen[0]).any()
        torch.testing.assert_close(logits(~seen), passes.whole.logits[0], **EXACT)
        reaching = torch.zeros_like(seen)
        reaching[0, int(seen[0].nonzero()[0])] = True
        assert (logits(reaching) - passes.whole.logits[0]).abs().max() > 1e-2


@families
def test_the_walk_back_kept_alone_gives_the_same_probability(family, make_sparse):
    model, ids = make_sparse(family)
    with Stack(model) as stack:
        passes = traced_passes(stack, ids, None)
        measured = measured_with(passes)
        seen = reachable(numpy_weights(passes))
        order = ordered(measured.edges, scores_of(measured), seen, torch.tensor([], dtype=torch.int64))
        assert 0 < len(order) < len(measured.edges), "some open edges must be off the walk back"
        assert kept_first(measured, order, [len(order)])[0] == pytest.approx(1, rel=1e-3)
        # Of some edges, those that are not connected to the answer can go as well.
        for count in (len(order) // 3, 2 * len(order) // 3):
            some = order[:count]
            columns = (column[some].numpy() for column in vars_of(measured.edges))
            listed = TraceEdges(*columns, *np.ones((2, count)))
            on_the_way, _ = connected(listed, len(seen) - 1, ids.shape[1])
            fewer = some[torch.from_numpy(on_the_way)]
            expected = kept_first(measured, fewer, [len(fewer)])
            assert kept_first(measured, some, [len(some)]) == pytest.approx(expected, rel=1e-3)


def vars_of(edges: EdgeList) -> tuple[torch.Tensor, ...]:
    return edges.layer, edges.head, edges.query, edges.key


@families
def test_contributions_of_a_layer_are_the_gradient_times_what_its_edges_add(family, make_sparse):
    """Beyond the average."""
    model, ids = make_sparse(family)
    with Stack(model) as stack:
        passes = traced_passes(stack, ids, None)
        measured = measured_with(passes)
        scores = scores_of(measured, scalings=(1.0,))
        answer = int(passes.whole.logits.argmax())
        between = ~torch.eye(ids.shape[1], dtype=torch.bool)
        outputs, moved = [], []
        residual = passes.whole.residuals[0].detach().requires_grad_()
        for layer, weight in enumerate(own.weights for own in passes.whole.passed):
            value = stack.project(layer, residual).value
            value = value.repeat_interleave(weight.shape[1] // value.shape[1], dim=1)
            parts = stack.anatomy.layers[layer]
            output = parts.output(torch.einsum("bhqk,bhkd->bqhd", weight, value).flatten(2))
            beyond = value - passes.instead[layer].values
            moving = torch.einsum("bhqk,bhkd->bqhd", weight * between, beyond).flatten(2)
            moved.append(moving @ parts.output_weight().T)
            outputs.append(output)
            residual = stack.finish_layer(layer, residual, parts.after_attention(output))
        logits = stack.logits(residual)[0]
        gradients = torch.autograd.grad(logits[answer] - logits.mean(), outputs)
    for layer, (gradient, moving) in enumerate(zip(gradients, moved, strict=True)):
        here = measured.edges.layer == layer
        found = torch.zeros(ids.shape[1]).index_add(0, measured.edges.query[here], scores[here])
        torch.testing.assert_close(found, (gradient * moving).sum(-1)[0], rtol=1e-3, atol=1e-3)


def test_contributions_integrate_to_what_the_edges_are_worth(make_model, tokens, seed):
    """With many scalings from nothing the sum is the margin with all edges less that with none (an axiom of
    integrated gradients)."""
    model, ids = sparsify(make_model("llama", seed), {"threshold": 0.1}), tokens(1, 7, seed)
    with Stack(model) as stack:
        passes = traced_passes(stack, ids, None)
        measured, points = measured_with(passes), 400
        total = scores_of(measured, scalings=[(i + 0.5) / points for i in range(points)]).sum()
        ends = torch.cat([passes.ablated(), passes.whole.logits])
    margin = ends[:, int(passes.whole.logits.argmax())] - ends.mean(-1)
    torch.testing.assert_close(total, margin[1] - margin[0], rtol=0.05, atol=0.05)


@torch.no_grad()
def test_a_cut_closes_the_edges_out_of_one_position(make_sparse):
    model, ids = make_sparse("qwen3")
    with Stack(model) as stack:
        passes = traced_passes(stack, ids, None)
        whole = passes.whole.logits[0].log_softmax(-1)
        answer, found = int(whole.argmax()), cuts(measured_with(passes), ids.shape[1])
        seen = reachable(numpy_weights(passes))
        for position in range(ids.shape[1]):
            kept = [torch.arange(ids.shape[1]) != position] * len(passes.open)
            kept = [some.expand(edges.shape[1:]) for some, edges in zip(kept, passes.open, strict=True)]
            expected = formula(passes, kept).log_softmax(-1)[answer] - whole[answer]
            assert found[position] == pytest.approx(float(expected), abs=1e-4)
    assert found[-1] == pytest.approx(0, abs=1e-5)
    assert np.abs(found[~seen[0]]).max(initial=0) < 1e-4


def test_edges_shown_are_a_minimal_circuit_and_come_first(copier, letters):
    result = trace(copier, letters, "dfhackeb")
    edges, size = result.edges, result.shown.edges
    assert 0 < size < 0.3 * len(edges) and len(result.without) == size
    assert result.shown.probability >= 0.9 * result.probability * (1 - 1e-4)
    assert result.without == sorted(result.without) and max(result.without) < 0.9 * result.probability
    assert result.shown.connected == size, "no edge that leads nowhere is needed"
    assert result.needed[1] is not None and result.needed[1] <= size, "the letter that is copied"
    counts = [ablation.edges for ablation in result.ablations]
    assert counts == sorted(set(counts)) and counts[0] == 0 and counts[-1] == len(edges)
    strength = np.abs(edges.contribution[size:])
    assert (strength[:-1] >= strength[1:]).all()
    # Again outside of a trace: without each of the circuit's edges in turn.
    ids = torch.tensor([letters("dfhackeb").input_ids])
    with Stack(copier) as stack:
        passes = traced_passes(stack, ids, everyday_average(copier, letters))
        for gone, expected in zip([None, *range(size)], [result.shown.probability, *result.without], strict=True):
            kept = [torch.zeros(edges.shape[1:], dtype=torch.bool) for edges in passes.open]
            for edge in range(size):
                if edge != gone:
                    kept[edges.layer[edge]][edges.head[edge], edges.query[edge], edges.key[edge]] = True
            found = formula(passes, kept).softmax(-1)[result.answer_id].detach()
            assert float(found) == pytest.approx(expected, abs=1e-4)


def test_an_answer_that_needs_no_other_token_shows_no_edges(make_model, seed):
    model = make_model("llama", seed)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    result = trace(model, Hostile(), "3 4 5 6")
    assert result.shown.edges == 0 and result.without == []
    assert result.shown.probability == pytest.approx(result.probability, rel=1e-4)
    Console(file=StringIO()).print(trace_view([result]))


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


class Hostile:
    """A character tokenizer whose tokens would run, or break a terminal's markup."""

    tokens = tuple(
        ["<script>document.title='pwned'</script>", "[red]", "\n", "\x1b[2J", "</script><!--", "$x_{$"]
        + [chr(200 + index) for index in range(58)]
    )

    def encode(self, text: str) -> list[int]:
        return [int(part) for part in text.split()]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.tokens[token] for token in ids)


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
