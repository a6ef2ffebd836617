"""`lit-sparse demo` with a tiny model in place of the shipped one, and `lit-sparse push` to a hub of the tests' own."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from lit_sparse.commands.main import main
from tests.models.conftest import hub  # noqa: F401 - a fixture
from tests.tiny import export_sparse_llama

pytestmark = pytest.mark.usefixtures("unpainted")


@pytest.fixture(scope="module")
def package(tmp_path_factory, llama_folder, character_tokenizer):
    """A package with the recommended model."""
    folder = tmp_path_factory.mktemp("package")
    export_sparse_llama(folder / "release" / "smollm2_2048", llama_folder, character_tokenizer, 0.2)
    return folder


def test_demo(package, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lit_sparse.common.shipped._PACKAGE", package)
    main(["demo", "--prompt", "12+34=", "--out", str(tmp_path / "demo")])
    printed = capsys.readouterr().out
    page = tmp_path / "demo" / "trace.html"
    assert "12+34=" in printed.replace("\n", "") and "Edges shown, sparse model" in printed
    assert page.is_file() and page.as_uri() in printed.splitlines()[-3]
    assert printed.splitlines()[-2].startswith("Next: ")


def test_demo_of_a_package_without_its_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lit_sparse.common.shipped._PACKAGE", tmp_path)
    with pytest.raises(SystemExit) as exit:
        main(["demo", "--out", str(tmp_path / "demo")])
    assert exit.value.code == 2 and "has no model smollm2_2048; clone the repository" in capsys.readouterr().err


def test_push(hub, package, capsys):  # noqa: F811
    folder = package / "release" / "smollm2_2048"
    Path(constants.HF_TOKEN_PATH).write_text("hf_write")
    main(["push", "--model", str(folder), "--to", "me/new", "--license", "mit", "--message", "the first"])
    assert capsys.readouterr().out == f"model: {hub.address}/me/new\n"
    assert {"sparse.json", "gates.safetensors", "README.md"} <= hub.files("me/new").keys()
    assert hub.message("me/new") == "the first" and b"license: mit" in hub.files("me/new")["README.md"]


def test_a_push_that_may_not_be(hub, package, capsys):  # noqa: F811
    with pytest.raises(SystemExit) as exit:
        main(["push", "--model", str(package / "release" / "smollm2_2048"), "--to", "me/new"])
    message = capsys.readouterr().err
    assert exit.value.code == 2 and "hf auth login" in message and len(message.splitlines()) == 2
