"""Memory that `info` foretells: the formulas, what the trace finds, and training measured."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lit_sparse.attention import sparsify
from lit_sparse.costs import (
    STRATEGIES,
    Activations,
    ModelSize,
    Precision,
    memory_per_gpu,
    partition_of,
    trace_activations,
)

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
N, GPUS = 7_000_000_000, 64
NOTHING = Activations(0, 0, 0, 0, 0, 0)


def states(name, precision="bf16-mixed", trained=N):
    """GB of weights, gradients and optimizer on one of 64 GPUs, Adam."""
    plan = memory_per_gpu(
        ModelSize(base=N, total=N, trained=trained, layer=0, outside=0, vocabulary=0),
        NOTHING,
        STRATEGIES[name],
        gpus=GPUS,
        tokens=1,
        precision=Precision.of(precision),
        optimizer_bytes=8,
        checkpointing=False,
        teacher=False,
    )
    return sum(plan.parts[part] for part in ("weights", "gradients", "optimizer")) / 1e9, plan


def test_the_states_are_those_of_the_zero_paper():
    """arXiv 1910.02054, figure 1 and section 5: 7.5e9 parameters are 120, 31.4, 16.6 and 1.9 GB on 64 GPUs."""
    scale = 7.5 / 7
    for name, published in {"zero1": 31.4, "zero2": 16.6, "zero3": 1.9}.items():
        assert states(name)[0] * scale == pytest.approx(published, rel=0.02)
    assert states("ddp")[0] * scale == pytest.approx(120)  # 16 bytes a weight, in whichever precision
    assert states("ddp", "bf16-true")[0] == pytest.approx(12 * N / 1e9)
    assert states("fsdp2")[0] == pytest.approx(16 * N / GPUS / 1e9)


def test_offloading_moves_to_the_host():
    zero2, there = states("zero2"), states("zero2_offload")[1]
    assert there.parts["optimizer"] == there.parts["gradients"] == 0
    assert there.host == zero2[1].parts["optimizer"] + zero2[1].parts["gradients"]
    zero3, there = states("zero3"), states("zero3_offload")[1]
    assert there.host == pytest.approx(zero3[0] * 1e9) and there.parts["weights"] == 0


def test_adapters_leave_gradients_and_states_small():
    zero2 = states("zero2", trained=N // 100)[1]
    assert zero2.parts["weights"] == 2 * N
    assert zero2.parts["optimizer"] == pytest.approx(0.01 * states("zero2")[1].parts["optimizer"])


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        (None, "ddp"),
        ("auto", "ddp"),
        ("ddp_find_unused_parameters_true", "ddp"),
        ("deepspeed", "zero2"),
        ("deepspeed_stage_3_offload", "zero3_offload"),
        ({"class_path": "lit_sparse.training.strategies.SparseDeepSpeedStrategy", "init_args": {"stage": 1}}, "zero1"),
        (
            {"class_path": "a.DeepSpeedStrategy", "init_args": {"stage": 3, "offload_parameters": True}},
            "zero3_offload",
        ),
        ({"class_path": "lit_sparse.training.strategies.SparseFSDPStrategy"}, "fsdp2"),
        ({"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {}}, "ddp"),
    ],
)
def test_strategies_of_configs(strategy, name):
    assert partition_of(strategy).name == name


def test_unknown_strategies_are_refused():
    for strategy in ("tpu", {"class_path": "mine.Strategy"}):
        with pytest.raises(ValueError, match="known: ddp, zero1"):
            partition_of(strategy)


def llama(**changes):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=48, num_key_value_heads=2, **{**sizes, **changes}))
    return sparsify(model, {})


class TestTrace:
    def test_gated_attention_saves_what_its_operator_says(self):
        """q, k, v, the output, and one number a query and head."""
        batch, length, heads, kv_heads, dim = 3, 10, 4, 2, 8
        found = trace_activations(llama(), batch, length).gated_attention
        intervals, seeds = 4 * batch * length * 2, 8 * batch
        layer = 4 * batch * length * ((2 * heads + 2 * kv_heads) * dim + heads) + intervals + seeds
        assert found == pytest.approx(2 * layer, rel=1e-3)

    def test_it_is_what_a_real_pass_saves(self):
        """The same hooks on real tensors, on which nothing is fake."""
        config = llama().config
        real = sparsify(LlamaForCausalLM(config), {}).train()
        own = {parameter.untyped_storage().data_ptr() for parameter in [*real.parameters(), *real.buffers()]}
        saved = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        ids = torch.zeros(2, 8, dtype=torch.long)
        positions = torch.arange(8).expand(2, -1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            real(input_ids=ids, position_ids=positions, use_cache=False, output_attentions=True)
        measured = sum(size for pointer, (size, _) in saved.items() if pointer not in own)
        assert trace_activations(llama(), 2, 8).kept == pytest.approx(measured, rel=0.01)

    def test_it_grows_with_tokens_not_with_their_square(self):
        short, long = (trace_activations(llama(), 1, length).kept for length in (64, 256))
        assert long == pytest.approx(4 * short, rel=0.01)

    def test_checkpointing_keeps_layers_inputs(self):
        deep, shallow = (trace_activations(llama(num_hidden_layers=n), 2, 32) for n in (6, 2))
        assert deep.checkpointed - shallow.checkpointed == 4 * (4 * 2 * 32 * 32)
        assert deep.one_layer == shallow.one_layer
        assert deep.held(True) + deep.one_layer < 0.5 * deep.held(False)

    def test_autocast_halves_products_and_copies_weights(self):
        plain, mixed = trace_activations(llama(), 2, 32), trace_activations(llama(), 2, 32, autocast=torch.bfloat16)
        assert mixed.gated_attention < 0.6 * plain.gated_attention
        matrices = sum(p.numel() for name, p in llama().named_parameters() if "proj" in name or "lm_head" in name)
        assert mixed.weight_copies == mixed.weight_copies_cached == 2 * matrices
        assert plain.weight_copies == 0

    def test_a_forward_pass_that_needs_values_is_refused(self):
        with torch.device("meta"):
            model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=48, n_positions=16))
        sparsify(model, {})
        model.register_forward_pre_hook(lambda module, args, kwargs: kwargs["input_ids"].sum().item(), with_kwargs=True)
        with pytest.raises(ValueError, match="cannot trace"):
            trace_activations(model, 1, 8)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Bytes foretold and measured of each case of the benchmark, in processes of their own; a minute and a half."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        sys.modules.pop("memory", None)
        import memory

        folder = tmp_path_factory.mktemp("memory")
        return {name: memory.compare(case, folder) for name, case in memory.CASES.items()}


@pytest.mark.slow
def test_training_takes_what_was_foretold(measured):
    for name, (foretold, found) in measured.items():
        assert foretold == pytest.approx(found, rel=0.15), name
    # The parts, too: what activations add to the states, and what checkpointing saves of it.
    states, activations, checkpointed = (
        measured[name] for name in ("weights, gradients, optimizer", "activations", "activations, checkpointing")
    )
    assert activations[0] - states[0] == pytest.approx(activations[1] - states[1], rel=0.15)
    assert activations[0] - checkpointed[0] == pytest.approx(activations[1] - checkpointed[1], rel=0.15)
