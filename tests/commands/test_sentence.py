"""`python main.py circuits --prompt` from a sentence to files."""

import copy
import json

import pytest

from lit_sparse import sparsify
from lit_sparse.circuits.attention_edges import Learning
from lit_sparse.commands import sentence as command
from lit_sparse.commands.main import main
from lit_sparse.models.compared import Candidate
from lit_sparse.models.sparse_folder import export_sparse
from lit_sparse.records.sentence_circuit import SentenceCircuits
from lit_sparse.report.sentence.words import comparison, headline

PROMPT = "dhbakcof"  # the answer is h


@pytest.fixture
def folders(copier, letters, tmp_path, monkeypatch):
    """A dense and a sparse model; masks are learnt in fewer steps."""
    settings = command.SentenceSettings
    monkeypatch.setattr(command, "SentenceSettings", lambda **options: settings(**options, learning=Learning(steps=20)))
    monkeypatch.setattr("lit_sparse.circuits.attention_edges.sentence.SUBJECTS", ["b", "c"])
    monkeypatch.setattr("lit_sparse.circuits.attention_edges.sentence.SPACE", "")
    base, sparse = tmp_path / "base", tmp_path / "sparse"
    copier.save_pretrained(base)
    letters.save_pretrained(base)
    gated = sparsify(copy.deepcopy(copier), {"threshold": 0.2})
    export_sparse(gated, sparse, measured={"model": str(base), "edge_fraction": 0.1}, tokenizer=letters)
    return base, sparse


@pytest.fixture
def circuits(folders, tmp_path, capsys):
    """Runs the command on one of the folders; what it wrote and what it printed."""

    def run(model, *arguments):
        out = tmp_path / "out"
        main(["circuits", "--model", str(model), "--prompt", PROMPT, "--out", str(out), *map(str, arguments)])
        printed, bars = capsys.readouterr()
        assert sorted(file.name for file in out.iterdir()) == ["circuit.html", "circuit.json", "circuit.png"]
        found = SentenceCircuits.load(out / "circuit.json").circuits
        page = (out / "circuit.html").read_text()
        words = " ".join(printed.split())
        for circuit in found:
            assert headline(circuit) in words and headline(circuit) in page
            assert f"{circuit.kind} model: finding the circuit" in bars
        assert (out / "circuit.png").read_bytes().startswith(b"\x89PNG")
        return found, words

    return run


@pytest.mark.parametrize("alone", [[], ["--against", "none"]], ids=" ".join)
def test_a_dense_model_alone(circuits, folders, alone):
    base, _ = folders
    (found,), printed = circuits(base, "--nats", 0.3, *alone)
    assert not found.sparse and found.model == str(base) and found.answer == "h" and found.wrong is None
    assert found.goal == "distribution" and found.nats == 0.3 and found.enough and found.off == "mean"
    assert f'{PROMPT} -> "h"' in printed and "The dense model needs" not in printed


def test_a_sparse_model_beside_its_base(circuits, folders):
    base, sparse = folders
    (first, second), printed = circuits(sparse)
    assert (first.model, first.sparse) == (str(sparse), True) and (second.model, second.sparse) == (str(base), False)
    assert first.answer == second.answer == "h" and first.ids == second.ids
    assert first.open < second.open and comparison([first, second]) in printed
    assert printed.count(f'{PROMPT} -> "h"') == 1


def test_the_answer_of_the_first_model_is_explained_in_both(circuits, folders, copier, letters, tmp_path):
    """The other model would say something else."""
    base, _ = folders
    model = copy.deepcopy(copier)
    model.lm_head.weight.data = model.lm_head.weight.data.roll(3, 0)  # says the letter three places on
    model.save_pretrained(tmp_path / "other")
    letters.save_pretrained(tmp_path / "other")
    (first, second), _ = circuits(base, "--against", tmp_path / "other")
    assert second.whole.predictions[0][0] == "k" and first.answer == second.answer == "h"


def test_a_sparse_model_alone_with_answers(circuits, folders):
    _, sparse = folders
    (found,), printed = circuits(
        sparse, "--against", "none", "--answer", "h", "--wrong", "a", "--keep", 0.8, "--off", "zero", "--searches", 2
    )
    assert found.sparse and found.goal == "difference" and (found.answer, found.wrong) == ("h", "a")
    assert found.keep == 0.8 and found.faithfulness >= 0.8 and found.nats is None and found.off == "zero"
    assert found.agreement is not None and len(found.controls) == 1
    assert f'{PROMPT} -> "h" rather than "a"' in printed and "Control: an arbitrary answer takes" in printed


def test_no_controls(circuits, folders):
    base, _ = folders
    (found,), _ = circuits(base, "--answer", "h", "--wrong", "a", "--controls", 0)
    assert found.controls == [] and found.agreement is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--answer", "h"], "--answer belongs to a sentence: add --prompt"),
        (["--wrong", "h"], "--wrong belongs to a sentence: add --prompt"),
        (["--corrupted", "h"], "--corrupted belongs to a sentence: add --prompt"),
        (["--prompt", PROMPT, "--corrupted", "dmb"], "has 3 tokens, the prompt 8"),
        (["--prompt", "d"], "at least two tokens; 'd' has 1"),
        (["--prompt", ""], "--prompt is empty"),
        (["--prompt", "d!b"], "'d!b'"),
        (["--prompt", PROMPT, "--answer", "hh"], "answer: 'hh' is not one token"),
        (["--prompt", PROMPT, "--answer", "h", "--wrong", "aa"], "answer: 'aa' is not one token"),
        (["--prompt", PROMPT, "--answer", "h", "--wrong", "h"], "the same token: 'h'"),
        (["--prompt", PROMPT, "--wrong", "h"], "add --answer"),
        (["--prompt", "ab" * 9], "the prompt has 18 tokens"),
        (["--prompt", PROMPT, "--keep", "1.5"], "keep is a share of the log-odds, between 0 and 1, got 1.5"),
        (["--prompt", PROMPT, "--nats", "0"], "nats is the largest KL, above 0"),
        (["--prompt", PROMPT, "--searches", "0"], "searches"),
        (["--prompt", PROMPT, "--off", "half"], "off: got half, expected one of 'mean', 'zero'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told_before_weights_are_loaded(folders, arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Candidate, "load", lambda *_: pytest.fail("weights are loaded"))
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as exit:
        main(["circuits", "--model", str(folders[1]), "--out", str(out), *arguments])
    told = capsys.readouterr().err
    assert exit.value.code == 2 and message in told and len(told.splitlines()) == 2 and not out.exists()


def test_an_out_that_is_a_file(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Candidate, "load", lambda *_: pytest.fail("weights are loaded"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit):
        main(["circuits", "--model", str(folders[0]), "--prompt", PROMPT, "--out", str(tmp_path / "file")])
    assert "is a file, not a folder; choose another --out" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_an_answer_that_the_model_does_not_prefer(folders, tmp_path, capsys):
    arguments = ["--prompt", PROMPT, "--answer", "a", "--wrong", "h", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(["circuits", "--model", str(folders[0]), *arguments])
    assert "does not prefer the answer" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_difference_to_another_prompt(circuits, folders):
    sides, printed = circuits(folders[1], "--corrupted", "dmbakcof")
    assert len(sides) == 2 and all(one.off == "corrupted" and one.enough for one in sides)
    assert 'An edge that is off passes its output from the prompt "dmbakcof".' in printed


def test_numbers_are_plain_json(circuits, folders, tmp_path):
    circuits(folders[0])
    (one,) = json.loads((tmp_path / "out" / "circuit.json").read_text())["circuits"]
    assert one["prompt"] == PROMPT and one["tokens"] == list(PROMPT) and len(one["edges"][0]) == 6
