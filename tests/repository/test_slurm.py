"""The SLURM scripts, run here with stand-ins for `srun` and `scontrol` on the PATH."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = REPOSITORY / "scripts" / "slurm"
ENVIRONMENT = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "lit_sparse",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_CPUS_PER_TASK": "1",
    "SLURM_SUBMIT_DIR": str(REPOSITORY),
}

SRUN = """#!/bin/bash
# Starts the one task of this job in the foreground, as rank 0; sends it SIGUSR1 when its log has rows, if asked to.
while [[ $1 == --* ]]; do echo "$1" >> "$FAKE/srun_options"; shift; done
export SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_STEP_ID=0
"$@" &
task=$!
if [[ -n ${FAKE_SIGNAL_AFTER-} ]]; then
    while kill -0 $task 2>/dev/null && [[ $(cat "$FAKE_SIGNAL_AFTER" 2>/dev/null | wc -l) -lt 3 ]]; do sleep 0.1; done
    kill -USR1 $task
fi
wait $task
"""
SCONTROL = '#!/bin/bash\necho "$@" >> "$FAKE/scontrol_calls"\n'
PYTHON = """#!/bin/bash
# Instead of training: notes its arguments, one a line, and ends as told.
printf '%s\\n' "$@" > "$FAKE/arguments"
exit "${FAKE_STATUS:-0}"
"""


@pytest.fixture
def fake(tmp_path):
    """A folder of stand-ins, which also takes their notes."""
    folder = tmp_path / "fake"
    folder.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "fake_python": PYTHON}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def batch(fake):
    """Runs a script as a SLURM job would, with the pretended python or the real one."""

    def run(script, *arguments, python=None, **environment):
        variables = {**os.environ, **ENVIRONMENT, "FAKE": str(fake), "PYTHON": str(python or fake / "fake_python")}
        variables["PATH"] = f"{fake}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["bash", str(SCRIPTS / script), *map(str, arguments)],
            env={**variables, **environment},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "some config.yaml"
    path.write_text("model: {}\n")
    return path


def arguments_of(fake):
    return (fake / "arguments").read_text().splitlines()


@pytest.mark.parametrize("script", sorted(SCRIPTS.iterdir()), ids=lambda path: path.name)
def test_syntax_and_directives(script):
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    text = script.read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, flags=re.MULTILINE))
    assert options["gpus-per-node"] == options["ntasks-per-node"]  # a task for each GPU
    assert options["signal"] == "SIGUSR1@120"  # to the tasks, not to the script, which waits for them
    assert "requeue" in options and options["open-mode"] == "append"
    # Directives count only before the first command, and each script says how it is started.
    first = next(line for line in text.splitlines() if line and not line.startswith("#"))
    assert text.index("#SBATCH --output") < text.index(first)
    assert f"scripts/slurm/{script.name}" in text.split("#SBATCH")[0]


def test_arguments_reach_main(batch, fake, config):
    done = batch(
        "train.sbatch",
        config,
        "--run_dir",
        "runs/with space",
        SLURM_JOB_NUM_NODES="4",
        SLURM_NTASKS_PER_NODE="8",
    )
    assert done.returncode == 0, done.stderr
    assert arguments_of(fake) == [
        *("main.py", "fit", "--config", str(config), "--on_existing", "resume"),
        *("--trainer.num_nodes", "4", "--trainer.devices", "8", "--run_dir", "runs/with space"),
    ]
    assert "--kill-on-bad-exit=1" in (fake / "srun_options").read_text()
    assert not (fake / "scontrol_calls").exists()


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (2, False), (138, True), (143, False)])
def test_only_a_stop_before_the_time_limit_is_requeued(batch, fake, config, status, requeued):
    done = batch("train.sbatch", config, FAKE_STATUS=str(status))
    assert (fake / "scontrol_calls").exists() == requeued
    if requeued:
        assert (fake / "scontrol_calls").read_text() == "requeue 4711\n"
    assert done.returncode == (0 if requeued else status)


def test_what_is_missing_is_said(batch, tmp_path, config):
    for script, arguments in {"train.sbatch": ["none.yaml"], "sweep.sbatch": [config, "none.txt"]}.items():
        done = batch(script, *arguments)
        assert done.returncode == 2 and "usage: sbatch" in done.stderr and "none." in done.stderr
    settings = tmp_path / "settings.txt"
    settings.write_text("one --a 1\n")
    done = batch("sweep.sbatch", config, settings, SLURM_ARRAY_TASK_ID="3")
    assert done.returncode == 2 and "1 settings (0 to 0)" in done.stderr
    done = batch("sweep.sbatch", config, settings)
    assert done.returncode != 0 and "--array" in done.stderr


def test_an_array_index_picks_its_setting(batch, fake, config, tmp_path):
    settings = tmp_path / "epsilons.txt"
    settings.write_text(
        "# what follows is index 0\n\nsmall --a.epsilon 0.01\n\n"
        """large  --a.epsilon 0.05 --b '{"c": [1, 2]}' --d "two words"\n  # the last one\nkeep --e $(false)*\n"""
    )
    expected = {
        "0": ["runs/epsilons/small", "--a.epsilon", "0.01"],
        "1": ["runs/epsilons/large", "--a.epsilon", "0.05", "--b", '{"c": [1, 2]}', "--d", "two words"],
        "2": ["runs/epsilons/keep", "--e", "$(false)*"],
    }
    for index, words in expected.items():
        done = batch("sweep.sbatch", config, settings, "--seed_everything", "1", SLURM_ARRAY_TASK_ID=index)
        assert done.returncode == 0, done.stderr
        found = arguments_of(fake)
        assert found[:4] == ["main.py", "fit", "--config", str(config)]
        assert found[found.index("--run_dir") + 1 :] == [*words, "--seed_everything", "1"]


@pytest.mark.slow
def test_a_requeued_job_goes_on_where_it_stopped(batch, fake, make_config, tmp_path):
    """Real training under Lightning's SLURM environment: SIGUSR1 in the middle, then the same script once more."""
    config = make_config("run", {"trainer.max_steps": 100_000})
    run = tmp_path / "run"
    log = run / "logs" / "version_0" / "metrics.csv"
    one = {"python": sys.executable, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    first = batch("train.sbatch", config, FAKE_SIGNAL_AFTER=str(log), **one)
    assert first.returncode == 0, first.stderr
    assert (fake / "scontrol_calls").read_text() == "requeue 4711\n"
    assert "stopped by SIGUSR1 after step" in first.stderr
    step = int(re.search(r"after step (\d+)", first.stderr)[1])
    assert step > 0 and not (run / "summary.json").exists()

    second = batch("train.sbatch", config, "--trainer.max_steps", step + 5, SLURM_RESTART_COUNT="1", **one)
    assert second.returncode == 0, second.stderr
    assert len((fake / "scontrol_calls").read_text().splitlines()) == 1
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == step + 5
    assert summary["tokens"] % (step + 5) == 0  # every step counted once
