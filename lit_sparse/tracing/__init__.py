"""Why the next token came out as it did: open edges walked back from the answer.

trace = lit_sparse.tracing.trace(model, tokenizer, "The capital of France is")
"""

from lit_sparse.tracing.flow import trace

__all__ = ["trace"]
