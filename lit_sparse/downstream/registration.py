"""Registration of `lit_sparse` among the model types of lm-evaluation-harness."""


def register_model_type() -> None:
    """Registers the model type when the harness's list of model types is imported. Its class is imported at its use."""
    from lm_eval.api.registry import model_registry

    model_registry.register("lit_sparse", target="lit_sparse.downstream.lm_eval:SparseLM")
