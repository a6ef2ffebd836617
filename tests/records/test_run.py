import json
import math

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from lit_sparse.records.run import AttentionExample, RunRecord, as_array, read_history
from lit_sparse.records.run_summary import RunSummary


def test_history_leaves_blank_cells_out(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/ce,val/ce\n0,1,2.5,\n0,2,nan,\n0,2,,2.75\n0,3,2")
    rows = read_history(path)
    assert rows[0] == {"epoch": 0.0, "step": 1.0, "train/ce": 2.5}
    assert math.isnan(rows[1]["train/ce"])
    assert rows[2] == {"epoch": 0.0, "step": 2.0, "val/ce": 2.75}
    assert rows[3] == {"epoch": 0.0, "step": 3.0, "train/ce": 2.0}  # the line a crash cut short


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch,train/ce\n0,1\n", "no column 'step'"),
        ("", "no column 'step'"),
        ("step,a\n1,x\n", "line 2: a is 'x'"),
    ],
)
def test_history_refuses_what_is_not_one(tmp_path, content, message):
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_history(path)


def test_record_round_trip(tmp_path, make_record):
    record = make_record()
    record.history.append({"step": 61.0, "train/ce": math.nan})
    foreign = {"kl": math.inf, "lambda": 0.5, "note": {"of": "another version"}}
    record.summary = RunSummary.model_validate(record.summary.as_json() | foreign)
    record.save(tmp_path / "run")
    loaded = RunRecord.load(tmp_path / "run")
    assert loaded.history[:-1] == record.history[:-1]
    assert math.isnan(loaded.history[-1]["train/ce"])
    assert loaded.summary == record.summary
    assert (loaded.summary.kl, loaded.summary.multiplier) == (None, 0.5)
    assert loaded.summary.as_json()["note"] == {"of": "another version"}
    np.testing.assert_array_equal(loaded.edges_end, record.edges_end)
    assert loaded.example is not None and record.example is not None
    assert (loaded.example.tokens, loaded.example.title) == (record.example.tokens, "a sentence")
    np.testing.assert_array_equal(loaded.example.after, record.example.after)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["record.json", "record.safetensors"]


def test_record_without_example(tmp_path):
    record = RunRecord(RunSummary(), [], np.ones((1, 1)), np.zeros((1, 1)))
    record.save(tmp_path)
    assert RunRecord.load(tmp_path).example is None


def test_load_says_what_is_wrong(tmp_path, make_record):
    with pytest.raises(FileNotFoundError, match=r"record\.safetensors"):
        RunRecord.load(tmp_path)
    make_record().save(tmp_path)
    values = json.loads((tmp_path / "record.json").read_text())
    (tmp_path / "record.json").write_text(json.dumps(values | {"format_version": 99}))
    with pytest.raises(ValueError, match="format version 99"):
        RunRecord.load(tmp_path)
    values["summary"]["steps"] = "many"
    (tmp_path / "record.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"record\.json cannot be read by this version: steps: .*integer"):
        RunRecord.load(tmp_path)


def test_tensors_become_arrays():
    array = as_array(torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True), 2, "edges")
    assert array.dtype == np.float32 and array.shape == (2, 3)
    with pytest.raises(ValueError, match="edges has shape"):
        as_array(np.ones(3), 2, "edges")


@pytest.mark.parametrize(
    "make",
    [
        lambda: AttentionExample(["a", "b", "c"], np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2))),
        lambda: AttentionExample(["a", "b"], np.ones((1, 1, 2, 2)), np.ones((1, 2, 2, 2))),
        lambda: RunRecord(RunSummary(), [], np.ones(3), np.ones((1, 3))),
        lambda: RunRecord(RunSummary(), [], np.ones((2, 3)), np.ones((1, 3))),
    ],
)
def test_shapes_that_do_not_fit_are_refused(make):
    with pytest.raises((ValueError, TypeCheckError)):  # the second where jaxtyping's hook looks first
        make()
