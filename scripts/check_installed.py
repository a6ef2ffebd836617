"""Check of an installed wheel without the repository: `PYTHON scripts/check_installed.py`, with its own Python.

Everything runs in an empty folder, as a user's first commands would. Ends with status 1 where something is missing.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

SMALL = (
    "--trainer.fast_dev_run 2 --data.sequence_length 64 --data.eval_batch_size 1 --data.max_documents 100 "
    "--trainer.enable_progress_bar false"
)
HOOKS = "import lit_sparse.examples.train, lit_sparse.examples.gemma_local_layers"
LOADS = (
    "import lit_sparse; from lit_sparse.attention import gates_of; "
    "print(len(gates_of(lit_sparse.from_pretrained('smollm2_2048'))), 'layers with gates', lit_sparse.__file__)"
)


def main() -> None:
    python = Path(sys.executable)
    program = python.with_name("lit-sparse")
    with tempfile.TemporaryDirectory(prefix="lit_sparse-installed-") as folder:

        def run(*command: object, expect: str = "") -> None:
            words = [str(word) for word in command]
            print(f"$ {' '.join(words)}", flush=True)
            done = subprocess.run(words, cwd=folder, text=True, stdout=subprocess.PIPE)
            print(done.stdout, flush=True)
            if done.returncode or expect not in done.stdout:
                sys.exit(f"failed with status {done.returncode}, or without {expect!r}: {' '.join(words)}")

        where = [str(python), "-c", "import lit_sparse; print(lit_sparse.__file__)"]
        package = Path(subprocess.check_output(where, cwd=folder, text=True).strip()).parent
        if package == Path(__file__).resolve().parents[1] / "lit_sparse":
            sys.exit("this Python imports the repository, not an installed wheel")
        run(program, "--version", expect="lit-sparse ")
        run(program, "--help", expect="demo")
        run(program, "configs", expect="paper/olmo-7b")
        run(program, "info", "--config", "paper/gpt2", expect="memory: in all")
        run(python, "-c", HOOKS)
        run(python, "-c", LOADS, expect="30 layers with gates")
        run(program, "demo", expect="trace.html")
        if not (Path(folder) / "runs/demo/trace.html").is_file():
            sys.exit("the demo wrote no page")
        run(program, "fit", "--config", "quickstart", *SMALL.split())


if __name__ == "__main__":
    main()
