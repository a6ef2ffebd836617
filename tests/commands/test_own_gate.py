"""A gate family of the user's, that of docs/howto/own_gate.md: in Python, on the command line, in a model folder."""

import json
import re
import sys

import pytest
import yaml

import lit_sparse
from lit_sparse.attention import GATES, gates_of
from lit_sparse.commands.main import main
from lit_sparse.models.base import load_model
from tests.conftest import REPOSITORY

LOAD = """
import sys
import lit_sparse
try:
    lit_sparse.from_pretrained(sys.argv[1])
except ValueError as error:
    print(error)
import my_gates
print(lit_sparse.attention.gates_of(lit_sparse.from_pretrained(sys.argv[1]))[0].config)
"""


@pytest.fixture
def my_gates(tmp_path, monkeypatch):
    """The page's example as a module that can be imported."""
    page = (REPOSITORY / "docs/howto/own_gate.md").read_text()
    (code,) = re.findall(r"```python\n((?:(?!```).)*register_gate.*?)```", page, re.S)
    (tmp_path / "my_gates.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    import my_gates

    yield my_gates
    del sys.modules["my_gates"], GATES["mine"]


def test_cutoff_and_slope_are_the_configs(my_gates, llama_folder):
    model = lit_sparse.sparsify(load_model(str(llama_folder)), my_gates.Mine(cutoff=-3.5, slope=7.0))
    for gate in gates_of(model):
        assert gate.form().cutoff.tolist() == [-3.5] * 4 and float(gate.form().sharpness) == 7.0


def test_it_is_trained_exported_and_loaded(my_gates, make_config, tmp_path, start_python):
    gate = {"class_path": "my_gates.Mine", "init_args": {"cutoff": -3.5, "centered": False}}
    main(["fit", "--config", str(make_config("run", {"model.init_args.gate": gate})),
          "--model.init_args.gate.init_args.slope", "7"])  # fmt: skip
    resolved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["model"]["init_args"]["gate"]
    assert resolved["class_path"] == "my_gates.Mine" and resolved["init_args"]["slope"] == 7.0
    folder = tmp_path / "run/model"
    expected = {"cutoff": -3.5, "slope": 7.0, "learnable": True, "normalisation": "all", "centered": False}
    assert json.loads((folder / "sparse.json").read_text())["gate"] == {"family": "mine", **expected}
    model = lit_sparse.from_pretrained(folder)
    assert {type(found) for found in gates_of(model)} == {my_gates.MyGate}
    assert any((found.cutoff != -3.5).any() for found in gates_of(model)), "what was learned, not where it started"
    assert float(gates_of(model)[0].form().sharpness) == 7.0
    process = start_python("-c", LOAD, folder, PYTHONPATH=f"{REPOSITORY}:{tmp_path}")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    refused, loaded = output.strip().splitlines()[-2:]
    assert "unknown gate family 'mine'" in refused and "once the module that defines it has been imported" in refused
    assert loaded == repr(my_gates.Mine(cutoff=-3.5, slope=7.0))
