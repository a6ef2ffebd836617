"""The name `lit_sparse` among the model types of lm-evaluation-harness."""


def register_model_type() -> None:
    """Called once the harness's list of model types is imported; the model type itself is imported when it is used."""
    from lm_eval.api.registry import model_registry

    model_registry.register("lit_sparse", target="lit_sparse.downstream.lm_eval:SparseLM")
