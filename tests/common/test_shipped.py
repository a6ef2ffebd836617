"""Files that come with the package, in the repository and in an installed wheel."""

import pytest

from lit_sparse.common import shipped as module
from lit_sparse.common.shipped import shipped, shipped_names


def test_in_the_repository():
    assert shipped("configs", "quickstart") == shipped("configs", "quickstart.yaml")
    assert shipped("configs", "quickstart").read_text()
    assert shipped("configs", "paper/gpt2").name == "gpt2.yaml"
    assert shipped("release", "smollm2_2048").is_dir()
    assert shipped("examples", "train.py").is_file()
    assert "paper/gpt2.yaml" in shipped_names("configs") and "train.py" in shipped_names("examples")


@pytest.mark.parametrize("name", ["", "nothing", "paper", "../pyproject.toml", "/etc/hosts", "../release/smollm2_2048"])
def test_what_is_not_shipped(name):
    assert shipped("configs", name) is None


def test_in_a_wheel(tmp_path, monkeypatch):
    """Files inside the package come first, and a folder that happens to lie beside it is none of it."""
    package = tmp_path / "site-packages" / "lit_sparse"
    (package / "configs").mkdir(parents=True)
    (package / "configs" / "own.yaml").write_text("in the wheel")
    (tmp_path / "site-packages" / "examples").mkdir()
    (tmp_path / "site-packages" / "examples" / "foreign.py").write_text("of another package")
    monkeypatch.setattr(module, "_PACKAGE", package)
    assert shipped("configs", "own").read_text() == "in the wheel" and shipped_names("configs") == ["own.yaml"]
    assert shipped("examples", "foreign.py") is None and shipped_names("examples") == []
