"""The command line, `lit-sparse COMMAND`, or `python main.py COMMAND` in a clone.

Nothing heavy is imported before a command's options are known to be right: help and mistakes come at once.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import NoReturn

from lit_sparse.commands.command import PROGRAM, Command
from lit_sparse.commands.layout import block
from lit_sparse.commands.options import (
    circuits,
    configs,
    demo,
    evaluate,
    export,
    graph,
    push,
    report,
    runs,
    sample,
    trace,
)
from lit_sparse.commands.parser import nearest
from lit_sparse.commands.quiet import quiet
from lit_sparse.common.errors import CheckpointError, Interrupted, NonFiniteLossError

COMMANDS: dict[str, list[Command]] = {
    "start here": [demo.COMMAND],
    "train": [runs.FIT, configs.COMMAND, runs.INFO, sample.COMMAND, runs.VALIDATE, runs.TEST],
    "look": [trace.COMMAND, circuits.COMMAND, graph.COMMAND, evaluate.COMMAND, report.COMMAND],
    "share": [export.COMMAND, push.COMMAND],
}
"""All commands, by what they are for."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command; the user's mistakes end it with one clear line and exit status 2."""
    if args is None:  # a process of its own: warnings without the path and the code that they come from
        warnings.formatwarning = lambda message, *place, **more: f"warning: {message}\n"
    args = list(sys.argv[1:] if args is None else args)
    quiet()
    try:
        _dispatch(args)
        _leave_together()
    except Interrupted as stop:
        _leave_together()
        print(stop, file=sys.stderr)
        sys.exit(128 + stop.number)
    except (ValueError, NonFiniteLossError, CheckpointError) as error:
        _end_with(error)
    except RuntimeError as error:
        # Lightning's teardown stumbles over loaders that refused the checkpoint, and would hide why they did.
        if not isinstance(error.__context__, ValueError) or "combined_loader" not in str(error):
            raise
        _end_with(error.__context__)
    except BrokenPipeError:  # what reads the output, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.filename is None:  # no path of the user's
            raise
        _end_with(error)
    except Exception as error:
        if type(error).__name__ != "MisconfigurationException":  # Lightning's, which need not be imported yet
            raise
        _end_with(error)


def named() -> dict[str, Command]:
    """All commands by name."""
    return {command.name: command for commands in COMMANDS.values() for command in commands}


def overview() -> str:
    """The help of the command line: every command with one line."""
    rows = {heading: [(one.name, one.summary) for one in group] for heading, group in COMMANDS.items()}
    return "\n\n".join(
        [
            f"{PROGRAM}: sparse attention for any causal language model, edge by edge, at the same loss",
            *(block(heading, group) for heading, group in rows.items()),
            f"`{PROGRAM} COMMAND --help` lists a command's options. In a clone, `python main.py` is the same.",
        ]
    )


def _dispatch(args: list[str]) -> None:
    name = args[0] if args else "--help"
    if name in ("-h", "--help"):
        print(overview())
        sys.exit(0 if args else 2)
    if name == "--version":
        from lit_sparse import __version__

        print(f"{PROGRAM} {__version__}")
        return
    commands = named()
    if name not in commands:
        raise ValueError(f"unknown command {name!r}{nearest(name, commands)} Commands: {', '.join(commands)}")
    commands[name].call(args[1:])


def _end_with(error: Exception) -> NoReturn:
    if os.environ.get("LIT_SPARSE_TRACEBACK"):
        traceback.print_exc()
    print(f"error: {error}\n(set LIT_SPARSE_TRACEBACK=1 to see where it came from)", file=sys.stderr)
    sys.exit(2)


def _leave_together() -> None:
    """Ranks leave together, with no communication threads left that could abort the interpreter as it shuts down.

    A rank that left while the first still writes the report would take it along: Lightning kills a run one of whose
    processes failed, and gloo's threads sometimes make a process fail that exits with its process group in place.
    """
    if "torch" not in sys.modules:
        return
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
