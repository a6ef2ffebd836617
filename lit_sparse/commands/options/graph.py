"""Options of the command graph."""

from jsonargparse import Namespace

from lit_sparse.commands.command import OptionsCommand
from lit_sparse.commands.options.shared import MODEL, add_models, check_models, check_prompts
from lit_sparse.commands.parser import CommandParser


def _add(parser: CommandParser) -> None:
    add_models(parser, MODEL, "model to show beside it; default: the sparse model's base")
    parser.add_argument("--transcoders", type=str, required=True, help="folder of that model's transcoders")
    parser.add_argument(
        "--against_transcoders", type=str | None, default=None, help="folder of the other model's; without: no model"
    )
    parser.add_argument("--prompt", type=str | None, default=None, help="text whose next token is explained")
    parser.add_argument("--prompts", type=str | None, default=None, help="file with one prompt a line, instead")
    parser.add_argument(
        "--answer", type=str | None, default=None, help="token to explain; default: the likeliest, up to 95 %%"
    )
    parser.add_argument("--node_share", type=float, default=0.8, help="share of the influence that kept nodes have")
    parser.add_argument("--edge_share", type=float, default=0.98, help="share of the influence that kept links have")
    parser.add_argument(
        "--explained_heads", type=int, default=100, help="heads for which the page says why their edge is open"
    )
    parser.add_argument("--out", type=str, required=True, help="folder to write to")


def _check(parsed: Namespace) -> None:
    check_prompts(parsed)
    for name in ("node_share", "edge_share"):
        if not 0 < parsed[name] <= 1:
            raise ValueError(f"--{name} is a share of the influence, in (0, 1], got {parsed[name]}")
    if parsed.explained_heads < 0:
        raise ValueError(f"--explained_heads is a number of head nodes, got {parsed.explained_heads}")
    if parsed.against is not None and parsed.against_transcoders is None:
        raise ValueError("--against needs the transcoders of that model: add --against_transcoders FOLDER")
    check_models(parsed)


COMMAND = OptionsCommand(
    name="graph",
    summary="the attribution graph of a prompt, with every attention head as a node",
    description=(
        "Splits the next token's logit over transcoder features, heads, errors and tokens. Writes graph.html (a page), "
        "graph.json (the schema of public graph viewers) and summary.json; with --prompts a folder for each "
        "prompt and heads.png over all."
    ),
    example='lit-sparse graph --model M --transcoders T --prompt "The opposite of large is" --out runs/graph',
    add_options=_add,
    check=_check,
    run="lit_sparse.commands.graph:graph_command",
)
