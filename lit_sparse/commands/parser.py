"""Parsers of the command line: a mistake ends in one line with the key, the value and what was probably meant.

jsonargparse reports mistakes as a tree of every type that it tried, behind the usage of a hundred keys;
`LIT_SPARSE_TRACEBACK=1` still shows that text.
"""

import importlib
import inspect
import os
import re
import sys
from argparse import SUPPRESS
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, NoReturn, get_args, get_origin

from jsonargparse import ArgumentParser

from lit_sparse.commands.layout import block, screen

_KEY = re.compile(r'Parser key "(.+?)":\s*')
_CLASS = re.compile(r"Problem with given class_path '(.+?)':")
_UNKNOWN = re.compile(r"(?:(Subcommand|Group) '(.+?)' does not accept option|Option) '(.+?)'")
_EXPECTED = re.compile(r"Expected an? (<class .+?|typing.+?)(?:\. Got value: .*)?$")
_ABSTRACT = re.compile(r"Expected an instantiatable class, but (.+) is abstract")
_FRAME = (
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "Given value type:",
    "Subclass types",
    "a class path",
    "a dict",
)
_LONGEST = 200


class CommandParser(ArgumentParser):
    """A parser that takes no abbreviated options and whose errors are short."""

    more_help = ""
    example = ""
    """A call of the command. With one, its help is set as a screen instead of jsonargparse's list."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:  # type: ignore[override]
        """To the parser of a class inside a class jsonargparse hands a null on as the text None."""
        if not self.exit_on_error and args is not None:
            args = [f"{one.removesuffix('None')}null" if one.endswith("=None") else one for one in args]
        return super().parse_args(args, *rest, **options)

    def format_help(self, *args: Any, **options: Any) -> str:
        """The summary, an example, and the options in their groups with their defaults."""
        if not self.example:
            return str(super().format_help(*args, **options))
        groups = []
        for group in self._action_groups:
            told = [action for action in group._group_actions if action.help != SUPPRESS and action.dest != "help"]
            groups.append(block(group.title or "", [_row(action) for action in told]))
        return screen(self.prog, str(self.description), self.example, groups)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exits with status 2; the parsers that jsonargparse makes for nested classes raise instead."""
        if not self.exit_on_error or os.environ.get("LIT_SPARSE_TRACEBACK"):
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        known = [action.dest for action in parser._actions if not action.dest.endswith("help")]
        prog = parser.prog.replace(" [options]", "")
        refuse(short(message, known), f"`{prog} --help` lists the options{self.more_help}")


class _Part(NamedTuple):
    """A step from the outermost key to the one that is wrong."""

    indent: int
    key: str
    of_class: str | None = None


def refuse(mistake: str, hint: str) -> NoReturn:
    """Ends the command with status 2, for a mistake in its options."""
    print(f"error: {mistake}\n({hint})", file=sys.stderr)
    sys.exit(2)


def _row(action: Any) -> tuple[str, str]:
    """An option and its help, for `block`: what it takes is told by its default, or by a word in capitals."""
    name, default, help = action.option_strings[-1], action.default, str(action.help).replace("%%", "%")
    choices = get_args(action._typehint) if get_origin(getattr(action, "_typehint", None)) is Literal else ()
    if action.nargs == 0:
        return name, help
    if choices:
        return f"{name} {default}", f"{help} ({', '.join(str(choice) for choice in choices)})"
    takes = action.dest.upper() if default is None or default == [] else default
    return f"{name} {takes}", f"{help} (required)" if action.required else help


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the one that was probably meant, if there is one."""
    found = get_close_matches(word, known, 1)
    return f": did you mean {found[0]}?" if found else "."


def short(message: str, known: Sequence[str]) -> str:
    """One line of what jsonargparse says, for a parser with the keys `known`."""
    words = message.split()
    if message.startswith("unrecognized arguments: "):
        if not words[2].startswith("-"):
            return f"unexpected argument {words[2]!r}: an option is written --key value"
        return unknown_key(words[2].lstrip("-").split("=")[0], known)
    if message.startswith("the following arguments are required: "):
        keys = [f"--{re.sub('^(fit|validate|test)[.]', '', key)}" for key in message.partition(": ")[2].split(", ")]
        config = " (a config brings them: add --config FILE)" if "--model" in keys and "--data" in keys else ""
        return f"missing {', '.join(keys)}{config}"
    if message.startswith("Problems parsing config"):  # YAML's words, with the line
        return _cut(" ".join(words))
    path, texts, value = _innermost(message)
    key = _dotted(path)
    first = texts[0]
    of_class = (path[-1].of_class if path else None) or _class_in(first)
    for text in texts:
        if match := _UNKNOWN.search(text):
            if not key:
                return unknown_key(f"{match[2]}.{match[3]}" if match[1] == "Group" else match[3], known)
            start = f"{key}." if _is_plain(of_class) else f"{key}.init_args."
            return unknown_key(start + match[3], [start + name for name in _arguments(of_class)])
    if of_class and "No module named" in first:
        problem = f"cannot import {of_class}: {first[first.index('No module named') :].partition('. Got value')[0]}"
    elif of_class and "has no attribute" in first:
        problem = f"no class {of_class}{nearest(of_class, _members(of_class.rpartition('.')[0]))}"
    elif _EXPECTED.match(first):
        types = [_readable(match[1]) for text in texts if (match := _EXPECTED.match(text))]
        given = value or first.partition("Got value: ")[2]
        problem = f"got {_cut(given)}, expected {' or '.join(dict.fromkeys(types))}"
    elif match := _ABSTRACT.match(first):
        problem = f"class_path is missing: one of {', '.join(_kinds(_class(match[1])))}"
    elif first.startswith("Not a valid subclass"):
        problem = f"{first}, which is written as class_path and init_args; got {_cut(value or '')}"
    else:
        is_short = value is not None and not value.startswith(("{", "[", "Namespace"))
        problem = f"{first}; got {_cut(str(value))}" if is_short else first
    return f"{key}: {problem}" if key else problem


def _innermost(message: str) -> tuple[list[_Part], list[str], str | None]:
    """The path to the deepest complaint, the complaints there, and the value that it is about."""
    path: list[_Part] = []
    leaves: list[tuple[list[_Part], str]] = []
    values: list[tuple[list[_Part], str]] = []
    for line in message.splitlines():
        text = line.lstrip().removeprefix("- ")
        indent = len(line) - len(text)
        path = [part for part in path if part.indent < indent]
        if match := _KEY.match(text):
            path = [*path, _Part(indent, match[1])]
            text = text[match.end() :]
        if match := _CLASS.match(text):
            last = path[-1] if path else _Part(indent, "")
            path = [*path[:-1], last._replace(of_class=match[1])]
            text = text[match.end() :].strip()
        if text.startswith("Given value: "):
            values.append((path, text.removeprefix("Given value: ")))
        elif text and not text.startswith(_FRAME):
            leaves.append((path, text))
    deepest = max(
        (path for path, _ in leaves), key=lambda path: (len(path), bool(path and path[-1].of_class)), default=[]
    )
    texts = [text for path, text in leaves if path == deepest] or [message]
    texts.sort(key=lambda text: "<class 'NoneType'>" in text)  # what may be left out explains least
    value = next((value for path, value in values if len(path) == len(deepest)), None)
    return deepest, texts, value


def _dotted(path: Sequence[_Part]) -> str:
    key = ""
    for part, of_class in zip(path, [None, *(part.of_class for part in path)], strict=False):
        key += ("." if _is_plain(of_class) else ".init_args.") * bool(key) + part.key
    return key


def _is_plain(of_class: str | None) -> bool:
    """True for a class that is written without class_path and init_args: a dataclass, or one without subclasses."""
    found = _class(of_class) if of_class else None
    bases = getattr(found, "__mro__", (None, object))[:-1] if of_class else ()
    return getattr(found, "__final__", False) or all(is_dataclass(base) for base in bases)


def _class(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return None


def _class_in(text: str) -> str | None:
    """Class path in a complaint that quotes the value of a callable, such as an optimizer."""
    match = re.search(r"class_path='(.+?)'", text)
    return match[1] if match else None


def _arguments(of_class: str | None) -> set[str]:
    """A class's own arguments and those that it hands on to its parents."""
    classes = getattr(_class(of_class or ""), "__mro__", ())
    return {name for one in classes for name in inspect.signature(one.__init__).parameters} - {"self", "args", "kwargs"}


def _kinds(abstract: Any) -> list[str]:
    """The names of the classes that can be made of an abstract one; jsonargparse takes names without modules too."""
    below = [kind for one in abstract.__subclasses__() for kind in (one.__name__, *_kinds(one))]
    return sorted({*below})


def _members(module: str) -> list[str]:
    try:
        found = importlib.import_module(module)
    except ImportError:
        return []
    return [f"{module}.{name}" for name in getattr(found, "__all__", dir(found)) if name[0].isupper()]


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The complaint about a key that nothing takes, with the one that was probably meant."""
    parent, _, name = key.rpartition(".")
    start = f"{parent}." * bool(parent)
    siblings = sorted({one.removeprefix(start) for one in known if one.startswith(start)})
    if siblings:
        found = get_close_matches(name, siblings, 1)
        return f"unknown key {key}" + (
            f": did you mean {start}{found[0]}?" if found else _cut(f"; there are {', '.join(siblings)}")
        )
    rest = key.partition(".")[2]
    return f"unknown key {key}" + nearest(key, sorted({f"{one.partition('.')[0]}.{rest}" for one in known}))


def _readable(type_name: str) -> str:
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", type_name)
    return re.sub(r"typing\.Literal\[(.+)\]", r"one of \1", name).replace("NoneType", "null")


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
