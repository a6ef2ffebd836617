"""The command line. `main.py COMMAND --help` says what a command takes.

    fit         train a sparse model by a config; validate, test: measure a checkpoint of such a run again
                `fit --help` lists trainer and run, `fit --model.help CLASS` and `fit --data.help CLASS` the rest
    info        what a config would train, with memory and time, before anything is loaded
    export      the model folder of any checkpoint of a run
    sample      text that a base model writes itself, to train on
    evaluate    tasks and text: what a sparse model still knows, beside its base
    circuits    the circuits of tasks in a sparse model and its base
    trace       the open edges that lead to the answer to one prompt
    graph       the attribution graph of a prompt
    report      all that is known of a run in one page

A config file has the keys of LightningCLI (`model`, `data`, `trainer`, `seed_everything`) and

    run_dir         everything a run writes
    on_existing     what to do when run_dir exists: "error", "resume" or "overwrite"
    prerequisite    a config that is run first where the base model's folder does not exist yet
"""

import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import NoReturn

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from transformers.utils import logging as transformers_logging

from lit_sparse.commands.fit import SparseCLI
from lit_sparse.commands.parser import nearest
from lit_sparse.common.errors import CheckpointError, Interrupted, NonFiniteLossError

_COMMANDS = {
    "info": "lit_sparse.commands.info:info_command",
    "export": "lit_sparse.commands.export:export_command",
    "sample": "lit_sparse.commands.sample:sample_command",
    "evaluate": "lit_sparse.commands.evaluate:evaluate_command",
    "circuits": "lit_sparse.commands.circuits:circuits_command",
    "trace": "lit_sparse.commands.trace:trace_command",
    "graph": "lit_sparse.commands.graph:graph_command",
    "report": "lit_sparse.commands.report:report_command",
}
"""Commands beside those of LightningCLI, each imported only when it is called."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command; the user's mistakes end it with one clear line and exit status 2."""
    if args is None:  # a process of its own: warnings without the path and the code that they come from
        warnings.formatwarning = lambda message, *place, **more: f"warning: {message}\n"
    args = list(sys.argv[1:] if args is None else args)
    _quiet()
    try:
        _dispatch(args)
        _leave_together()
    except Interrupted as stop:
        _leave_together()
        print(stop, file=sys.stderr)
        sys.exit(128 + stop.number)
    except (ValueError, MisconfigurationException, NonFiniteLossError, CheckpointError) as error:
        _end_with(error)
    except RuntimeError as error:
        # Lightning's teardown stumbles over loaders that refused the checkpoint, and would hide why they did.
        if not isinstance(error.__context__, ValueError) or "combined_loader" not in str(error):
            raise
        _end_with(error.__context__)
    except OSError as error:
        if error.filename is None:  # no path of the user's
            raise
        _end_with(error)


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
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _dispatch(args: list[str]) -> None:
    name = args[0] if args else "--help"
    if name in _COMMANDS:
        module, function = _COMMANDS[name].split(":")
        getattr(importlib.import_module(module), function)(args[1:])
    elif name in SparseCLI.subcommands():
        SparseCLI(args)
    elif name in ("-h", "--help"):
        print(f"usage: main.py COMMAND [--key value ...]\n\n{__doc__}")
        sys.exit(0 if args else 2)
    else:
        known = [*SparseCLI.subcommands(), *_COMMANDS]
        raise ValueError(f"unknown command {name!r}{nearest(name, known)} Commands: {', '.join(known)}")


def _quiet() -> None:
    """Silences libraries' notes that a user can do nothing about."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    for library in ("lightning.pytorch", "lightning.fabric"):  # tips, and what hardware was found
        logging.getLogger(library).setLevel(logging.WARNING)
    # DeepSpeed is imported wherever it is installed; a filter, since it sets its own level when it is.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    for message in (
        ".*does not have many workers.*",
        ".*`isinstance\\(treespec, LeafSpec\\)`.*",
        ".*LightningCLI's args parameter.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*gradient_checkpointing.* is deprecated.*",  # transformers, about peft's use and Lightning's
        ".*callbacks used to create the checkpoint.*",  # of fit, when validate or test reads a checkpoint
        "The dirpath has changed from.*",  # a checkpoint that a new run starts from
    ):
        warnings.filterwarnings("ignore", message=message)
