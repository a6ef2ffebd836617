"""The command demo: a sparse model at work, for a first look."""

import time
from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from lit_sparse.commands.options import trace
from lit_sparse.common.formatting import roughly
from lit_sparse.common.shipped import shipped

MODEL = "smollm2_2048"
"""The recommended release."""
SECONDS = 35
"""Time of the demo on two cores of an AMD EPYC with AVX-512, by `time lit-sparse demo`."""


def demo_command(parsed: Namespace) -> None:
    """Prints a sentence with the edges that its next token needs, and writes the page.

    Raises:
        ValueError: the package came without its model, or the model's base is not installed.
    """
    started, console = time.monotonic(), Console()
    if shipped("release", MODEL) is None:
        raise ValueError(f"this installation has no model {MODEL}; clone the repository and run the demo there")
    console.print(
        f"A sparse SmolLM2-135M reads a sentence, beside its dense base: about {roughly(SECONDS)} on two CPU cores.",
        highlight=False,
    )
    trace.COMMAND.call(["--model", MODEL, "--prompt", parsed.prompt, "--out", parsed.out])
    page = (Path(parsed.out) / "trace.html").resolve()
    for line in (
        f"That took {roughly(time.monotonic() - started)}. Open {page.as_uri()} in a browser.",
        "Next: `lit-sparse circuits --model smollm2_2048 --prompt TEXT` explains a sentence of yours;",
        "`lit-sparse fit --config quickstart` trains a sparse model.",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
