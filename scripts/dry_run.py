"""Two steps of every config, on the real model and text: `python scripts/dry_run.py [CONFIG ...]`, or `make dry-run`.

Each is a whole `main.py fit` but for what is imported, which they share: every config runs in a fork of this process.
Nothing is written into runs/ but the toy's dense model, where it is missing.
"""

import os
import resource
import shlex
import sys
import time
from importlib import import_module
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

SHARED = (
    "lit_sparse.commands.main",
    "lit_sparse.data",
    "lit_sparse.models.auto",
    "lit_sparse.training.module",
    "lit_sparse.transcoders",
    "peft",
    "transformers.models.llama.modeling_llama",
)
"""What a run imports, late or not."""

RELEASED = "--model.init_args.start release/smollm2_2048 --model.init_args.lora '{r: 24, lora_alpha: 24}'"
"""An hour-long run's adapters may not be there: the shipped ones, which are of another rank, serve."""
FEW = "--data.max_documents 100 --data.eval_batch_size 1"
SHORT = f"{FEW} --data.sequence_length 64"
"""Text of every source, but little: what is in it and how much changes nothing that two steps show. `smollm2_512` keeps
its length."""
GPU = "--data.batch_size 2 --model.init_args.execution.record_steps false"
"""Its batches are too large for other machines, and a CPU records no steps."""
MORE = {
    "quickstart": SHORT,
    "smollm2": SHORT,
    "smollm2_512": f"{FEW} {RELEASED}",
    "smollm2_ce": f"{SHORT} {RELEASED}",
    "smollm2_gpu": f"{SHORT} {GPU}",
    "transcoder_smollm2": SHORT,
}
"""Options of the dry runs of some configs."""


def dry_run(config: Path) -> None:
    """In this process, which a run that starts processes takes for `main.py`."""
    from lit_sparse.commands.main import main

    options = ["--trainer.fast_dev_run", "2", *shlex.split(MORE.get(config.stem, ""))]
    sys.argv = [str(REPOSITORY / "main.py"), "fit", "--config", str(config), *options]
    main(sys.argv[1:])


def main(names: list[str]) -> None:
    for module in SHARED:
        import_module(module)
    configs = [Path(name) for name in names] or sorted(Path("configs").glob("*.yaml"))
    for config in configs:
        print(f"dry run of {config}", flush=True)
        started = time.monotonic()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        child = os.fork()
        if child == 0:
            dry_run(config)
            sys.exit()
        if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            sys.exit(f"the dry run of {config} ended with exit status {status}")
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
        print(f"{config}: {time.monotonic() - started:.0f} s, {seconds:.0f} s of a core", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
