"""The how-to guide's Python runs as it stands, with a tiny model, graph and task in the places that it names."""

import json
import re
from pathlib import Path

import pytest

from lit_sparse.downstream import load_tasks
from tests.interop.packages import needed
from tests.report.graph_example import make_graph
from tests.tiny import export_sparse_llama

for package in ("nnsight", "transformer_lens", "circuit_tracer", "lm_eval"):
    needed(package)

GUIDE = Path(__file__).parents[2] / "docs/howto/interop.md"


def test_the_guide(llama_folder, character_tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("release").mkdir()
    export_sparse_llama(Path("release/smollm2_2048"), llama_folder, character_tokenizer, 0.15)
    Path("runs/graph").mkdir(parents=True)
    make_graph().write("runs/graph/graph.json")
    monkeypatch.setattr("lm_eval.simple_evaluate", evaluate)
    found: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    for number, block in enumerate(blocks):
        Path(f"{number}.py").write_text(block)  # nnsight reads its traces' source
        exec(compile(block, str(tmp_path / f"{number}.py"), "exec"), found)
    assert found["z"].shape == (1, 22, 4, 4) and found["logits"].shape == found["ablated"].shape
    listed = json.loads(Path("runs/viewer/graph-metadata.json").read_text())["graphs"]
    assert [graph["slug"] for graph in listed] == ["example"]
    assert found["results"]["results"]["agreement"]["acc,none"] >= 0


def evaluate(tasks, **options):
    """The harness's own function on a shipped task, which needs no network."""
    from lm_eval.evaluator import simple_evaluate

    assert tasks == ["hellaswag"]
    return simple_evaluate(tasks=list(load_tasks(["agreement"])["tasks"].values()), bootstrap_iters=0, **options)


@pytest.mark.parametrize("package", ["nnsight", "transformer_lens", "circuit_tracer", "lm_eval"])
def test_versions_are_those_of_the_guide(package):
    from importlib.metadata import version

    installed = version(package.replace("_", "-") if package != "lm_eval" else "lm_eval")
    assert re.search(rf"\(.*{re.escape('.'.join(installed.split('.')[:2]))}", GUIDE.read_text())
