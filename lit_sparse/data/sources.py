"""Sources of documents. Each gives texts in a fixed order, and a fingerprint of these texts.

python-docs             Python's own documentation (`data.prose`)
docs:torch              the docstrings of an installed package
code:torch              its source files
notes/**/*.md           a path or glob of .txt, .md and .jsonl files (key "text"), each also as .gz
hf:org/name[:config]    the training split of a Hugging Face dataset, streamed
"""

import contextlib
import glob
import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from lit_sparse.data import prose

SUFFIXES = (".txt", ".md", ".jsonl")
MAX_CHARS = 20_000
"""Text files are cut into documents of at most this many characters, so that one book fills all splits."""

_KINDS = (
    "'python-docs', 'docs:PACKAGE', 'code:PACKAGE', a path or glob of .txt, .md or .jsonl files (.gz too),"
    " or 'hf:dataset[:config]'"
)


@runtime_checkable
class Source(Protocol):
    """One entry of `TextData.sources`."""

    @property
    def streamed(self) -> bool:
        """True if the source has no end worth waiting for, so it is read only as far as needed."""

    def documents(self) -> Iterator[str]:
        """The texts, in a fixed order."""

    def fingerprint(self) -> str:
        """String that changes whenever the texts do (for a stream, whenever its name does)."""


@dataclass(frozen=True)
class PythonDocs:
    """Python's own documentation."""

    streamed: bool = False

    def documents(self) -> Iterator[str]:
        return prose.python_prose()

    def fingerprint(self) -> str:
        return prose.fingerprint(prose.stdlib_sources())


@dataclass(frozen=True)
class PackageDocs:
    """The docstrings of an installed package."""

    package: str
    streamed: bool = False

    def documents(self) -> Iterator[str]:
        return prose.package_prose(self.package)

    def fingerprint(self) -> str:
        return prose.fingerprint(prose.package_sources(self.package))


@dataclass(frozen=True)
class PackageCode:
    """The Python files of an installed package, without tests and without files in other encodings than UTF-8."""

    package: str
    streamed: bool = False

    def documents(self) -> Iterator[str]:
        for path in prose.package_sources(self.package):
            with contextlib.suppress(ValueError):
                yield from _sections(_read(path).strip())

    def fingerprint(self) -> str:
        return "code " + prose.fingerprint(prose.package_sources(self.package))


@dataclass(frozen=True)
class LocalFiles:
    """Local files, in the order of their paths."""

    paths: tuple[Path, ...]
    streamed: bool = False

    def documents(self) -> Iterator[str]:
        for path in self.paths:
            yield from _json_lines(path) if _suffix(path) == ".jsonl" else _sections(_read(path))

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for path in self.paths:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest() + _suffix(path).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class HubStream:
    """The training split of a dataset of the Hugging Face Hub; its column "text" is read."""

    name: str
    config: str | None = None
    streamed: bool = True

    def documents(self) -> Iterator[str]:
        """The rows' texts.

        Raises:
            ValueError: The dataset cannot be reached, or has no column "text".
        """
        from datasets import load_dataset

        try:
            for row in load_dataset(self.name, self.config, split="train", streaming=True):
                if not isinstance(row.get("text"), str):
                    raise KeyError(f"no column 'text' with strings among {sorted(row)}")
                yield row["text"]
        except Exception as error:  # one of four libraries' errors for a missing network, name, or configuration
            raise ValueError(
                f"cannot stream '{self.fingerprint()}' from the Hub ({type(error).__name__}: {error})."
                " If this machine has no network, use local files or 'python-docs' in data.sources;"
                " otherwise check the name, as 'hf:dataset[:config]'"
            ) from error

    def fingerprint(self) -> str:
        return f"hf:{self.name}" + (f":{self.config}" if self.config else "")


def parse_source(source: str) -> Source:
    """The source that an entry of `TextData.sources` names.

    Raises:
        ValueError: The kind of source or of file is unknown, or no file matches.
    """
    if source == "python-docs":
        return PythonDocs()
    scheme, _, rest = source.partition(":")
    if scheme == "docs" and rest:
        return PackageDocs(rest)
    if scheme == "code" and rest:
        return PackageCode(rest)
    if scheme == "hf" and rest:
        name, _, config = rest.partition(":")
        return HubStream(name, config or None)
    if re.fullmatch(r"[A-Za-z][\w.+-]+", scheme) and rest and not Path(source).exists():
        raise ValueError(f"unknown kind of source '{scheme}:' in data.sources entry '{source}': use {_KINDS}")
    return _local_files(source)


def _local_files(pattern: str) -> LocalFiles:
    path = Path(pattern).expanduser()
    if path.is_dir():
        raise ValueError(f"'{pattern}' in data.sources is a folder: name its files, for example '{path}/**/*.txt'")
    if path.is_file():
        found = [path]
    else:
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
        if not found:
            raise ValueError(f"no file matches '{pattern}' in data.sources (from {Path.cwd()}): a source is {_KINDS}")
    readable = tuple(path for path in found if _suffix(path) in SUFFIXES)
    if not readable:
        raise ValueError(
            f"'{pattern}' in data.sources matches no file that can be read ({found[0].name}, …):"
            f" use files of the kinds {', '.join(SUFFIXES)}, also with .gz"
        )
    return LocalFiles(readable)


def _suffix(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _read(path: Path) -> str:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8").replace("\r\n", "\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read '{path}' as UTF-8 text: {error}") from error


def _json_lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            try:
                text = json.loads(line)["text"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number} is not a JSON object with a key 'text'") from error
            if not isinstance(text, str):
                raise ValueError(f"{path}:{number}: the value of 'text' is not a string")
            yield text


def _sections(text: str) -> Iterator[str]:
    """`text` cut at empty lines, else at line ends, else anywhere, into pieces of at most MAX_CHARS."""
    start = 0
    while len(text) - start > MAX_CHARS:
        end = start + MAX_CHARS
        cuts = (text.rfind(boundary, start + 1, end) for boundary in ("\n\n", "\n"))
        end = next((cut for cut in cuts if cut > 0), end)
        yield text[start:end]
        start = end
        while text.startswith("\n", start):
            start += 1
    yield text[start:]
