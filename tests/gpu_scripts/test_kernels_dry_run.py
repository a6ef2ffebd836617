"""The script that runs first on a GPU, rehearsed on a CPU: Triton's interpreter and blockwise, everything tiny."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "scripts/gpu/kernels.py"


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    pytest.importorskip("triton")
    out = tmp_path_factory.mktemp("out")
    result = subprocess.run(
        [sys.executable, SCRIPT, "--out", out, "--device", "cpu", "--seconds", "300"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    return result, out


def test_correctness_is_recorded_case_by_case(rehearsal):
    result, out = rehearsal
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    groups = json.loads((out / "kernels-correctness.json").read_text())["groups"]
    assert {row["backend"] for rows in groups.values() for row in rows if "backend" in row} == {"triton", "blockwise"}
    rows = [row for rows in groups.values() for row in rows]
    assert all(row["passed"] for row in rows) and any(row["case"].endswith("noise") for row in rows)
    errors = [row["errors"] for row in rows if "errors" in row]
    assert len(errors) == 4 and {"output", "edges", "query", "key", "value", "cutoff", "offset"} == set(errors[0])


def test_times_are_recorded_case_by_case(rehearsal):
    rows = json.loads((rehearsal[1] / "kernels-times.json").read_text())["rows"]
    assert [row["kind"] for row in rows] == ["flash", "contribution", "plain"]
    assert all(row["forward"] > 0 and row["both_to_flash"] > 0 for row in rows)


def test_a_case_that_fails_is_recorded_and_the_next_goes_on(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import kernel_cases

    def broken(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(kernel_cases, "compare", broken)
    kernel_cases.run_group("bf16-64-logit-sampled-all", "cpu", True, tmp_path, float("inf"))
    rows = json.loads((tmp_path / "bf16-64-logit-sampled-all.json").read_text())
    assert len(rows) == 2 and not any(row["passed"] for row in rows) and "no such kernel" in rows[1]["error"]


def test_no_case_is_begun_after_the_time(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import kernel_cases

    kernel_cases.run_group("bf16-64-logit-sampled-all", "cpu", True, tmp_path, 0.0)
    assert all(row["left_out"] for row in json.loads((tmp_path / "bf16-64-logit-sampled-all.json").read_text()))
