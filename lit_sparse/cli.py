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

import atexit
import importlib
import logging
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from transformers.utils import logging as transformers_logging

from lit_sparse.attention.family import check_family
from lit_sparse.callbacks import (
    AtomicCheckpointIO,
    SparsityProgressBar,
    StopAtStepBoundary,
    Throughput,
    checkpoint_callbacks,
)
from lit_sparse.callbacks.checkpoints import LAST, recover
from lit_sparse.callbacks.sparsity import SparsityByHead
from lit_sparse.candidates import files_of
from lit_sparse.errors import CheckpointError, Interrupted, NonFiniteLossError
from lit_sparse.history import LOGS
from lit_sparse.module import SparseAttentionModule
from lit_sparse.parser import RunParser, nearest, short
from lit_sparse.precision import suited_precision
from lit_sparse.strategies import sharding_of
from lit_sparse.writable import check_writable

ANYWHERE = [
    f"--trainer.{key}" for key in ("accelerator=cpu", "strategy=auto", "devices=1", "num_nodes=1", "precision=null")
]
"""Overrides for commands that build a run's objects without training, perhaps on a machine unlike the run's."""

_COMMANDS = {
    "info": "lit_sparse.info:info_command",
    "export": "lit_sparse.export_command:export_command",
    "sample": "lit_sparse.sample_command:sample_command",
    "evaluate": "lit_sparse.evaluate.command:evaluate_command",
    "circuits": "lit_sparse.circuits.command:circuits_command",
    "trace": "lit_sparse.circuits.trace.command:trace_command",
    "graph": "lit_sparse.graph_command:graph_command",
    "report": "lit_sparse.report_command:report_command",
}
"""Commands beside those of LightningCLI, each imported only when it is called."""


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved configuration to `run_dir/config.yaml`, which `export` reads."""

    NAME = "config.yaml"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self.already_saved and trainer.is_global_zero and stage == "fit":
            run_dir = Path(trainer.default_root_dir)
            run_dir.mkdir(parents=True, exist_ok=True)
            config = self.config.clone()
            config.pop("ckpt_path", None)  # where this start came from is nothing that another run should repeat
            self.parser.save(config, run_dir / self.NAME, skip_unset=False, overwrite=True, multifile=False)
        self.already_saved = True


class SparseCLI(LightningCLI):
    """LightningCLI with a run folder, the package's callbacks, and a report at the end of `fit`."""

    def __init__(self, args: list[str] | None = None, run: bool = True):
        super().__init__(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveRunConfig if run else None,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_class=RunParser,
            parser_kwargs={"description": __doc__},
            args=args,
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run_dir", type=str, default="runs/default", help="everything a run writes")
        parser.add_argument(
            "--on_existing",
            type=Literal["error", "resume", "overwrite"],
            default="error",
            help="what to do when run_dir exists",
        )
        parser.add_argument(
            "--prerequisite",
            type=str | None,
            default=None,
            help="a config that is run first where the base model's folder does not exist yet",
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        skipped = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule", "weights_only"}
        return {"fit": skipped, "validate": skipped, "test": skipped}

    def _parse_ckpt_path(self) -> None:
        """Lightning would load the whole checkpoint here to look for settings; a run's are in its config."""

    # --- before anything is built ------------------------------------------------------------------------------

    @property
    def run_dir(self) -> Path:
        return Path(self._get(self.config, "run_dir"))

    @property
    def is_dry_run(self) -> bool:
        return bool(self._get(self.config, "trainer.fast_dev_run"))

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand] if self.subcommand else self.config
        _fill_tokenizer(config)
        _suit_precision(config)
        if self.subcommand != "fit":
            return
        if not self.is_dry_run and _rank() == 0:
            check_writable(self.run_dir, "--run_dir")
        _make_prerequisite(config, dry=self.is_dry_run)
        if self.is_dry_run:
            return
        last = recover(self.run_dir / "checkpoints" / LAST)
        if _rank() == 0 and _never_trained(self.run_dir):
            shutil.rmtree(self.run_dir)
        if self.run_dir.exists() and any(self.run_dir.iterdir()) and _rank() == 0:
            choice = config.on_existing
            if choice == "overwrite":
                if not (self.run_dir / SaveRunConfig.NAME).is_file():
                    raise ValueError(
                        f"{self.run_dir} holds no run (it has no {SaveRunConfig.NAME}), so it is not deleted; choose "
                        "another --run_dir, or remove it yourself"
                    )
                shutil.rmtree(self.run_dir)
            elif choice == "error" and not config.ckpt_path:
                raise ValueError(
                    f"{self.run_dir} exists already. To continue that run add --on_existing resume, to replace it "
                    "--on_existing overwrite, to keep it choose another --run_dir"
                )
        if config.on_existing == "resume" and not config.ckpt_path and last.exists():  # a file, or sharded in a folder
            config.ckpt_path = str(last)

    def instantiate_classes(self) -> None:
        """A constructor's complaint comes without the types that were tried around it."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            if "Union subtypes" not in str(error):
                raise
            raise ValueError(short(str(error), [])) from error

    def before_fit(self) -> None:
        """Refuses a family before data is prepared for it."""
        hook = getattr(type(self.model), "build_base", None)
        if isinstance(self.model, SparseAttentionModule) and hook is SparseAttentionModule.build_base:
            check_family(self.model.base_name, trust_remote_code=self.model.trust_remote_code)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.subcommand] if self.subcommand else self.config_init
        kwargs.setdefault("default_root_dir", str(self.run_dir))
        extra: list[Callback] = [SparsityProgressBar()] if config.trainer.enable_progress_bar is not False else []
        if self.subcommand == "fit" and not self.is_dry_run:
            extra += [Throughput(), *checkpoint_callbacks(self.run_dir), StopAtStepBoundary(self.run_dir)]
            if config.trainer.logger in (None, True):
                csv = CSVLogger(str(self.run_dir), name=LOGS, flush_logs_every_n_steps=20)
                board = TensorBoardLogger(str(self.run_dir), name="tensorboard", version=csv.version)
                kwargs["logger"] = [csv, board]
        else:
            kwargs["logger"] = False
            kwargs["enable_checkpointing"] = False
        extra_config = self._get(self.config_init, "trainer", default={})
        callbacks = list(extra_config.get("callbacks") or [])
        if issubclass(type(self.model), SparseAttentionModule) and not self.is_dry_run:
            extra.append(SparsityByHead())
        plugins = extra_config.get("plugins") or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        kwargs["callbacks"] = callbacks + extra
        # Data modules bring samplers that split over ranks and resume.
        kwargs["use_distributed_sampler"] = False
        try:
            return super().instantiate_trainer(**kwargs)
        except MisconfigurationException as error:
            if "gpu backend" in str(error) or "accelerator is not available" in str(error):
                hint = "to train on the CPU add --trainer.accelerator cpu"
                raise ValueError(f"{str(error).rstrip('!.')}; {hint}") from error
            raise

    # --- after the run -----------------------------------------------------------------------------------------

    def after_fit(self) -> None:
        """The report of the run; a dense run writes its model folder instead."""
        from rich.console import Console

        if self.is_dry_run:
            return
        if not isinstance(self.model, SparseAttentionModule):
            if self.trainer.is_global_zero:
                self.model.finish(self.trainer, self.run_dir)  # type: ignore[operator]
            return
        from lit_sparse.finish import finish_run
        from lit_sparse.report import summary_table

        if sharding_of(self.trainer.strategy).shards_weights:
            self.model.rebuild_whole(self.run_dir / "checkpoints")
        summary = finish_run(self.trainer, self.model, self.run_dir)
        if summary is None:
            return
        console = Console()
        console.print(summary_table(summary))
        console.print(f"report: {self.run_dir / 'report.html'}   model: {self.run_dir / 'model'}", highlight=False)


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command; the user's mistakes end it with one clear line and exit status 2."""
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


def _fill_tokenizer(config: Any) -> None:
    """Text is tokenised for the model that is trained, and activations are that model's, unless the config says
    otherwise; also where a data module holds another one."""
    data, model = config.get("data"), config.get("model")
    name = None if model is None else model.init_args.get("model")
    while data is not None and name is not None:
        settings = data.get("init_args", {})
        if settings.get("tokenizer", "") is None:
            settings.tokenizer = files_of(name)
        if settings.get("model", "") is None:
            settings.model = name
        data = settings.get("data")


def _suit_precision(config: Any) -> None:
    precision = suited_precision(config.trainer.precision, str(config.trainer.accelerator))
    if precision != config.trainer.precision:
        if _rank() == 0:
            print(
                f"this CPU has no instructions for bfloat16, which would be slower than float32: trainer.precision is "
                f"{precision} instead of {config.trainer.precision}"
            )
        config.trainer.precision = precision


def _make_prerequisite(config: Any, dry: bool) -> None:
    folder = Path(str(config.model.init_args.get("model", "")))
    if config.prerequisite is None or (folder / "config.json").is_file() or _rank() != 0:
        return
    if not Path(config.prerequisite).is_file():
        raise ValueError(f"prerequisite: no config file at {config.prerequisite}")
    print(f"{folder} does not exist yet: making it with {config.prerequisite}")
    extra = ["--trainer.fast_dev_run", "3"] if dry else ["--on_existing", "resume"]
    made = SparseCLI(["fit", "--config", config.prerequisite, *extra])
    if dry:  # nothing was written, so the model that learned for three steps serves from a folder that goes away
        config.model.init_args.model = tempfile.mkdtemp(prefix="lit_sparse-dry-run-")
        atexit.register(shutil.rmtree, config.model.init_args.model, ignore_errors=True)
        made.model.model.save_pretrained(config.model.init_args.model)


def _never_trained(run_dir: Path) -> bool:
    """Whether this is all that a start leaves that failed before its first step, such as at loading the model."""
    names = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else set()
    started = SaveRunConfig.NAME in names and names <= {SaveRunConfig.NAME, LOGS, "tensorboard"}
    return started and not any(run_dir.glob(f"{LOGS}/*/metrics.csv"))


def _rank() -> int:
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", 0))))


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
    ):
        warnings.filterwarnings("ignore", message=message)
