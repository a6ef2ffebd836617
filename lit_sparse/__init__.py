"""lit_sparse: post-train any causal language model to sparse attention, edge by edge, at the same loss."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lit_sparse.common.late import lend, when_imported

if TYPE_CHECKING:
    from lit_sparse.attention import (
        Contribution,
        Gate,
        GateConfig,
        Logit,
        Probability,
        desparsify,
        edit,
        register_gate,
        sparsify,
    )
    from lit_sparse.commands.quiet import quiet
    from lit_sparse.models.hub import from_pretrained
    from lit_sparse.report.notebook import side_by_side
    from lit_sparse.tracing.attention import show_attention
    from lit_sparse.training.module import SparseAttentionModule

__version__ = "0.1.0"

__all__ = [
    "Contribution",
    "Gate",
    "GateConfig",
    "Logit",
    "Probability",
    "SparseAttentionModule",
    "desparsify",
    "edit",
    "from_pretrained",
    "quiet",
    "register_gate",
    "show_attention",
    "side_by_side",
    "sparsify",
]

_NAMES = {
    **dict.fromkeys(
        [
            "Contribution",
            "Gate",
            "GateConfig",
            "Logit",
            "Probability",
            "desparsify",
            "edit",
            "register_gate",
            "sparsify",
        ],
        "lit_sparse.attention",
    ),
    "from_pretrained": "lit_sparse.models.hub",
    "SparseAttentionModule": "lit_sparse.training.module",
    "quiet": "lit_sparse.commands.quiet",
    "show_attention": "lit_sparse.tracing.attention",
    "side_by_side": "lit_sparse.report.notebook",
}

# A sparsified model's save_pretrained writes a sparse model folder, and transformers' Auto classes load one. A recorded
# circuit is applied to a model. Jupyter shows a record as the page that the report makes of it. lm-evaluation-harness
# knows the model type `lit_sparse`.
lend("save_sparse", "lit_sparse.models.sparse_folder:save_sparse")
lend("notebook_html", "lit_sparse.report.notebook:notebook_html")
lend("apply_circuit", "lit_sparse.circuits.attention_edges.apply:apply_circuit")
when_imported("transformers.models.auto.configuration_auto", "lit_sparse.models.auto:register_config")
when_imported("transformers.models.auto.modeling_auto", "lit_sparse.models.auto:register_model")
when_imported("lm_eval.models", "lit_sparse.downstream.registration:register_model_type")


def __getattr__(name: str) -> Any:
    """torch, transformers and Lightning are imported when something is asked for that needs them."""
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_NAMES[name]), name)
