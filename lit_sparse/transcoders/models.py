"""The shape of the model that a transcoder reads, dense or sparse."""

from lit_sparse.models.base import load_config
from lit_sparse.models.compared import files_of


def shape_of(name: str, *, trust_remote_code: bool = False) -> tuple[int, int]:
    """Layers and width of a model, from its configuration alone.

    Raises:
        ValueError: the model cannot be found or read.
    """
    config = load_config(files_of(name), trust_remote_code=trust_remote_code).get_text_config()
    return config.num_hidden_layers, config.hidden_size
