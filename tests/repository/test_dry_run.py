"""What `make dry-run` changes about a config is about one that there is, and leaves it a config."""

import importlib.util
import shlex

import pytest
import yaml

from lit_sparse.commands.main import main
from tests.conftest import REPOSITORY

SPECIFICATION = importlib.util.spec_from_file_location("dry_run", REPOSITORY / "scripts/dry_run.py")
dry_run = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(dry_run)


@pytest.mark.parametrize("name", dry_run.MORE)
def test_options_are_of_a_config(name, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    options = shlex.split(dry_run.MORE[name])
    with pytest.raises(SystemExit) as exit:
        main(["fit", "--config", f"configs/{name}.yaml", *options, "--print_config"])
    assert exit.value.code == 0
    data = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]
    assert data["eval_batch_size"] == 1 and data["max_documents"] == 100
