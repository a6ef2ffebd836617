"""Record of one run: all data of its plots and its page, without the model.

Shapes: L layers, H query heads, T tokens of the example (queries on axis -2, keys on axis -1).
"""

import csv
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load_file, save

from lit_sparse.common.files import write_atomically
from lit_sparse.records.reading import checked
from lit_sparse.records.run_summary import RunSummary
from lit_sparse.records.shown import Shown

ARRAYS_FILE = "record.safetensors"
VALUES_FILE = "record.json"
FORMAT_VERSION = 1


@dataclass
class AttentionExample:
    """One sentence's causal attention in every head, in the base model and in the sparse one.

    The sentence is one document. Every token may attend to itself and all earlier tokens; weights above the
    diagonal are ignored.

    Args:
        tokens: the T tokens as text.
        before: attention weights of the base model.
        after: gated attention weights of the sparse model, exactly 0 at closed edges.
        title: a few words that name the sentence.

    Raises:
        ValueError: the arrays are not both (L, H, T, T) with T tokens.
    """

    tokens: list[str]
    before: Float[np.ndarray, "layers heads tokens tokens"]
    after: Float[np.ndarray, "layers heads tokens tokens"]
    title: str | None = None

    def __post_init__(self) -> None:
        self.before = as_array(self.before, 4, "example.before")
        self.after = as_array(self.after, 4, "example.after")
        size = len(self.tokens)
        if self.before.shape != self.after.shape or self.before.shape[2:] != (size, size):
            raise ValueError(
                f"example: before {self.before.shape} and after {self.after.shape} must both be "
                f"(layers, heads, {size}, {size}) for its {size} tokens"
            )


@dataclass(repr=False)
class RunRecord(Shown):
    """Measurements of a run.

    Args:
        summary: the content of summary.json.
        history: the rows of metrics.csv, see `read_history`.
        edges_start: open edges over allowed edges, by layer and head, before training.
        edges_end: open edges over allowed edges after training.
        example: one sentence's attention, if there is one.

    Raises:
        ValueError: an array has the wrong number of axes, or the two edge arrays differ in shape.
    """

    summary: RunSummary
    history: list[dict[str, float]]
    edges_start: Float[np.ndarray, "layers heads"]
    edges_end: Float[np.ndarray, "layers heads"]
    example: AttentionExample | None = field(default=None)

    def __post_init__(self) -> None:
        self.history = [{name: float(value) for name, value in row.items()} for row in self.history]
        self.edges_start = as_array(self.edges_start, 2, "edges_start")
        self.edges_end = as_array(self.edges_end, 2, "edges_end")
        if self.edges_start.shape != self.edges_end.shape:
            raise ValueError(
                f"edges_start {self.edges_start.shape} and edges_end {self.edges_end.shape} must have "
                "the same (layers, heads)"
            )

    def __repr__(self) -> str:
        return f"<RunRecord: {len(self.history)} rows of history, {self.summary!r}>"

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `record.safetensors` and `record.json` into `folder`, which is made if it does not exist.

        Each file appears whole or not at all. Numbers that are not finite become null in the JSON.
        """
        arrays = {"edges_start": self.edges_start, "edges_end": self.edges_end}
        values: dict[str, object] = {
            "format_version": FORMAT_VERSION,
            "summary": self.summary.as_json(),
            "history": [
                {name: value if math.isfinite(value) else None for name, value in row.items()} for row in self.history
            ],
            "example": None,
        }
        if self.example is not None:
            arrays |= {"example.before": self.example.before, "example.after": self.example.after}
            values["example"] = {"tokens": self.example.tokens, "title": self.example.title}
        folder = Path(folder)
        write_atomically(folder / ARRAYS_FILE, save(arrays))
        text = json.dumps(values, indent=1, allow_nan=False)
        write_atomically(folder / VALUES_FILE, text.encode())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "RunRecord":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: `folder` holds no record.
            ValueError: the record has another format version, or a field of its summary is not valid.
        """
        folder = Path(folder)
        for name in (ARRAYS_FILE, VALUES_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"no {name} in {folder}: a run writes it there when it ends")
        values = json.loads((folder / VALUES_FILE).read_text(encoding="utf-8"))
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{folder / VALUES_FILE} has format version {version}, this code reads {FORMAT_VERSION}: rebuild the "
                "report with the version of lit_sparse that wrote it"
            )
        arrays = load_file(folder / ARRAYS_FILE)
        example = None
        if values["example"] is not None:
            example = AttentionExample(
                tokens=values["example"]["tokens"],
                before=arrays["example.before"],
                after=arrays["example.after"],
                title=values["example"]["title"],
            )
        history = [
            {name: math.nan if number is None else number for name, number in row.items()} for row in values["history"]
        ]
        summary = checked(values["summary"], RunSummary, folder / VALUES_FILE)
        return cls(summary, history, arrays["edges_start"], arrays["edges_end"], example)


def read_history(csv_path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Read a metrics.csv as one dict per row, without blank cells.

    Raises:
        ValueError: the file has no `step` column, or a cell is not a number.
    """
    rows: list[dict[str, float]] = []
    with open(csv_path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "step" not in (reader.fieldnames or ()):
            raise ValueError(f"{csv_path} has no column 'step': is it the metrics.csv of a run?")
        for raw in reader:
            row: dict[str, float] = {}
            for name, cell in raw.items():
                # A line cut short by a crash leaves None; surplus cells come under the key None.
                if not name or not isinstance(cell, str) or not cell.strip():
                    continue
                try:
                    row[name] = float(cell)
                except ValueError:
                    raise ValueError(f"{csv_path}, line {reader.line_num}: {name} is {cell!r}, not a number") from None
            if "step" in row:
                rows.append(row)
    return rows


def as_array(value: Any, ndim: int, name: str) -> np.ndarray:
    """`value` as a contiguous float32 array. Tensors on any device and of any float type are accepted.

    Raises:
        ValueError: the array does not have `ndim` axes.
    """
    if hasattr(value, "detach"):
        value = value.detach().float().cpu().numpy()
    array = np.ascontiguousarray(value, dtype=np.float32)
    if array.ndim != ndim:
        raise ValueError(f"{name} has shape {array.shape}, expected {ndim} axes")
    return array
