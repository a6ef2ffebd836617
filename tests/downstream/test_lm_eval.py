"""The harness's own command line and its Python function on a sparse model folder, against `run_tasks`."""

import json
import shutil

import datasets
import pytest

from lit_sparse import from_pretrained
from lit_sparse.downstream import load_tasks, run_tasks
from tests.tiny import export_sparse_llama

lm_eval = pytest.importorskip("lm_eval")

TASK = """
task: animals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def sparse_folder(llama_folder, character_tokenizer, tmp_path_factory):
    return export_sparse_llama(tmp_path_factory.mktemp("exported") / "model", llama_folder, character_tokenizer, 0.15)


@pytest.fixture
def task_file(tmp_path, monkeypatch):
    """A task whose data is named by its whole path, so that the harness finds it from any folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    questions = [
        {"context": f"the {animal}", "choices": ["sat", "ran", "hid"], "answer": number % 3}
        for number, animal in enumerate(["cat", "dog", "owl", "rat", "bat", "hen", "pig", "cow"])
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    (tmp_path / "animals.yaml").write_text(TASK.format(questions=tmp_path / "questions.jsonl"))
    return tmp_path / "animals.yaml"


def answers(results):
    """The log-likelihood of each choice of each question."""
    return [[response[0][0] for response in sample["resps"]] for sample in results["samples"]["animals"]]


def simple(model, task_file, arguments, **options):
    """The harness's own function; its thousands of tasks are not read."""
    from lm_eval.tasks import TaskManager

    options |= {"tasks": [str(task_file)], "task_manager": TaskManager(include_defaults=False)}
    return lm_eval.simple_evaluate(model=model, model_args=arguments, device="cpu", bootstrap_iters=0, **options)


def test_a_sparse_folder_scores_as_its_model_does(sparse_folder, character_tokenizer, task_file):
    from lm_eval.models.huggingface import HFLM

    found = simple("lit_sparse", task_file, f"pretrained={sparse_folder}", batch_size=3)
    model = from_pretrained(sparse_folder)
    wrapped = HFLM(pretrained=model, tokenizer=character_tokenizer, batch_size=3)
    assert answers(found) == answers(simple(wrapped, task_file, None))
    (expected,) = run_tasks(model, character_tokenizer, load_tasks([str(task_file)]))
    assert found["results"]["animals"]["acc,none"] == expected.score.value
    dense = json.loads((sparse_folder / "sparse.json").read_text())["measured"]["model"]
    base = answers(simple("hf", task_file, f"pretrained={dense},dtype=float32", batch_size=3))
    assert answers(found) != base, "the gates must matter here"


def test_a_folder_without_a_tokenizer(sparse_folder, llama_folder, task_file, tmp_path):
    bare = shutil.copytree(sparse_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ValueError, match=r"no tokenizer in .*tokenizer=NAME"):
        simple("lit_sparse", task_file, f"pretrained={bare}")
    found = simple("lit_sparse", task_file, f"pretrained={bare},tokenizer={llama_folder}")
    assert found["results"]["animals"]["sample_len"] == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("pretrained={dense}", "no sparse model .*; the model type hf"),
        ("pretrained=/nowhere/at/all", "no sparse model /nowhere/at/all"),
        ("pretrained={sparse},peft=somewhere", "takes no peft"),
        ("pretrained={sparse},load_in_8bit=True", "takes no load_in_8bit"),
        ("pretrained={sparse},revision=v2", "takes no revision"),
    ],
)
def test_what_would_be_another_model_is_refused(sparse_folder, llama_folder, task_file, arguments, message):
    with pytest.raises(ValueError, match=message):
        simple("lit_sparse", task_file, arguments.format(dense=llama_folder, sparse=sparse_folder))


def test_the_command(sparse_folder, task_file, start_python, tmp_path):
    arguments = ["--model", "lit_sparse", "--model_args", f"pretrained={sparse_folder}", "--tasks", task_file]
    process = start_python(
        "-m", "lit_sparse.downstream.lm_eval", *arguments, "--output_path", tmp_path / "out",
        HF_DATASETS_CACHE=str(tmp_path / "datasets"),
    )  # fmt: skip
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "lit_sparse ({'pretrained'" in printed and "animals" in printed
    (written,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(written.read_text())["config"]["model"] == "lit_sparse"
