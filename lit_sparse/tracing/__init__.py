"""Traces of a prediction: the open edges that lead from a prompt's tokens to the next token.

trace = lit_sparse.tracing.trace(model, tokenizer, "The capital of France is")
"""

from lit_sparse.tracing.flow import trace

__all__ = ["trace"]
