"""A training step recorded once as a CUDA graph and replayed. The processor then makes one launch per step, not 7,000.

    class StepGraph     records a step that also runs its backward pass, and replays it on other inputs

The processor that launches its kernels limits the speed of a small model's step (docs/performance/gpu.md). A replay
repeats exactly the recorded kernels and runs no Python. So everything that changes from step to step must be a tensor
that is written before: inputs are copied into the recorded tensors, and sharpness, cutoffs and weights change in place.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]
Step = Callable[[Inputs], tuple[Tensor, ...]]
"""Computes a step on inputs and runs its backward pass; returns the results to read after it, without gradient."""

_WARMUPS = 3  # compile, choose block sizes, fill caches


@runtime_checkable
class Recording(Protocol):
    """A recorded step, such as a `torch.cuda.CUDAGraph`."""

    def replay(self) -> None: ...


class StepGraph:
    """A recording of `step` on inputs of these shapes.

    Args:
        step: see `Step`.
        inputs: tensors on the GPU, for the step that is recorded.
        parameters: the parameters that get gradients.

    Raises:
        RuntimeError: the step does something that cannot be recorded, such as waiting for the GPU.
    """

    def __init__(self, step: Step, inputs: Inputs, parameters: Sequence[nn.Parameter]):
        self._inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        self._parameters = list(parameters)
        self._graph, self._outputs = record(lambda: step(self._inputs), self._forget_gradients)
        self._gradients = [parameter.grad for parameter in self._parameters]

    def _forget_gradients(self) -> None:
        # A backward pass that finds none writes them instead of adding to them, and so does its replay.
        for parameter in self._parameters:
            parameter.grad = None

    def serves(self, inputs: Inputs) -> bool:
        """True if inputs have the recorded shapes."""
        return all(inputs[name].shape == tensor.shape for name, tensor in self._inputs.items())

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Replays the step on other inputs; results are copies. Call `give_gradients` before the optimizer's step."""
        for name, tensor in self._inputs.items():
            tensor.copy_(inputs[name], non_blocking=True)
        self._graph.replay()
        return tuple(output.clone() for output in self._outputs)

    def give_gradients(self) -> None:
        """Sets the parameters' gradients to those of the last replay."""
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient


def record(run: Callable[[], tuple[Tensor, ...]], prepare: Callable[[], None]) -> tuple[Recording, tuple[Tensor, ...]]:
    """Runs a function a few times, then records one run. `prepare` is called before each run."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARMUPS):
            prepare()
            run()
    torch.cuda.current_stream().wait_stream(stream)
    prepare()
    # Autocast keeps copies of weights from the runs before. In a recording they would never be updated.
    torch.clear_autocast_cache()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = run()
    torch.clear_autocast_cache()
    return graph, outputs
