"""One metrics.csv for a run, also if it was interrupted.

Lightning's CSV logger starts a new file at every start: `logs/version_0`, `logs/version_1`, ... Rows that a later
start repeated (it resumed from a checkpoint before the interruption) are dropped from the earlier file.
"""

import csv
import io
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from lit_sparse.common.files import write_atomically
from lit_sparse.records.run import read_history

LOGS = "logs"


def keep_history(trainer: Trainer, run_dir: Path) -> None:
    """Gives a trainer that logs anything the logger that metrics.csv is made from, unless it has it already."""
    folder = run_dir / LOGS
    has_it = any(isinstance(one, CSVLogger) and Path(one.root_dir) == folder for one in trainer.loggers)
    if trainer.loggers and not has_it:
        trainer.loggers = [*trainer.loggers, CSVLogger(str(run_dir), name=LOGS, flush_logs_every_n_steps=20)]


def merge_history(run_dir: Path) -> Path | None:
    """Writes `run_dir/metrics.csv` from all starts of the run; None if nothing was logged."""
    rows: list[dict[str, float]] = []
    files = (run_dir / LOGS).glob("version_*/metrics.csv")
    for file in sorted(files, key=lambda file: int(file.parent.name.removeprefix("version_"))):
        later = read_history(file)
        if later:
            first = min(row["step"] for row in later)
            rows = [row for row in rows if row["step"] < first] + later
    if not rows:
        return None
    columns = ["step", *sorted({name for row in rows for name in row} - {"step"})]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(row | {"step": int(row["step"])} for row in rows)
    target = run_dir / "metrics.csv"
    write_atomically(target, text.getvalue().encode())
    return target
