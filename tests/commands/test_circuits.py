"""`python main.py circuits` from folders to files."""

import copy
import functools
import json
import re

import pytest
from tqdm import tqdm

from lit_sparse import sparsify
from lit_sparse.circuits.settings import Settings
from lit_sparse.circuits.tasks import TASKS, Draft, Task
from lit_sparse.circuits.work import EDGES, SCORES
from lit_sparse.commands.circuit_parts import Parts
from lit_sparse.commands.main import main
from lit_sparse.models.compared import Candidate
from lit_sparse.models.digest import digest_of
from lit_sparse.models.sparse_folder import export_sparse, load_sparse

KEYS = {
    "task", "level", "fraction", "base", "sparse", "ratio", "ratio_low", "ratio_high", "base_score", "sparse_score",
    "seeds",
}  # fmt: skip


class SecondLetter(Task):
    name = "second_letter"
    description = "abcdefgh -> b"

    def templates(self, vocabulary):
        def draft(random):
            letters = [random.choice("abcdefghijklmnop") for _ in range(8)]
            other = random.choice([letter for letter in "abcdefghijklmnop" if letter != letters[1]])
            return Draft("".join(letters), "".join([letters[0], other, *letters[2:]]), [letters[1]], [other])

        return {"only": draft}


@pytest.fixture
def folders(copier, letters, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "second_letter", SecondLetter)
    base, sparse = tmp_path / "base", tmp_path / "sparse"
    copier.save_pretrained(base)
    letters.save_pretrained(base)
    gated = sparsify(copy.deepcopy(copier), {"threshold": 0.2})
    export_sparse(gated, sparse, measured={"model": str(base), "edge_fraction": 0.1}, tokenizer=letters)
    return sparse, tmp_path / "out"


@pytest.mark.parametrize("method", ["eap-ig", "exact"])
def test_a_comparison_is_written_and_goes_on_where_it_stopped(folders, method, capsys, monkeypatch):
    sparse, out = folders
    arguments = ["circuits", "--model", str(sparse), "--task", "second_letter,ioi", "--method", method]
    arguments += ["--prompts", "12", "--seeds", "2", "--out", str(out)]
    measured = []
    measure = Parts.measure
    monkeypatch.setattr(Parts, "measure", lambda *args: measured.append(args[2:4]) or measure(*args))
    # Every step is drawn, however soon the next one follows.
    monkeypatch.setattr(tqdm, "__init__", functools.partialmethod(tqdm.__init__, mininterval=0))
    main(arguments)
    printed, bar = capsys.readouterr()
    assert re.search(r"^about \d+ s for base, \d+ s for sparse$", printed, re.MULTILINE)
    assert printed.index("about") < printed.index("accuracy")
    told = [float(share) for share in re.findall(r"(\d+)%\|", bar)]
    assert told == sorted(told) and told[0] == 0 and told[-1] >= 90 and len(told) > 5, "one bar, always forward"
    assert all(
        f"{side}, second_letter, seed 1: {what}" in bar for side in ("base", "sparse") for what in (SCORES, EDGES)
    )
    assert "second_letter" in printed and "cannot express" in printed
    assert len(measured) == 8
    rows = json.loads((out / "comparison.json").read_text())
    assert len(rows) == 8 and all(row.keys() == KEYS for row in rows)
    assert {row["task"] for row in rows} == {"second_letter"} and {row["level"] for row in rows} == {"head", "edge"}
    ninety = next(row for row in rows if row["level"] == "edge" and row["fraction"] == 0.9)
    assert 1 <= ninety["base"] <= 82 and ninety["ratio"] == pytest.approx(ninety["base"] / ninety["sparse"])
    assert ninety["ratio_low"] <= ninety["ratio"] <= ninety["ratio_high"] and ninety["base_score"] > 1
    details = json.loads((out / "circuits.json").read_text())
    assert details["models"]["sparse"]["model_digest"] == digest_of(load_sparse(sparse))
    assert details["models"]["base"]["model_digest"].startswith("dense-")
    task, skipped = details["tasks"]
    assert skipped["base"] is None and "cannot express" in skipped["skipped"]
    for side in ("base", "sparse"):
        assert task[side]["accuracy"] > 0.9 and task[side]["templates"]["only"]["prompts"] == 48
        curve = task[side]["runs"][0]["edge"]
        assert curve["total"] == 82 and curve["values"][-1] == pytest.approx(1, abs=0.05)
        assert len(task[side]["example"]["tokens"]) == 8 and task[side]["example"]["heads"]
        edges = task[side]["circuit"]["edges"]
        assert task[side]["circuit"]["count"] == len(edges) and abs(edges[0][2]) >= abs(edges[-1][2])
    allowed = 4 * 8 * 9 / 2
    opened = {side: task[side]["attention_edges"]["0.9"] for side in ("base", "sparse")}
    assert opened["base"] % (allowed / 4) == 0 and opened["sparse"] < opened["base"]
    assert "second_letter" in (out / "circuits.html").read_text()
    assert {"second_letter_curves.png", "ratios.png"} <= {file.name for file in out.iterdir()}
    main(arguments)
    assert len(measured) == 8
    printed, bar = capsys.readouterr()
    assert "about" not in printed and "%|" not in bar, "nothing is left to do"
    next((out / "parts").glob("sparse-second_letter-1-*")).unlink()
    main(arguments)
    assert measured[8:] == [("second_letter", 1)]
    assert re.search(r"^about \d+ s for sparse$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([], Settings(method="eap", prompts=8)),
        (["--method", "exact", "--prompts=9"], Settings(method="exact", prompts=9)),
    ],
)
def test_quick_sets_what_is_not_said(folders, said, expected, monkeypatch):
    sparse, out = folders
    asked = []

    def ask(models, console):
        asked.extend(models)
        raise ValueError("enough")

    monkeypatch.setattr("lit_sparse.commands.circuits.measure_missing", ask)
    arguments = ["circuits", "--model", str(sparse), "--out", str(out), "--task", "second_letter"]
    with pytest.raises(SystemExit):
        main([*arguments, *said, "--quick"])
    assert [parts.settings for parts in asked] == [expected, expected]
    assert [list(parts.seeds) for parts in asked] == [[0], [0]]
    with pytest.raises(SystemExit):
        main([*arguments, "--quick", "--seeds", "2"])
    assert list(asked[-1].seeds) == [0, 1]


def test_help_says_what_quick_sets(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["circuits", "--help"])
    assert exit.value.code == 0
    assert "--prompts 8 --seeds 1 --method eap" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "nonsense"], "no task 'nonsense'"),
        (["--seeds", "0"], "--seeds"),
        (["--prompts", "0"], "prompts"),
        (["--quick", "--prompts", "0"], "prompts"),
        (["--quick", "--prompt", "dhbakcof"], "--quick belongs to tasks"),
        (["--against", "none"], "--against none belongs to a sentence"),
    ],
)
def test_mistakes_are_told_before_work_starts(folders, arguments, message, capsys, monkeypatch):
    sparse, out = folders
    monkeypatch.setattr(Candidate, "load", lambda *_: pytest.fail("weights are loaded"))
    with pytest.raises(SystemExit):
        main(["circuits", "--model", str(sparse), "--out", str(out), *arguments])
    assert message in capsys.readouterr().err and not out.exists()
