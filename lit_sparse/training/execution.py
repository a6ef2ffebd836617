"""Execution of a training step: operator, memory, compilation, recording. It does not change what is computed."""

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
    """Settings for the execution of training steps.

    Args:
        backend: the attention operator.
        activation_checkpointing: recompute each layer in the backward pass to save memory.
        compile_layers: run training steps through torch.compile, layer by layer; None does so on a CUDA GPU only.
        record_steps: record the training step as a CUDA graph and replay it. This makes one launch instead of
            thousands, on which a small model on a fast GPU waits. A replay repeats kernels and runs no Python, so
            hooks, constraint and edge objective may depend on tensors only. For one GPU, without gradient accumulation.
    """

    backend: Backend = Backend.AUTO
    activation_checkpointing: bool = False
    compile_layers: bool | None = None
    record_steps: bool = False


class StepRunner:
    """Runs the steps of one model on one device, as its `Execution` says.

    Args:
        execution: the settings.
        model: the student.
        trainer: the run's trainer.
        shards_weights: True if no process holds all weights.

    Raises:
        ValueError: this run's strategy or device does not support the settings.
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
        self._replayed = False  # True if gradients are the graph's

    def begin(self) -> None:
        """Prepares a step and its backward pass."""
        if self._compiled is not None:
            self._compiled.attach()

    def end(self) -> None:
        """Ends a step after its backward pass."""
        if self._compiled is not None:
            self._compiled.detach()

    def __call__(self, step: Step, inputs: Inputs, parameters: Callable[[], list[nn.Parameter]]) -> tuple[Tensor, ...]:
        """Runs a step and returns its results, of which the first tensor is the loss.

        Args:
            step: computes the results of `inputs`, without the backward pass.
            parameters: gives the parameters that get gradients.
        """
        if self._records and self._graph is None:
            self._graph = StepGraph(lambda inputs: _with_backward(step, inputs), inputs, parameters())
        self._replayed = self._graph is not None and self._graph.serves(inputs)
        if self._replayed:
            assert self._graph is not None
            return self._graph(inputs)
        return step(inputs)

    def backward(self, run: Callable[[], Any]) -> None:
        """Runs the backward pass, unless a replayed step has run its own already."""
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
