"""The result table of docs/results/training.md, from the summaries of finished runs: the test split throughout.

python main.py fit --config configs/quickstart.yaml && python main.py fit --config configs/addition.yaml
python benchmarks/results_table.py runs/quickstart runs/addition
"""

import json
import sys
from pathlib import Path

COLUMNS = (
    "run | T | open edges per query and head, at the start | in the end | of the allowed ones | CE, base -> sparse | "
    "KL | exact | steps, tokens, training time"
)


def main(folders: list[str]) -> None:
    print(f"| {COLUMNS} |")
    print("|" + "---|" * len(COLUMNS.split("|")))
    for folder in folders:
        row = json.loads((Path(folder) / "summary.json").read_text())
        change = row["ce"] - row["base_ce"]
        cells = [
            Path(folder).name,
            f"{row['sequence_length']:,}",
            f"{row['edges_per_query_start']:.2f} ({row['edge_fraction_start']:.1%}, "
            f"CE {row['ce_start'] - row['base_ce']:+.4f}, KL {row['kl_start']:.4f})",
            f"**{row['edges_per_query']:.2f}**",
            f"{row['edge_fraction']:.2%}",
            f"{row['base_ce']:.3f} -> {row['ce']:.3f} ({change:+.3f})",
            f"{row['kl']:.4f}",
            f"{row['exact_match']:.2%}" if "exact_match" in row else "",
            f"{row['steps']:,}, {row['tokens']:,}, {row['seconds'] / 60:.1f} min",
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
