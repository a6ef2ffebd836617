"""Prose to train on where nothing can be downloaded: books, essays, manuals, dictionaries, dialogue, from packages of
Debian.

    python scripts/gpu/texts.py DIR

Needs `apt-get download`. Writes `DIR/train/KIND.jsonl` and `DIR/held_out/KIND.txt`; what is held out is never trained
on (docs/howto/gpu.md). Python's documentation, docstrings and source files need no packing, every machine has those.
"""

import argparse
import json
import random
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import readers

MAX_CHARS = 20_000
"""Of a document; as for text files in `lit_sparse.data.sources`."""
SHORTEST = 400
MILLION = 10**6
WESNOTH = ("did", "dm", "dw", "ei", "l", "low", "nr", "sof", "sota", "sotbe", "thot", "trow", "tsg", "ttb", "utbs")
CAMPAIGN = "usr/share/games/wesnoth/1.16/data/campaigns/*/**/*.cfg"
KERNEL = "usr/share/doc/linux-doc-6.1/Documentation/"


class Book(NamedTuple):
    """Files of a package, and how to read them.

    limit: characters to take at most; longer ones are taken every n-th document.
    """

    package: str
    kind: str
    files: str
    read: Callable[[Path], Iterator[str]]
    limit: int = 4 * MILLION
    held_out: bool = False


BOOKS = [
    Book("r-cran-janeaustenr", "fiction", "**/data/Rdata.rdb", readers.r_strings, 9 * MILLION),
    *(Book(f"wesnoth-1.16-{name}", "fiction", CAMPAIGN, readers.campaign) for name in WESNOTH),
    Book("endless-sky-data", "fiction", "**/data/**/*.txt", readers.space_opera, 6 * MILLION),
    Book("crawl-common", "fiction", "usr/share/crawl/dat/d*/*.txt", readers.quotations),
    Book("fortunes", "quotations", "usr/share/games/fortunes/[a-z]*[a-z]", readers.quotations),
    Book("fortunes-min", "quotations", "usr/share/games/fortunes/[a-z]*[a-z]", readers.quotations),
    Book("dict-devil", "quotations", "**/*.dict.dz", readers.plain),
    Book("anarchism", "essays", "usr/share/doc/anarchism/html/*.html", readers.html, 9 * MILLION),
    Book("debian-history", "essays", "usr/share/doc/debian-history/docs/*.en.html", readers.html),
    Book("sword-comm-tdavid", "commentary", "**/*.czz", readers.sword, 6 * MILLION),
    Book("sword-comm-mhcc", "commentary", "**/*.bzz", readers.sword, 3 * MILLION),
    Book("sword-text-web", "commentary", "**/*.bzz", readers.sword, 3 * MILLION),
    Book("dict-gcide", "reference", "**/*.dict.dz", readers.plain, 5 * MILLION),
    Book("dict-wn", "reference", "**/*.dict.dz", readers.plain, 3 * MILLION),
    Book("jargon-text", "reference", "**/jargon.txt.gz", readers.plain),
    Book("debian-reference-en", "manuals", "usr/share/debian-reference/*.en.html", readers.html),
    Book("developers-reference", "manuals", "usr/share/developers-reference/*.html", readers.html),
    Book("debian-policy", "manuals", "**/policy.html/*.html", readers.html),
    Book("harden-doc", "manuals", "**/html/en-US/*.html", readers.html),
    Book("installation-guide-amd64", "manuals", "**/en/*.html", readers.html),
    Book("gnome-user-docs", "manuals", "usr/share/help/C/**/*.page", readers.html),
    Book("gimp-help-en", "manuals", "**/*.html", readers.html, 3 * MILLION),
    Book("libreoffice-help-en-us", "manuals", "**/text/**/*.html", readers.html, 2 * MILLION),
    Book("linux-doc-6.1", "manuals", f"{KERNEL}[!td]*/**/*.rst.gz", readers.plain, 5 * MILLION),
    Book("postgresql-doc-15", "manuals", "**/html/*.html", readers.html, 4 * MILLION),
    Book("sqlite3-doc", "manuals", "usr/share/doc/sqlite3/*.html", readers.html, 3 * MILLION),
    Book("python-django-doc", "manuals", "**/html/**/*.html", readers.html, 4 * MILLION),
    Book("git-doc", "manuals", "**/*.txt", readers.plain, 1 * MILLION),
    Book("perl-doc", "manuals", "**/pod/perl*.pod", readers.plain, 3 * MILLION),
    Book("octave-doc", "manuals", "**/octave.html/*.html", readers.html, 2 * MILLION),
    Book("gnu-standards", "manuals", "**/*.text.gz", readers.plain),
    Book("zsh-doc", "manuals", "**/html/*.html", readers.html, 2 * MILLION),
    Book("rust-doc", "manuals", "usr/share/doc/rust-doc/html/book/ch*.html", readers.html, 3 * MILLION),
    Book("erlang-doc", "manuals", "**/lib/stdlib-*/doc/html/*.html", readers.html, MILLION),
    Book("manpages", "manuals", "usr/share/man/man*/*.gz", readers.manual_page, MILLION),
    Book("manpages-dev", "manuals", "usr/share/man/man*/*.gz", readers.manual_page, MILLION),
    Book("wesnoth-1.16-httt", "fiction", CAMPAIGN, readers.campaign, held_out=True),
    Book("sword-comm-scofield", "commentary", "**/*.?zz", readers.sword, held_out=True),
    Book("dict-foldoc", "reference", "**/*.dict.dz", readers.plain, held_out=True),
    Book("apache2-doc", "manuals", "**/manual/en/**/*.html", readers.html, held_out=True),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    write_texts(options.folder, BOOKS)


def write_texts(folder: Path, books: list[Book]) -> None:
    """Downloads and reads; texts that occur twice are kept once, and none that is held out is trained on.

    Raises:
        subprocess.CalledProcessError: a package cannot be downloaded.
    """
    held_out = {text for book in books if book.held_out for text in documents(book, folder)}
    train: dict[str, list[str]] = defaultdict(list)
    seen = set(held_out)
    for book in books:
        if book.held_out:
            continue
        found = [text for text in documents(book, folder) if text not in seen]
        seen.update(found)
        train[book.kind] += found
        print(f"{book.package}: {book.kind}, {sum(map(len, found)) / MILLION:.2f} million characters")
    for name in ("train", "held_out"):
        (folder / name).mkdir(exist_ok=True)
    for kind, texts in train.items():
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        (folder / "train" / f"{kind}.jsonl").write_text("".join(lines), encoding="utf-8")
    for book in books:
        if book.held_out:
            text = "\n\n".join(documents(book, folder))
            (folder / "held_out" / f"{book.kind}.txt").write_text(text, encoding="utf-8")


def documents(book: Book, folder: Path) -> list[str]:
    """English texts of at least SHORTEST and at most MAX_CHARS characters, without lines that most files share."""
    root = unpacked(book.package, folder)
    texts = [text for path in sorted(root.glob(book.files)) if path.is_file() for text in book.read(path)]
    texts = [piece for text in without_repeated_lines(texts) for piece in pieces(text) if is_english(piece)]
    if (total := sum(map(len, texts))) > book.limit:
        texts = random.Random(0).sample(texts, int(len(texts) * book.limit / total))
    return texts


def unpacked(package: str, folder: Path) -> Path:
    target = folder / "packages" / package
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", package], cwd=target.parent, check=True)
        archive = next(target.parent.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive, target], check=True)
        archive.unlink()
    return target


def without_repeated_lines(texts: list[str]) -> Iterator[str]:
    """Navigation, licences: lines that stand in more than a tenth of many texts."""
    counts: dict[str, int] = defaultdict(int)
    for text in texts:
        for line in set(text.split("\n")):
            counts[line] += 1
    frequent = {line for line, count in counts.items() if line.strip() and count > max(5, len(texts) / 10)}
    for text in texts:
        kept = "\n".join(line for line in text.split("\n") if line not in frequent)
        yield re.sub(r"\n{3,}", "\n\n", kept).strip()


def pieces(text: str) -> Iterator[str]:
    """`text` cut at empty lines, else at line ends, else anywhere."""
    while len(text) > MAX_CHARS:
        cut = max(text.rfind("\n\n", MAX_CHARS // 2, MAX_CHARS), 0) or max(text.rfind("\n", 1, MAX_CHARS), 0)
        yield text[: cut or MAX_CHARS].strip()
        text = text[cut or MAX_CHARS :].strip()
    yield text


def is_english(text: str) -> bool:
    """Long enough, and mostly unaccented letters (no tables of numbers)."""
    start = text[:4000]
    letters = sum(character.isascii() and (character.isalpha() or character == " ") for character in start)
    return len(text) >= SHORTEST and letters > 0.72 * len(start)


if __name__ == "__main__":
    main()
