"""Application of a recorded circuit, so that the model runs with its edges only."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from lit_sparse.anatomy.stack import Stack
from lit_sparse.attention import Edit, edit
from lit_sparse.circuits.attention_edges.passes import Passes, means
from lit_sparse.records.sentence_circuit import SentenceCircuit


@contextmanager
def apply_circuit(circuit: SentenceCircuit, model: PreTrainedModel) -> Iterator[Edit]:
    """Context in which only the circuit's edges are kept on its prompt. The other edges pass what they passed when the
    circuit was found, so the model gives the recorded logits on the prompt. Yields the edits, so that more can be made.

    Raises:
        ValueError: the model's layers or heads are not those of the circuit.
    """
    with Stack(model) as stack:
        shape = (stack.graph.layers, max(stack.graph.heads))
        if shape != (circuit.layers, circuit.heads):
            raise ValueError(
                f"the circuit was found in {circuit.model}, with {circuit.layers} layers of {circuit.heads} heads; "
                f"this model has {shape[0]} of {shape[1]}"
            )
        mean = means(stack, circuit.mean_over) if circuit.off == "mean" else None
        ids = torch.tensor([circuit.ids], device=model.device)
        corrupted = torch.tensor([circuit.corrupted_ids], device=model.device) if circuit.corrupted_ids else None
        passes = Passes(stack, ids, circuit.off, means=mean, corrupted=corrupted)
    with edit(model, instead=passes.instead) as edits:
        edits.keep([edge[:4] for edge in circuit.edges])
        yield edits
