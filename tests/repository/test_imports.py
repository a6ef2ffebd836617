"""What an import brings along. That rooms import downwards only, import-linter checks (pyproject.toml, `make lint`)."""

import json

from tests.conftest import REPOSITORY

ATTENTION = """
import json, sys
import lit_sparse.attention
print(json.dumps(sorted(sys.modules)))
"""

ROOT = """
import json, sys
import lit_sparse
loaded = sorted(sys.modules)
from transformers import AutoConfig
print(json.dumps([loaded, AutoConfig.from_pretrained(sys.argv[1]).model_type]))
"""


def _printed(process):
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


def _roots(modules):
    return {module.partition(".")[0] for module in modules}


def test_attention_alone(start_python):
    modules = _printed(start_python("-c", ATTENTION))
    assert not _roots(modules) & {"lightning", "matplotlib", "pandas", "datasets", "peft", "pydantic", "jsonargparse"}
    models = [module for module in modules if module.startswith("transformers.models.")]
    assert not [module for module in models if ".modeling_" in module]
    rooms = {module.split(".")[1] for module in modules if module.startswith("lit_sparse.")}
    assert rooms <= {"common", "attention", "models"}
    assert not [module for module in modules if module.startswith("lit_sparse.models.") and module[18:] != "auto"]


def test_the_root_imports_no_library(start_python):
    """And yet transformers knows sparse folders once it is imported, after lit_sparse as well as before it."""
    loaded, model_type = _printed(start_python("-c", ROOT, REPOSITORY / "release/smollm2_2048"))
    assert not _roots(loaded) & {"torch", "transformers", "numpy", "lightning"}
    assert model_type == "lit_sparse"
