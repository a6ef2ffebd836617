"""Whole computations on a device that is not the CPU (`device.py`): what stays behind on the CPU, what takes
the wrong generator, what a GPU would be waited for."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

from lit_sparse import SparseAttentionModule, sparsify
from lit_sparse.anatomy.stack import Stack
from lit_sparse.attention import Probability, gates_of, open_edges, reference_pattern
from lit_sparse.attribution import Kind, build_graph, why_open
from lit_sparse.circuits.edge_scores import eap, exact
from lit_sparse.circuits.faithfulness import Evaluator, Ranking
from lit_sparse.circuits.measure import _open_edges
from lit_sparse.circuits.node_scores import patch_nodes
from lit_sparse.circuits.prompts import Prompts
from lit_sparse.circuits.pruning import prune
from lit_sparse.data import AdditionData
from lit_sparse.models.adapters import LoraConfig, add_lora
from lit_sparse.models.base import load_model
from lit_sparse.objective import Lagrangian
from lit_sparse.tracing import trace
from lit_sparse.training.callbacks.sparsity import SparsityByHead
from lit_sparse.training.callbacks.throughput import Throughput
from lit_sparse.training.end.finish import attention_example
from lit_sparse.training.selection import Selection
from lit_sparse.training.start.calibration import Calibration, calibrate
from lit_sparse.transcoders import Transcoder, TranscoderConfig
from tests.pretended.device import DEVICE, PretendDevice, values


@pytest.fixture
def device():
    with PretendDevice() as device:
        yield device


class PretendAccelerator(Accelerator):
    """One device, for Lightning."""

    def setup_device(self, device):
        pass

    def teardown(self):
        pass

    def get_device_stats(self, device):
        return {}

    @staticmethod
    def parse_devices(devices):
        return 1

    @staticmethod
    def get_parallel_devices(devices):
        return [DEVICE]

    @staticmethod
    def auto_device_count():
        return 1

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def name():
        return "pretend"


def batch_of(ids):
    labels = ids.roll(-1, 1)
    return {"input_ids": ids, "position_ids": torch.arange(ids.shape[1]).expand_as(ids).contiguous(), "labels": labels}


def there(batch):
    return {name: tensor.to(DEVICE) for name, tensor in batch.items()}


def test_a_vector_left_on_the_cpu_is_found(device):
    x = torch.ones(3, device=DEVICE)
    assert x.device == DEVICE and (x + torch.tensor(1.0)).sum().item() == 6
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError):
        x.numpy()
    assert device.waits.total() == 1


def test_models_and_adapters_start_the_same_on_every_device(llama_folder, device):
    found = []
    for where in ("cpu", DEVICE):
        torch.manual_seed(5)
        with torch.device(where):  # as Lightning does around configure_model
            model = sparsify(load_model(str(llama_folder)), {"centered": True})
            model = add_lora(model, LoraConfig(r=2))
        assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
        found.append(model.to(where).state_dict())
    assert any("lora_A" in name for name in found[0])
    for name, tensor in found[0].items():
        torch.testing.assert_close(values(found[1][name]), tensor, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["probability", "contribution", "logit"])
def test_calibration_finds_the_same_start(family, make_model, tokens, device):
    found = []
    for where in ("cpu", DEVICE):
        batches = [{name: x.to(where) for name, x in batch_of(tokens(3, 24, seed)).items()} for seed in (0, 1)]
        model = sparsify(make_model("llama"), {"family": family, "centered": True}).to(where)
        found.append((calibrate(model, batches, Calibration(edge_fraction=0.3)), gates_of(model)))
    (on_cpu, gates), (on_device, others) = found
    assert tuple(vars(on_device).values()) == pytest.approx(tuple(vars(on_cpu).values()), rel=1e-4)
    for gate, other in zip(gates, others, strict=True):
        for expected, tensor in zip(gate.state_dict().values(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(values(tensor), expected, rtol=1e-4, atol=1e-5)


def prompts_of(clean, corrupted, vocabulary=64):
    marks = torch.zeros(2, len(clean), vocabulary, dtype=torch.bool, device=clean.device)
    marks[0, :, 5], marks[1, :, 9] = True, True
    return Prompts(clean, corrupted, *marks)


def metric(logits):
    return logits[:, 5] - logits[:, 9]


@pytest.mark.parametrize("gate", [None, {"threshold": 0.1, "family": "contribution"}])
def test_circuits(gate, make_model, tokens, device):
    found = []
    for where in ("cpu", DEVICE):
        clean, corrupted = (tokens(3, 7, seed).to(where) for seed in (1, 2))
        model = make_model("llama").to(where)
        if gate is not None:
            sparsify(model, gate)
        with Stack(model) as stack:
            parts = [exact(stack, clean, corrupted, metric), eap(stack, clean, corrupted, metric, interpolations=2)]
            parts += patch_nodes(stack, clean, corrupted, metric)
            evaluator = Evaluator(stack, [prompts_of(clean, corrupted)], "mean")
            ranking = Ranking.of_edges(stack, parts[0])
            parts.append(torch.tensor([ranking.faithfulness(evaluator, count) for count in (3, 30)]))
            heads = Ranking.of_heads(stack, parts[2])
            parts.append(torch.tensor([heads.faithfulness(evaluator, count) for count in (1, 4)]))
            kept = prune(evaluator, ranking.circuit(8), parts[0], 0.05)
            parts += [kept.float(), _open_edges(stack, [prompts_of(clean, corrupted)])]
        found.append(parts)
    for on_cpu, on_device in zip(*found, strict=True):
        assert on_device.device.type == "cpu"
        torch.testing.assert_close(values(on_device), on_cpu, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_traces(family, make_model, character_tokenizer, device):
    found = []
    for where in ("cpu", DEVICE):
        model = sparsify(make_model(family), {"threshold": 0.1, "centered": True}).to(where)
        found.append(trace(model, character_tokenizer, "1+2=3"))
    on_cpu, on_device = found
    assert on_device.shown.edges == on_cpu.shown.edges
    assert on_device.cut == pytest.approx(on_cpu.cut, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("gate", [None, {"threshold": 0.1, "centered": True}])
def test_attribution_graphs(gate, make_model, tokens, device):
    found = []
    for where in ("cpu", DEVICE):
        model = make_model("llama").to(where)
        if gate is not None:
            sparsify(model, gate)
        torch.manual_seed(0)
        transcoder = Transcoder(TranscoderConfig(features=24, k=6), 2, 32)
        graph = build_graph(model, transcoder, tokens(1, 7))
        head = int((graph.nodes.kind == Kind.HEAD).nonzero()[0][0])
        found.append((graph, why_open(model, transcoder, graph, [head], most_keys=1).edges[head][0].gate))
    (on_cpu, gate_on_cpu), (on_device, gate_on_device) = found
    assert (gate_on_device is None) == (gate_on_cpu is None)
    assert len(on_device.nodes) == len(on_cpu.nodes)
    torch.testing.assert_close(torch.from_numpy(on_device.edges.weight), torch.from_numpy(on_cpu.edges.weight))


def test_patterns_and_open_edges(make_model, tokens, device):
    model = sparsify(make_model("llama"), {"threshold": 0.1}).to(DEVICE)
    pattern = reference_pattern(model, tokens(1, 7).to(DEVICE))
    listed = open_edges(model, tokens(1, 7).to(DEVICE))
    assert pattern.weights.device.type == "cpu"
    assert int(pattern.is_open[0].sum()) == len(listed[0].weights)


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)])
def test_a_run(lora, llama_folder, tmp_path, device):
    """Calibration, training with validation, and evaluation, with the CPU's numbers."""
    found = []
    for where in ("cpu", "pretend"):
        torch.manual_seed(0)
        module = SparseAttentionModule(
            str(llama_folder),
            gate=Probability(centered=True, sharpness_end=4.0),
            objective=Lagrangian(distillation=0.1),
            start=Calibration(edge_fraction=0.5, train_from_kl=0.2),
            lora=lora,
            selection=Selection(exact_match=0.0),
        )
        trainer = Trainer(
            accelerator="auto" if where == "pretend" else "cpu",
            strategy=SingleDeviceStrategy(DEVICE, PretendAccelerator()) if where == "pretend" else "auto",
            callbacks=[Throughput(), SparsityByHead()],
            max_steps=4,
            val_check_interval=2,
            check_val_every_n_epoch=None,
            gradient_clip_val=1.0,
            num_sanity_val_steps=0,
            default_root_dir=tmp_path / where,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = AdditionData(digits=1, batch_size=8, eval_batch_size=16, held_out=0.2)
        trainer.fit(module, datamodule=data)
        module.to(DEVICE if where == "pretend" else "cpu")
        end, example = module.evaluate(data.test_dataloader()), attention_example(module)
        found.append(
            {
                "start": module.state.start.kl,
                "lambda": float(module.objective.multiplier.value),
                "after": example.after.sum(),
            }
        )
        found[-1] |= end.metrics()
    assert found[1] == pytest.approx(found[0], rel=1e-2)


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)])
def test_the_device_is_not_waited_for_in_the_model(lora, llama_folder, device):
    """But once in transformers, which looks for packed documents in the positions."""
    module = SparseAttentionModule(str(llama_folder), lora=lora)
    module.configure_model()
    module.to(DEVICE).train()
    batch = {name: tensor.to(DEVICE) for name, tensor in batch_of(torch.arange(20).view(2, 10)).items()}
    device.waits.clear()
    logits, edges = module(batch)
    (logits.square().mean() + module.edge_loss(edges)).backward()
    assert device.waits.total() <= 1, device.waits
