"""A few lines of Python that check a circuit's claim with a real forward pass."""

from lit_sparse.common.formatting import decimal
from lit_sparse.records.sentence_circuit import SentenceCircuit

_SNIPPET = """\
import torch
from lit_sparse.models import load_any, load_tokenizer
from lit_sparse.records.sentence_circuit import SentenceCircuits

name = {name}
model, tokenizer = load_any(name, dtype=torch.float32), load_tokenizer(name)
ids = tokenizer({prompt}, return_tensors="pt").input_ids
circuit = SentenceCircuits.load("circuit.json").circuits[{place}]  # beside this page

with circuit.apply(model) as edit:  # keeps its {edges} edges
    # edit.close(layer={layer}, head={head}, query={query}, key={key})  # and one less
    probabilities = model(ids).logits[0, -1].softmax(-1)

for probability, token in zip(*probabilities.topk(3)):
    print(f"{{probability:.3f}} {{tokenizer.decode(token)!r}}")
# {answer} should have {probability}
"""


def snippet(circuit: SentenceCircuit, place: int = 0) -> str:
    """Python that keeps the circuit's edges and prints what the model then says next. Text stands in it as literals.

    Args:
        place: of the circuit in circuit.json.
    """
    layer, head, query, key = circuit.edges[0][:4] if circuit.edges else (0, 0, 0, 0)
    return _SNIPPET.format(
        name=repr(circuit.model),
        prompt=repr(circuit.prompt),
        place=place,
        edges=len(circuit.edges),
        layer=layer,
        head=head,
        query=query,
        key=key,
        answer=repr(circuit.answer),
        probability=decimal(circuit.circuit.probability),
    )
