"""`python main.py fit --config …`: trains a sparse model; `validate` and `test` measure a checkpoint of one.

A config file has the keys of LightningCLI (`model`, `data`, `trainer`, `seed_everything`) and

    run_dir         everything a run writes
    on_existing     what to do when run_dir exists: "error", "resume" or "overwrite"
    prerequisite    a config that is run first where the base model's folder does not exist yet
"""

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lit_sparse.attention.family import check_family
from lit_sparse.commands.parser import short
from lit_sparse.commands.run_command import config_file
from lit_sparse.commands.run_parser import RunParser
from lit_sparse.common.files import check_writable
from lit_sparse.common.rank import process_rank
from lit_sparse.models.base import may_be_on_hub
from lit_sparse.models.compared import files_of
from lit_sparse.training.checkpoint_io import LAST, AtomicCheckpointIO, recover
from lit_sparse.training.history import LOGS
from lit_sparse.training.module import SparseAttentionModule
from lit_sparse.training.precision import suited_precision

ANYWHERE = [
    f"--trainer.{key}" for key in ("accelerator=cpu", "strategy=auto", "devices=1", "num_nodes=1", "precision=null")
]
"""Overrides for commands that build a run's objects without training, perhaps on a machine unlike the run's."""


def fit_command(args: Sequence[str]) -> None:
    """Runs fit, validate or test, whose name is the first argument."""
    SparseCLI(list(args))


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
    """LightningCLI with a run folder: what else a run has, its module brings along (`training.run_module`)."""

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
        if not self.is_dry_run and process_rank() == 0:
            check_writable(self.run_dir, "--run_dir")
        _make_prerequisite(config, dry=self.is_dry_run)
        if self.is_dry_run:
            return
        last = recover(self.run_dir / "checkpoints" / LAST)
        if process_rank() == 0 and _never_trained(self.run_dir):
            shutil.rmtree(self.run_dir)
        if self.run_dir.exists() and any(self.run_dir.iterdir()) and process_rank() == 0:
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
        if self.subcommand == "fit" and not self.is_dry_run:
            if config.trainer.logger in (None, True):
                csv = CSVLogger(str(self.run_dir), name=LOGS, flush_logs_every_n_steps=20)
                board = TensorBoardLogger(str(self.run_dir), name="tensorboard", version=csv.version)
                kwargs["logger"] = [csv, board]
        else:
            kwargs["logger"] = False
            kwargs["enable_checkpointing"] = False
        extra_config = self._get(self.config_init, "trainer", default={})
        plugins = extra_config.get("plugins") or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        kwargs["callbacks"] = list(extra_config.get("callbacks") or [])  # the modules bring their own
        # Data modules bring samplers that split over ranks and resume.
        kwargs["use_distributed_sampler"] = False
        try:
            return super().instantiate_trainer(**kwargs)
        except MisconfigurationException as error:
            if "gpu backend" in str(error) or "accelerator is not available" in str(error):
                hint = "to train on the CPU add --trainer.accelerator cpu"
                raise ValueError(f"{str(error).rstrip('!.')}; {hint}") from error
            raise


def _fill_tokenizer(config: Any) -> None:
    """Text is tokenised for the model that is trained, and activations are that model's, unless the config says
    otherwise; also where a data module holds another one."""
    data, model = config.get("data"), config.get("model")
    name = None if model is None else model.init_args.get("model")
    while data is not None and name is not None:
        settings = data.get("init_args", {})
        if settings.get("tokenizer", "") is None:
            settings.tokenizer = name if may_be_on_hub(name) else files_of(name)  # no hub is asked before it is time
        if settings.get("model", "") is None:
            settings.model = name
        data = settings.get("data")


def _suit_precision(config: Any) -> None:
    precision = suited_precision(config.trainer.precision, str(config.trainer.accelerator))
    if precision != config.trainer.precision:
        if process_rank() == 0:
            print(
                f"this CPU has no instructions for bfloat16, which would be slower than float32: trainer.precision is "
                f"{precision} instead of {config.trainer.precision}"
            )
        config.trainer.precision = precision


def _make_prerequisite(config: Any, dry: bool) -> None:
    folder = Path(str(config.model.init_args.get("model", "")))
    if config.prerequisite is None or (folder / "config.json").is_file() or process_rank() != 0:
        return
    prerequisite = config_file(config.prerequisite)
    print(f"{folder} does not exist yet: making it with {config.prerequisite}")
    extra = ["--trainer.fast_dev_run", "3"] if dry else ["--on_existing", "resume"]
    made = SparseCLI(["fit", "--config", prerequisite, *extra])
    if dry:  # nothing was written, so the model that learned for three steps serves from a folder that goes away
        config.model.init_args.model = tempfile.mkdtemp(prefix="lit_sparse-dry-run-")
        atexit.register(shutil.rmtree, config.model.init_args.model, ignore_errors=True)
        made.model.model.save_pretrained(config.model.init_args.model)


def _never_trained(run_dir: Path) -> bool:
    """True if the folder holds no more than a run leaves that failed before its first step."""
    names = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else set()
    started = SaveRunConfig.NAME in names and names <= {SaveRunConfig.NAME, LOGS, "tensorboard"}
    return started and not any(run_dir.glob(f"{LOGS}/*/metrics.csv"))
