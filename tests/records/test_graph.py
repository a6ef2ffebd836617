"""graph.json: what it must hold, and what other tools' readers find in it."""

import json
import re
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from lit_sparse.records.feature_examples import Examples
from lit_sparse.records.graph import GraphFile, Link, Metadata
from lit_sparse.records.graph_nodes import cumulative, error_node, feature_node, head_node, logit_node, token_node
from lit_sparse.records.graph_summary import GraphSummary, PromptsSummary, read_summary, summarise
from lit_sparse.report.graph.table import graphs_table
from tests.report.graph_example import make_examples, make_graph

# The fields of a node, of metadata and of qParams that readers of the common format ask for, with their types.
NODE = {
    "node_id": str, "feature": int, "layer": str, "ctx_idx": int, "feature_type": str, "token_prob": float,
    "is_target_logit": bool, "run_idx": int, "reverse_ctx_idx": int, "jsNodeId": str, "clerp": str,
}  # fmt: skip
METADATA = {"slug": str, "scan": str, "transcoder_list": list, "prompt_tokens": list, "prompt": str}
PARAMETERS = {"pinnedIds": list, "supernodes": list, "linkType": str, "clickedId": str, "sg_pos": str}


def with_nodes(*nodes, links=(), **parameters):
    metadata = Metadata(slug="a", scan="b", prompt_tokens=["x", "y"], prompt="xy")
    return GraphFile.model_validate(
        {"metadata": metadata, "nodes": list(nodes), "links": list(links), "qParams": parameters}
    )


def test_file_has_the_fields_of_the_common_format(tmp_path):
    content = json.loads(make_graph().write(tmp_path / "graph.json").read_text())
    for node in content["nodes"]:
        assert {name: type(node[name]) for name in NODE} == NODE
        assert node["influence"] is None or isinstance(node["influence"], float)
        assert ("qk_tracing_results" in node) == (node["feature_type"] == "lorsa")
    assert {name: type(content["metadata"][name]) for name in METADATA} == METADATA
    assert {name: type(content["qParams"][name]) for name in PARAMETERS} == PARAMETERS
    assert all(set(link) == {"source", "target", "weight"} for link in content["links"])
    traced = next(node["qk_tracing_results"] for node in content["nodes"] if node.get("qk_tracing_results"))
    assert [len(one) for one in traced["pair_wise_contributors"]] == [3, 3, 3]
    assert all(len(one) == 2 for one in traced["top_q_marginal_contributors"] + traced["top_k_marginal_contributors"])


def test_written_and_read_again_is_the_same(tmp_path):
    graph = make_graph(nodes=40, links=80)
    assert GraphFile.load(graph.write(tmp_path / "new" / "graph.json")) == graph


def test_others_graphs_load(tmp_path):
    node = {
        "node_id": "E_1_0", "feature": 0, "layer": "E", "ctx_idx": 0, "feature_type": "embedding", "jsNodeId": "E_1-0",
        "vis_link": "",
    }  # fmt: skip
    content = {
        "metadata": {"slug": "a", "scan": "gemma", "prompt_tokens": ["x"], "prompt": "x", "info": {}},
        "nodes": [node], "links": [], "qParams": {},
    }  # fmt: skip
    (tmp_path / "graph.json").write_text(json.dumps(content))
    assert GraphFile.load(tmp_path / "graph.json").nodes[0].clerp == ""
    with pytest.raises(ValueError, match="no graph at"):
        GraphFile.load(tmp_path / "another.json")


def test_ids_do_not_collide():
    features = [feature_node(layer, index, 1) for layer in range(12) for index in range(12)]
    errors = [error_node(layer, 1) for layer in range(12)]
    heads = [head_node(layer, head, 1) for layer in range(12) for head in range(12)]
    nodes = [*features, *errors, *heads, token_node(3, 1), logit_node(12, 3, 1, token=" a", probability=0.5)]
    assert len(with_nodes(*nodes).nodes) == len({node.node_id for node in nodes}) == len(nodes)
    assert features[-1].node_id == "11_11_1" and heads[-1].node_id == "11_h11_1"
    # Viewers keep the names that people give by this number, without the layer, and take features for each other that
    # share it and the layer.
    assert len({node.feature for node in features}) == len(features)
    numbers = {(node.layer, node.feature) for node in (*features, *errors, *heads)}
    assert len(numbers) == len(features) + len(errors) + len(heads)


def test_logit_says_what_viewers_take_apart():
    node = logit_node(4, 9, 1, token=' "(', probability=0.25, target=True)
    assert node.clerp == 'Output " "(" (p=0.250)' and node.layer == "5" and node.is_target_logit
    assert float(node.clerp.split("(p=")[1].split(")")[0]) == node.token_prob


def test_wrong_files_are_refused():
    one, other = token_node(1, 0), head_node(0, 0, 1)
    link = Link(source=one.node_id, target=other.node_id, weight=1.0)
    assert with_nodes(one, other, links=[link], pinnedIds=["E_1_0"], supernodes=[["a", "0_h0_1"]])
    with pytest.raises(ValueError, match="'E_1_0' occurs more than once"):
        with_nodes(one, other, one)
    with pytest.raises(ValueError, match="'0_h0_1' is no node"):
        with_nodes(one, links=[link])
    with pytest.raises(ValueError, match="'nobody' is no node"):
        with_nodes(one, pinnedIds=["nobody"])
    with pytest.raises(ValueError, match="'nobody' is no node"):
        with_nodes(one, supernodes=[["name", "nobody"]])
    with pytest.raises(ValueError, match="position 2 of a prompt of 2"):
        with_nodes(token_node(1, 2))
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            Link(source="a", target="b", weight=wrong)
        with pytest.raises(ValueError, match="finite"):
            head_node(0, 0, 1, activation=wrong)


def test_broken_text_can_be_written(tmp_path):
    graph = make_graph(["a", "\udc80", "</script>"], nodes=8, links=4, answers=("\udc80",))
    path = graph.write(tmp_path / "graph.json")
    assert GraphFile.load(path).metadata.prompt_tokens == ["a", "?", "</script>"]


def test_cumulative_influence():
    own = np.array([0.1, 0.6, 0.0, 0.3])
    np.testing.assert_allclose(cumulative(own), [1.0, 0.6, 1.0, 0.9], atol=1e-12)  # float64 sums
    np.testing.assert_array_equal(cumulative(np.zeros(2)), [0, 0])
    np.testing.assert_allclose(cumulative(own[[3, 1]], among=own), [0.9, 0.6])


def test_examples_load(tmp_path):
    examples = make_examples(make_graph())
    (tmp_path / "examples.json").write_text(examples.model_dump_json())
    assert Examples.load(tmp_path / "examples.json") == examples
    with pytest.raises(ValueError, match="no examples at"):
        Examples.load(tmp_path / "nothing.json")


def summary(heads: int, against: int | None = None) -> GraphSummary:
    beside = None if against is None else summary(against)
    return GraphSummary(
        prompt="a", nodes=10, links=20, heads_for_80=heads, replacement_error=0.3, seconds=2.0, against=beside
    )


def test_summary_of_many_prompts(tmp_path):
    found = summarise([summary(4, 12), summary(6, 30)])
    assert found.fewer_heads is not None and found.fewer_heads.mean == 4.0
    assert (found.fewer_heads.min, found.fewer_heads.max) == (3.0, 5.0)
    heads = [model.measured["heads_for_80"] for model in found.models]
    assert [one.mean for one in heads] == [5.0, 21.0]
    assert heads[0].std == pytest.approx(2**0.5)  # of two values, n - 1
    assert "explained_variance" not in found.models[0].measured
    (tmp_path / "summary.json").write_text(found.model_dump_json())
    assert read_summary(tmp_path / "summary.json") == found


def test_a_model_that_needs_more_heads_is_said_to_need_more():
    output = StringIO()
    Console(width=80, file=output).print(graphs_table(summarise([summary(12, 4), summary(12, 4)])))
    assert re.search(r"A against B +3\.00x more", output.getvalue())


def test_summary_of_one_prompt(tmp_path):
    (tmp_path / "summary.json").write_text(summary(4).model_dump_json())
    found = read_summary(tmp_path / "summary.json")
    assert isinstance(found, PromptsSummary) and found.fewer_heads is None
    assert found.models[0].measured["heads_for_80"].std == 0.0
    (tmp_path / "summary.json").write_text('{"edge_fraction": 0.1}')
    with pytest.raises(ValueError, match="prompt"):
        read_summary(tmp_path / "summary.json")
