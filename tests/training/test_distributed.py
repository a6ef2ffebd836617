"""Two processes on gloo, started by Lightning as on a machine with two GPUs."""

import json
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
NOTES = '''
import json
from pathlib import Path
from lightning.pytorch import Callback

class Notes(Callback):
    """What each rank's multiplier did, one file a rank."""

    def __init__(self, folder: str):
        self.folder, self.notes = Path(folder), []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        total = sum(batch["input_ids"].flatten().tolist())
        self.notes.append([trainer.global_step, float(pl_module.objective.multiplier.value), total])

    def on_train_end(self, trainer, pl_module):
        weights = sum(float(value.double().sum()) for value in pl_module.state_dict().values())
        end = {"notes": self.notes, "weights": weights, "best": trainer.checkpoint_callback.best_model_path}
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(end))
'''


@pytest.mark.slow
def test_two_processes_agree(make_config, start_python, tmp_path):
    (tmp_path / "notes_for_this_test.py").write_text(NOTES)
    callback = {"class_path": "notes_for_this_test.Notes", "init_args": {"folder": str(tmp_path)}}
    settings = {
        "trainer.devices": 2,
        "trainer.strategy": {
            "class_path": "lightning.pytorch.strategies.DDPStrategy",
            "init_args": {"process_group_backend": "gloo"},
        },
        "trainer.callbacks": [callback],
        "trainer.accumulate_grad_batches": 2,
        "data.init_args.held_out": 0.22,  # 11 held-out pairs for each split: not the same number for both ranks
    }
    process = start_python(
        "main.py", "fit", "--config", make_config("run", settings), PYTHONPATH=f"{REPOSITORY}:{tmp_path}"
    )
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "sync_dist" not in errors  # held-out numbers are summed over ranks already
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    lambdas = [[value for _, value, _ in end["notes"]] for end in (first, second)]
    assert lambdas[0] == lambdas[1]
    assert len(set(lambdas[0])) == 6  # one for each step, and it moved
    assert first["weights"] == second["weights"]
    assert first["best"] == second["best"] != ""
    data = [[total for *_, total in end["notes"]] for end in (first, second)]
    assert data[0] != data[1]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 6 and summary["tokens"] == 2 * 12 * 8 * 6
    assert summary["test_tokens"] == 2 * 10  # two digits of five pairs on each rank
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] in (3, 4, 5, 6)
