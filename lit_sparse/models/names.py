"""The name of a model in records and views."""

from pathlib import Path

from transformers import PreTrainedModel

from lit_sparse.attention.bridge import base_name_of


def shown_name(model: PreTrainedModel) -> str:
    """The base's name of a sparse model, the name of another one, of a path its last part; the family where a model has
    no name."""
    name = base_name_of(model) or model.config.name_or_path or model.config.model_type
    return Path(name).name if Path(name).is_absolute() else name
