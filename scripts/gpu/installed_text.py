"""Docstrings and source files of packages that are installed on this machine, as text to train on.

    python scripts/gpu/installed_text.py DIR [--tiny]

Writes `DIR/docs.jsonl` and `DIR/code.jsonl`. Packages that are missing are left out and named. networkx and asyncio are
kept for evaluation: they stand in no list here.
"""

import argparse
import json
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from lit_sparse.data.sources import PackageCode, PackageDocs

DOCS = ("numpy", "scipy", "pandas", "sympy", "sklearn", "statsmodels", "torch", "jax", "matplotlib", "transformers")
DOCS += ("lightning", "xarray", "skimage", "botorch", "numba", "h5py", "pyarrow", "torchvision", "diffrax", "optax")
CODE = ("lightning", "sklearn", "aiohttp", "fsspec", "rich", "peft", "jax", "statsmodels", "botorch", "click", "xarray")
CODE += ("jinja2", "pydantic", "tqdm", "tensorboard", "torchmetrics", "markdown", "pytest", "IPython")
LIMITS = {"docs": 36_000_000, "code": 24_000_000}
"""Characters of each kind; more are taken every n-th document."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true", help="two small packages, to try the script")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [("docs", name) for name in DOCS] + [("code", name) for name in CODE]
    if options.tiny:
        jobs = [("docs", "lightning"), ("code", "rich")]
    found: dict[str, list[str]] = {"docs": [], "code": []}
    with ProcessPoolExecutor() as pool:
        for (kind, name), texts in zip(jobs, pool.map(documents, jobs), strict=True):
            print(f"{kind} of {name}: {sum(map(len, texts)) / 1e6:.2f} million characters")
            found[kind] += texts
    for kind, texts in found.items():
        total = sum(map(len, texts))
        if total > LIMITS[kind]:
            texts = random.Random(0).sample(texts, int(len(texts) * LIMITS[kind] / total))
        with (folder / f"{kind}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def documents(job: tuple[str, str]) -> list[str]:
    kind, name = job
    source = PackageDocs(name) if kind == "docs" else PackageCode(name)
    return list(_readable(source.documents()))


def _readable(texts: Iterator[str]) -> Iterator[str]:
    """Nothing where the package is missing."""
    try:
        yield from (text for text in texts if len(text) > 200)
    except ValueError as error:
        print(error)


if __name__ == "__main__":
    main()
