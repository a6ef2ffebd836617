"""Libraries' notes that a user can do nothing about, silenced before and after these are imported."""

import logging
import os
import sys
import warnings

from lit_sparse.common.late import when_imported

_WARNINGS = (
    "IProgress not found.*",  # tqdm, in a notebook
    ".*does not have many workers.*",
    ".*`isinstance\\(treespec, LeafSpec\\)`.*",
    ".*LightningCLI's args parameter.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*gradient_checkpointing.* is deprecated.*",  # transformers, about peft's use and Lightning's
)


def quiet() -> None:
    """Silences them; imports none of the libraries."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():  # a bar is rewritten in a terminal, and fills a log
        os.environ.setdefault("TQDM_DISABLE", "1")
    # DeepSpeed is imported wherever it is installed; a filter, since it sets its own level when it is.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    when_imported("transformers.utils.logging", f"{__name__}:quiet_transformers")
    for library in ("lightning.fabric", "lightning.pytorch"):
        when_imported(library, f"{__name__}:quiet_lightning")
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def quiet_transformers() -> None:
    """No bar while weights are read from disk; downloads keep theirs."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    enable_progress_bars()


def quiet_lightning() -> None:
    """No tips, and no lines about what hardware was found; both packages set their level when they are imported."""
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
