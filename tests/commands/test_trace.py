"""`python main.py trace` from a model's folder to files."""

import json

import pytest

from lit_sparse.commands.options import trace
from tests.tiny import export_sparse_llama


@pytest.fixture(scope="module")
def sparse_folder(tmp_path_factory, llama_folder, character_tokenizer):
    return export_sparse_llama(tmp_path_factory.mktemp("trace") / "sparse", llama_folder, character_tokenizer, 0.2)


def test_command_writes_page_picture_and_numbers(tmp_path, sparse_folder, llama_folder, capsys):
    out = tmp_path / "out"
    trace.COMMAND.call(["--model", str(sparse_folder), "--prompt", "12+34=", "--answer", "4", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "12+34=" in printed.replace("\n", "") and "Edges shown" in printed
    assert sorted(file.name for file in out.iterdir()) == ["trace.html", "trace.json", "trace.png"]
    content = json.loads((out / "trace.json").read_text())
    assert [entry["sparse"] for entry in content["traces"]] == [True, False]
    assert content["traces"][1]["model"] == str(llama_folder) and content["answer"] == "4"
    assert content["format"] == 2
    for entry in content["traces"]:
        assert len(entry["without"]) == entry["shown"] <= len(entry["edges"]["layer"])
    assert content["traces"][0]["open"] < content["traces"][1]["open"] == 2 * 4 * 21
    assert (out / "trace.png").read_bytes().startswith(b"\x89PNG")


def test_command_with_many_prompts(tmp_path, sparse_folder, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text("1+2=\n\nthe cat \n")
    trace.COMMAND.call(
        ["--model", str(sparse_folder), "--against", "none", "--prompts", str(file), "--out", str(tmp_path)]
    )
    content = json.loads((tmp_path / "traces.json").read_text())
    assert [row["prompt"] for row in content["prompts"]] == ["1+2=", "the cat "]
    rows = [row["models"][0] for row in content["prompts"]]
    assert content["mean"][0]["reach"] == sum(row["reach"] for row in rows) / 2
    assert "mean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "ab", "--answer", "ab"], "not one token"),
        (["--prompt", "a"], "needs at least two tokens, .*; 'a' became one: 'a'"),
        (["--prompt", ""], "empty"),
        (["--prompt", "a" * 33], "33 tokens"),
        (["--prompt", "a", "--keep", "0"], "share"),
        ([], "either --prompt"),
        (["--prompts", "missing.txt"], "no file of prompts"),
    ],
)
def test_command_refuses_before_it_loads_weights(arguments, message, sparse_folder, monkeypatch):
    import lit_sparse.models.compared as candidates

    monkeypatch.setattr(candidates.Candidate, "load", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(ValueError, match=message):
        trace.COMMAND.call(["--model", str(sparse_folder), *arguments])


def test_a_base_that_is_gone_is_left_out_with_a_note(tmp_path, sparse_folder, capsys):
    import shutil

    folder = shutil.copytree(sparse_folder, tmp_path / "alone")
    description = json.loads((folder / "sparse.json").read_text())
    description["measured"] = {"model": str(tmp_path / "gone")}
    (folder / "sparse.json").write_text(json.dumps(description))
    trace.COMMAND.call(["--model", str(folder), "--prompt", "1+2="])
    assert "without a base model" in capsys.readouterr().out
