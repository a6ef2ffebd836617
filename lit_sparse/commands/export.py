"""The command export: the sparse model folder of any checkpoint of a run."""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lit_sparse.commands.fit import ANYWHERE, SparseCLI
from lit_sparse.common.files import check_writable
from lit_sparse.models.sparse_folder import export_sparse
from lit_sparse.records.reading import read_json
from lit_sparse.records.run_summary import RunSummary
from lit_sparse.training.checkpoint_io import AtomicCheckpointIO
from lit_sparse.training.module import SparseAttentionModule


def export_command(parsed: Namespace) -> None:
    """Builds the run's module from its config, loads the checkpoint and writes the folder.

    Raises:
        ValueError: no such checkpoint or config, a checkpoint of another model, or an output folder in use.
    """
    ckpt, out = Path(parsed.ckpt), Path(parsed.out)
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} exists and is not empty; choose another folder or remove it")
    check_writable(out)
    checkpoint = AtomicCheckpointIO().load_checkpoint(ckpt)
    run_dir = ckpt.resolve().parent.parent
    config = Path(parsed.config) if parsed.config else run_dir / "config.yaml"
    if not config.is_file():
        raise ValueError(f"no config at {config}; name the run's config with --config")
    cli = SparseCLI(["--config", str(config), *ANYWHERE], run=False)
    module = cli.model
    if not isinstance(module, SparseAttentionModule):
        raise ValueError(f"{config} is not the config of a sparse run")
    module.configure_model()
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    assert module.model is not None
    tokenizer = cli.datamodule.load_tokenizer() if hasattr(cli.datamodule, "load_tokenizer") else None
    export_sparse(module.model, out, measured=_measured(run_dir, checkpoint, module).as_json(), tokenizer=tokenizer)
    print(f"wrote {out}; load it with lit_sparse.from_pretrained({str(out)!r})")


def _measured(run_dir: Path, checkpoint: dict[str, Any], module: SparseAttentionModule) -> RunSummary:
    """The run's summary if it describes this very checkpoint, else what the checkpoint itself knows."""
    step = int(checkpoint["global_step"])
    if (run_dir / "summary.json").is_file():
        measured = read_json(run_dir / "summary.json", RunSummary)
        if measured.chosen_step == step:
            return measured
    return RunSummary(
        model=module.base_name,
        constraint=module.objective.constraint.name,
        constraint_described=module.objective.constraint.described(),
        steps=step,
        tokens=module.state.tokens,
        seconds=module.state.seconds,
    )
