"""How a training step is carried out: operator, memory, compilation, recording. None of it changes what is computed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from lit_sparse.attention import Backend
from lit_sparse.attention.compiled import CompiledLayers
from lit_sparse.training.step_graph import Inputs, Step, StepGraph


@dataclass(frozen=True)
class Execution:
    """How steps are carried out.

    Args:
        backend: the attention operator.
        activation_checkpointing: recompute each layer in the backward pass to save memory.
        compile_layers: run training steps through torch.compile, layer by layer; None does on a CUDA GPU.
        record_steps: record the training step as a CUDA graph and replay it: one launch instead of thousands, which
            a small model on a fast GPU waits for. A replay repeats kernels and runs no Python, so hooks, constraint and
            edge objective must depend on nothing but tensors. For one GPU, without gradient accumulation.
    """

    backend: Backend = Backend.AUTO
    activation_checkpointing: bool = False
    compile_layers: bool | None = None
    record_steps: bool = False


class StepRunner:
    """Runs the steps of one model on one device, as its `Execution` says.

    Args:
        execution: how.
        model: the student.
        trainer: of the run.
        shards_weights: whether no process holds all weights.

    Raises:
        ValueError: this run's strategy or device cannot do it.
    """

    def __init__(self, execution: Execution, model: nn.Module, trainer: Trainer, shards_weights: bool):
        on_gpu = trainer.strategy.root_device.type == "cuda"
        if execution.compile_layers and shards_weights:
            raise ValueError("compile_layers does not go with strategies that shard weights: set it to false")
        wanted = execution.compile_layers
        self._compiled = (
            CompiledLayers(model) if (on_gpu and not shards_weights if wanted is None else wanted) else None
        )
        if execution.record_steps:
            _check_recordable(trainer)
        self._records = execution.record_steps
        self._graph: StepGraph | None = None
        self._replayed = False  # whether gradients are the graph's

    def begin(self) -> None:
        """Before a step and its backward pass."""
        if self._compiled is not None:
            self._compiled.attach()

    def end(self) -> None:
        """After its backward pass."""
        if self._compiled is not None:
            self._compiled.detach()

    def __call__(self, step: Step, inputs: Inputs, parameters: Callable[[], list[nn.Parameter]]) -> tuple[Tensor, ...]:
        """What `step` returns for `inputs`, its first tensor the loss.

        Args:
            step: computes it, without the backward pass.
            parameters: that it leaves gradients at.
        """
        if self._records and self._graph is None:
            self._graph = StepGraph(lambda inputs: _with_backward(step, inputs), inputs, parameters())
        self._replayed = self._graph is not None and self._graph.serves(inputs)
        if self._replayed:
            assert self._graph is not None
            return self._graph(inputs)
        return step(inputs)

    def backward(self, run: Callable[[], Any]) -> None:
        """Runs the backward pass; a replayed step has run its own already."""
        if self._replayed:
            assert self._graph is not None
            self._graph.give_gradients()
        else:
            run()


def _check_recordable(trainer: Trainer) -> None:
    single = trainer.world_size == 1 and isinstance(trainer.strategy, SingleDeviceStrategy)
    on_gpu = trainer.strategy.root_device.type == "cuda"
    if not (single and on_gpu and trainer.accumulate_grad_batches == 1):
        raise ValueError("record_steps needs one CUDA GPU and accumulate_grad_batches 1: set it to false")


def _with_backward(step: Step, inputs: Inputs) -> tuple[Tensor, ...]:
    results = step(inputs)
    torch.autograd.backward(results[0])
    return tuple(result.detach() for result in results)
