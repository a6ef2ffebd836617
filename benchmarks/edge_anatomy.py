"""Which heads and which tokens keep edges: a sparse model's open edges on held-out Python documentation.

    python benchmarks/edge_anatomy.py release/smollm2_2048

Prints shares and writes results/edge_anatomy.json and results/edge_anatomy.png.
"""

import json
import sys
from collections import Counter

import torch
from frontier import DOCS, test_split
from machine import RESULTS, machine
from matplotlib.figure import Figure

from lit_sparse.attention import open_edges
from lit_sparse.models.compared import find_candidates
from lit_sparse.models.sparse_folder import load_sparse

BLOCKS = 16
DISTANCES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)


def main(folder: str) -> None:
    tokenizer = find_candidates(folder, None)[0].tokenizer
    model = load_sparse(folder)
    blocks = test_split([DOCS], tokenizer, 256).first(BLOCKS)
    kinds = [kind_of(tokenizer.decode([token])) for token in range(len(tokenizer))]
    config = model.config
    by_head = torch.zeros(config.num_hidden_layers, config.num_attention_heads)
    distances = torch.zeros(len(DISTANCES))
    to_first, key_kinds, present = 0, Counter(), Counter()
    for index in range(len(blocks)):
        batch = blocks.batch(torch.tensor([index]))
        ids, positions = batch["input_ids"], batch["position_ids"]
        present.update(kinds[token] for token in ids[0].tolist())
        for layer, edges in enumerate(open_edges(model, ids, position_ids=positions)):
            _, head, query, key = edges.indices
            by_head[layer] += head.bincount(minlength=config.num_attention_heads)
            distances += torch.bucketize(query - key, torch.tensor(DISTANCES)).bincount(minlength=len(DISTANCES))
            to_first += int((positions[0, key] == 0).sum())
            key_kinds.update(kinds[token] for token in ids[0, key].tolist())
    edges, queries = int(by_head.sum()), len(blocks) * 256
    result = {
        "model": folder,
        "machine": machine(),
        "edges_per_query": (by_head / queries).tolist(),
        "share_to_first_token": to_first / edges,
        "share_by_distance_up_to": dict(zip(DISTANCES, (distances / edges).tolist(), strict=True)),
        "share_by_kind_of_key": {kind: count / edges for kind, count in key_kinds.most_common()},
        "share_of_tokens_by_kind": {kind: count / queries for kind, count in present.most_common()},
        "heads_below_a_tenth_of_an_edge": int((by_head / queries < 0.1).sum()),
        "share_in_the_ten_busiest_heads": float(by_head.flatten().topk(10).values.sum() / edges),
    }
    print(json.dumps({key: value for key, value in result.items() if key != "edges_per_query"}, indent=1))
    (RESULTS / "edge_anatomy.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(by_head / queries, result)


def kind_of(text: str) -> str:
    if not text.strip():
        return "line break" if "\n" in text else "space"
    if text.strip().isalpha():
        return "word" if text.startswith(" ") else "part of a word"
    return "number" if text.strip().isdigit() else "punctuation"


def draw(by_head: torch.Tensor, result: dict) -> None:
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    heads, distance, kind = figure.subplots(1, 3, width_ratios=(1, 1.2, 1.2))
    image = heads.imshow(by_head.clamp_min(1e-2).log10(), aspect="auto", cmap="viridis")
    figure.colorbar(image, ax=heads, label="log10 of open edges per query")
    heads.set(xlabel="head", ylabel="layer", title="Where edges are")
    shares = result["share_by_distance_up_to"]
    distance.bar([str(d) for d in shares], list(shares.values()), color="#0072b2")
    distance.set(xlabel="query - key, up to", ylabel="share of open edges", title="How far they reach")
    kinds = result["share_by_kind_of_key"]
    places = range(len(kinds))
    kind.barh(
        [place + 0.2 for place in places], list(kinds.values()), 0.4, color="#0072b2", label="of open edges' keys"
    )
    tokens = [result["share_of_tokens_by_kind"].get(name, 0.0) for name in kinds]
    kind.barh([place - 0.2 for place in places], tokens, 0.4, color="#999999", label="of all tokens")
    kind.set_yticks(list(places), list(kinds))
    kind.set(xlabel="share", title="What they look at")
    kind.legend()
    figure.savefig(RESULTS / "edge_anatomy.png", dpi=150)


if __name__ == "__main__":
    main(*sys.argv[1:])
