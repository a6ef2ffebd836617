"""A copy of what a call takes along, with a load of its own, so that nobody's .gpu/ is touched."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
COPIED = ("configs", "lit_sparse", "scripts", "LICENSE", "main.py")


@pytest.fixture
def tree(tmp_path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    for name in COPIED:
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, root / name)
    shutil.copytree(REPOSITORY / "release/smollm2_2048", root / "release/smollm2_2048")
    shutil.copy(REPOSITORY / "release/smollm2_samples.jsonl.gz", root / "release")
    return root


@pytest.fixture
def call(tree, tmp_path):
    """`call(script, *arguments, **environment)` runs a script of scripts/gpu; returns what it printed."""

    def call(script, *arguments, **environment):
        process = subprocess.run(
            ["bash", f"scripts/gpu/{script}", *arguments],
            cwd=tree,
            env=os.environ
            | {"PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "CARRIED": str(tmp_path / "carried")}
            | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
            | environment,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        printed = process.stdout + process.stderr
        assert process.returncode == 0, printed
        return printed

    return call


@pytest.fixture
def results(tmp_path):
    """What a call measured: JSON files by their names."""

    def results():
        return {path.stem: json.loads(path.read_text()) for path in (tmp_path / "carried/results").glob("*.json")}

    return results
