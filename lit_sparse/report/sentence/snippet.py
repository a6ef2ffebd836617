"""A few lines of Python that check a circuit's claim with a real forward pass."""

from lit_sparse.common.formatting import decimal
from lit_sparse.records.sentence_circuit import SentenceCircuit

_SPARSE = """\
import lit_sparse
from lit_sparse.models import load_tokenizer

name = {name}
model = lit_sparse.load_sparse(name)
tokenizer = load_tokenizer(name)
"""
_DENSE = """\
import lit_sparse
from transformers import AutoModelForCausalLM, AutoTokenizer

name = {name}
model = AutoModelForCausalLM.from_pretrained(name)
tokenizer = AutoTokenizer.from_pretrained(name)
"""
_CHECK = """\
ids = tokenizer({prompt}, return_tensors="pt").input_ids

with lit_sparse.edit(model) as edit:
    edit.keep([  # layer, head, query, key
{edges}    ])
    probabilities = model(ids).logits[0, -1].softmax(-1)

for probability, token in zip(*probabilities.topk(3)):
    print(f"{{probability:.3f}} {{tokenizer.decode(token)!r}}")
# the answer {answer} should have {probability}
"""
_A_LINE = 4  # edges


def snippet(circuit: SentenceCircuit) -> str:
    """Python that keeps the circuit's edges and prints what the model then says next. Text stands in it as literals."""
    edges = [str((edge.layer, edge.head, edge.query, edge.key)) for edge in sorted(circuit.edges)]
    lines = [", ".join(edges[start : start + _A_LINE]) for start in range(0, len(edges), _A_LINE)]
    load = _SPARSE if circuit.sparse else _DENSE
    return load.format(name=repr(circuit.model)) + _CHECK.format(
        prompt=repr(circuit.prompt),
        edges="".join(f"        {line},\n" for line in lines),
        answer=repr(circuit.answer),
        probability=decimal(circuit.circuit.probability),
    )
