"""Options of the command evaluate."""

from typing import Literal

from jsonargparse import Namespace

from lit_sparse.commands.command import OptionsCommand
from lit_sparse.commands.options.shared import MODEL, add_models, check_models
from lit_sparse.commands.parser import CommandParser

SHIPPED_TASKS = ("addition", "agreement")
"""`lit_sparse.downstream.harness.SHIPPED`."""


def _add(parser: CommandParser) -> None:
    add_models(parser, MODEL, "model to compare with; default: the sparse model's base")
    parser.add_argument(
        "--tasks",
        type=str | None,
        default=None,
        help=f"with commas: {', '.join(SHIPPED_TASKS)} (offline), names of lm-evaluation-harness, or .yaml files "
        "(these can run code)",
    )
    parser.add_argument("--limit", type=int | None, default=None, help="questions of each task; default: all")
    parser.add_argument("--text", type=str | None, default=None, help="path or glob of held-out text")
    parser.add_argument("--sequence_length", type=int, default=512, help="tokens of text read at once, at most")
    parser.add_argument("--batch_size", type=int, default=8, help="sequences at a time")
    parser.add_argument("--dtype", type=Literal["float32", "bfloat16", "float16"], default="float32", help="of weights")
    parser.add_argument("--out", type=str, default="runs/evaluation", help="folder for evaluation.json")
    parser.add_argument(
        "--on_existing", type=Literal["error", "overwrite"], default="error", help="action where that file exists"
    )


def task_names(tasks: str | None) -> list[str]:
    """Names in the value of --tasks."""
    return [name.strip() for name in (tasks or "").split(",") if name.strip()]


def _check(parsed: Namespace) -> None:
    if not task_names(parsed.tasks) and not parsed.text:
        raise ValueError(f"nothing to measure: give --tasks (such as {','.join(SHIPPED_TASKS)}) or --text, or both")
    for name, least in (("limit", 1), ("batch_size", 1), ("sequence_length", 2)):
        if parsed[name] is not None and parsed[name] < least:
            raise ValueError(f"--{name} must be at least {least}, got {parsed[name]}")
    check_models(parsed)


COMMAND = OptionsCommand(
    name="evaluate",
    summary="benchmark tasks and held-out text, sparse model against base",
    description=(
        "Measures both models with the same settings: the tasks' metrics by lm-evaluation-harness (extra `eval`), and "
        "perplexity and KL on text. Writes evaluation.json."
    ),
    example="lit-sparse evaluate --model smollm2_2048 --tasks agreement --text README.md",
    add_options=_add,
    check=_check,
    run="lit_sparse.commands.evaluate:evaluate_command",
)
