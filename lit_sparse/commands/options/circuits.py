"""Options of the command circuits."""

from typing import Literal

from jsonargparse import Namespace

from lit_sparse.commands.command import OptionsCommand
from lit_sparse.commands.options.shared import MODEL, NOTHING, add_models, check_models
from lit_sparse.commands.parser import CommandParser

TASK_NAMES = (
    "ioi",
    "ioi_long",
    "greater_than",
    "induction",
    "letters",
    "gendered_pronoun",
    "docstring",
    "subject_verb_agreement",
    "addition",
)
"""Keys of `lit_sparse.circuits.tasks.TASKS`."""
QUICK: dict[str, object] = {"prompts": 8, "seeds": 1, "method": "eap"}
"""Defaults that --quick sets."""


def _add(parser: CommandParser) -> None:
    add_models(parser, MODEL, f"model to compare with; default: the sparse model's base; {NOTHING}: no model")
    parser.add_argument("--out", type=str, default="runs/circuits", help="folder to write to")
    one = parser.add_argument_group("for one sentence")
    one.add_argument("--prompt", type=str | None, default=None, help="sentence whose next token is explained")
    one.add_argument("--answer", type=str | None, default=None, help="that token; default: what --model predicts")
    one.add_argument("--wrong", type=str | None, default=None, help="keep the answer's log-odds against this token")
    one.add_argument("--keep", type=float, default=0.9, help="with --wrong: share of these log-odds to keep")
    one.add_argument("--nats", type=float, default=0.2, help="without --wrong: largest KL of the next token, in nats")
    one.add_argument(
        "--corrupted", type=str | None, default=None, help="ablate edges to their values on this prompt of equal length"
    )
    one.add_argument(
        "--off", type=Literal["mean", "zero"], default="mean", help="without --corrupted: ablate edges to this"
    )
    one.add_argument("--searches", type=int, default=1, help="searches; the smallest circuit is kept")
    one.add_argument("--controls", type=int, default=1, help="with --wrong: searches for arbitrary answers")
    many = parser.add_argument_group("for a task of many prompts")
    many.add_argument("--task", type=str, default="ioi", help=f"all, or names with commas: {', '.join(TASK_NAMES)}")
    many.add_argument(
        "--method",
        type=Literal["eap", "eap-ig", "exact"],
        default="eap-ig",
        help="scores of edges (exact: small models)",
    )
    many.add_argument(
        "--quick",
        action="store_true",
        help=f"a first look: {' '.join(f'--{name} {value}' for name, value in QUICK.items())}",
    )
    many.add_argument(
        "--ablation", type=Literal["patch", "mean"], default="patch", help="value of an ablated component"
    )
    many.add_argument("--prompts", type=int, default=32, help="pairs to find circuits on, and as many to test them")
    many.add_argument("--seeds", type=int, default=3, help="sets of prompts, for the intervals")
    many.add_argument("--interpolations", type=int, default=5, help="gradients that eap-ig averages")
    many.add_argument("--batch_size", type=int, default=32, help="prompts at a time; memory grows with it")


def _check(parsed: Namespace) -> None:
    check_models(parsed)
    if parsed.prompt is not None:
        if parsed.quick:
            raise ValueError("--quick belongs to tasks: leave it out with --prompt")
        if not parsed.prompt:
            raise ValueError("--prompt is empty: give a sentence whose next token is to be explained")
        return
    for option in ("answer", "wrong", "corrupted"):
        if parsed[option] is not None:
            raise ValueError(f"--{option} belongs to a sentence: add --prompt TEXT")
    if parsed.against == NOTHING:
        raise ValueError(f"--against {NOTHING} belongs to a sentence: a task is measured in two models")
    if parsed.seeds < 1:
        raise ValueError(f"--seeds is the number of seeds, at least 1, not {parsed.seeds}")


COMMAND = OptionsCommand(
    name="circuits",
    summary="the smallest circuits of a sentence or a task, sparse model against base",
    description=(
        "With --prompt: the attention edges that are enough for the next token, a set from which no single edge can be "
        "taken; writes circuit.html, circuit.png, circuit.json. Without: the heads and component edges that a task "
        "needs; says first how long it will take, and goes on where an interrupted call stopped; writes circuits.html, "
        "comparison.json, circuits.json and plots."
    ),
    example='lit-sparse circuits --model smollm2_2048 --prompt "The capital of Germany is"',
    add_options=_add,
    check=_check,
    shortcuts={"quick": QUICK},
    run="lit_sparse.commands.circuits:circuits_command",
)
