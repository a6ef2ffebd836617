"""The shipped questions."""

import json

import datasets
import pytest

from lit_sparse.downstream import SHIPPED, load_tasks, make_tasks


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def test_shipped_questions_are_those_of_their_script(tmp_path):
    make_tasks.main(tmp_path)
    tasks = load_tasks(SHIPPED)["tasks"]
    assert set(tasks) == set(SHIPPED) == {"agreement", "addition"}
    for name, task in tasks.items():
        made = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert made == list(task.eval_docs)
        assert len({question["context"].rpartition("\n")[2] for question in made}) == 100
        for question in made:
            right = question["choices"][question["answer"]]
            assert question["choices"].count(right) == 1 and len(set(question["choices"])) == len(question["choices"])
            if name == "addition":
                lines = (question["context"] + f" {right}").split("\n")
                assert len(lines) == 5 == len(set(lines))
                assert all(eval(line.replace("=", "==")) for line in lines)
                assert len({len(choice) for choice in question["choices"]}) == 1, "a shorter answer would be likelier"
            else:
                subject, attractor = question["context"].split()[1], question["context"].split()[-1]
                assert subject.endswith("s") == (question["answer"] == 1) != attractor.endswith("s")
    assert sum(question["answer"] for question in tasks["agreement"].eval_docs) == 50
