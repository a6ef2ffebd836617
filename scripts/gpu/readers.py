"""Plain text out of the formats in which packages of Debian hold books, manuals and dialogue."""

import gzip
import re
import struct
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

_SILENT = {"script", "style", "head", "nav", "header", "footer", "svg", "button", "select"}
_BLOCKS = {
    "p",
    "div",
    "br",
    "li",
    "ul",
    "ol",
    "tr",
    "table",
    "pre",
    "dt",
    "dd",
    "section",
    "note",
    "item",
    "title",
    "td",
}
_BLOCKS |= {"h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "page"}


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent = self._literal = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._silent += tag in _SILENT
        self._literal += tag == "pre"
        if tag in _BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._silent = max(0, self._silent - (tag in _SILENT))
        self._literal = max(0, self._literal - (tag == "pre"))
        if tag in _BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data if self._literal else re.sub(r"\s+", " ", data))


def plain(path: Path) -> Iterator[str]:
    """A text file, also as .gz or .dz."""
    data = gzip.decompress(path.read_bytes()) if path.suffix in (".gz", ".dz") else path.read_bytes()
    try:
        yield data.decode("utf-8")
    except UnicodeDecodeError:
        yield data.decode("latin-1")


def html(path: Path) -> Iterator[str]:
    """A page of HTML, or of XML with paragraphs."""
    for text in plain(path):
        yield without_tags(text)


def without_tags(text: str) -> str:
    parser = _Text()
    parser.feed(text)
    lines = (line.rstrip() for line in "".join(parser.parts).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line if line.startswith("  ") else line.strip() for line in lines))


def quotations(path: Path) -> Iterator[str]:
    """Files of `fortune`: pieces between lines of one percent sign; also descriptions of Dungeon Crawl."""
    for text in plain(path):
        yield re.sub(r"\n%+\n", "\n\n", text)


def manual_page(path: Path) -> Iterator[str]:
    """A page in roff's man macros."""
    for text in plain(path):
        lines = []
        for line in text.split("\n"):
            if found := re.match(r"\.\s*(SH|SS|B|I|BR|IR|RB|RI|BI|IB|IP|TP)\s*(.*)", line):
                line = ("\n" if found[1] in ("SH", "SS") else "") + found[2].replace('"', "")
            elif line.startswith((".", "'")):
                line = "" if line.startswith((".PP", ".P", ".LP")) else None  # type: ignore[assignment]
            if line is not None:
                line = re.sub(r"\\f(\[\w*\]|\(?\w)", "", line)
                lines.append(line.replace("\\-", "-").replace("\\&", "").replace("\\(aq", "'").replace("\\e", "\\"))
        yield "\n".join(lines)


def sword(path: Path) -> Iterator[str]:
    """A compressed text or commentary of the SWORD project: blocks of zlib, placed by the index beside it."""
    index = path.with_suffix(path.suffix[:-1] + "s").read_bytes()  # .bzz .bzs, .czz .czs
    data = path.read_bytes()
    for offset, size, _ in struct.iter_unpack("<III", index[: len(index) // 12 * 12]):
        if size:
            text = zlib.decompress(data[offset : offset + size]).decode("utf-8", "replace")
            text = re.sub(r"<(note|title type=.x).*?</\1[^>]*>", "", text, flags=re.DOTALL)
            yield without_tags(re.sub(r"</?(verse|l|lg|w|chapter)\b[^>]*>", " ", text).replace("\x00", "\n"))


def r_strings(path: Path) -> Iterator[str]:
    """Texts in a database of R objects: lengths and zlib streams of serialised strings, one a printed line."""
    data = path.read_bytes()
    while data:
        stream = zlib.decompressobj()
        content = stream.decompress(data[4:])
        data = stream.unused_data
        lines, place = [], 0
        while (found := re.compile(rb"\x00[\x04\x00]\x00\x09").search(content, place)) is not None:
            size = int.from_bytes(content[found.end() : found.end() + 4], "big")
            lines.append(content[found.end() + 4 : found.end() + 4 + size].decode("utf-8", "replace"))
            place = found.end() + 4 + size
        yield "\n".join(lines)


def campaign(path: Path) -> Iterator[str]:
    """A scenario of Battle for Wesnoth: narration, and dialogue with its speakers."""
    speaker, parts = "", []
    for text in plain(path):
        for found in re.finditer(r'speaker=\s*"?([\w ]+)|(?:message|story|description)=\s*_\s*"((?:[^"]|"")*)"', text):
            if found[1]:
                speaker = found[1].strip()
            else:
                said = found[2].replace('""', '"').strip()
                parts.append(f"{speaker}: {said}" if speaker not in ("", "narrator") else said)
                speaker = ""
        yield "\n\n".join(re.sub(r"^[\w ]+\^", "", part) for part in parts)


def space_opera(path: Path) -> Iterator[str]:
    """Missions of Endless Sky: what is told and said, in the file's order, a text for each block at the margin."""
    for text in plain(path):
        for block in re.split(r"\n(?=\S)", text):
            yield "\n\n".join(re.findall(r"`([^`]*)`", block))
