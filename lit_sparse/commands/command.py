"""A command as the command line knows it before anything heavy is imported."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Protocol

from jsonargparse import Namespace

from lit_sparse.commands.parser import CommandParser

PROGRAM = "lit-sparse"


class Command(Protocol):
    """Something that the command line runs by name.

    Attributes:
        name: what is typed.
        summary: one line for the list of all commands.
    """

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    def call(self, args: Sequence[str]) -> None:
        """Runs it. With --help among the arguments it prints its options and exits."""


@dataclass(frozen=True)
class OptionsCommand:
    """A command with options of its own.

    Args:
        description: a sentence or two below the summary in its help.
        example: a call of it.
        add_options: adds its options to a parser.
        run: `module:function`, imported once the options are right and called with them.
        check: raises ValueError for what can be told wrong without any library.
        shortcuts: options that stand for defaults of others: {"quick": {"seeds": 1}}.
    """

    name: str
    summary: str
    description: str
    example: str
    add_options: Callable[[CommandParser], None]
    run: str
    check: Callable[[Namespace], None] = lambda parsed: None
    shortcuts: dict[str, dict[str, object]] = field(default_factory=dict)

    def call(self, args: Sequence[str]) -> None:
        parsed = self.parse(args)
        module, function = self.run.split(":")
        getattr(import_module(module), function)(parsed)

    def parse(self, args: Sequence[str]) -> Namespace:
        """The options, checked as far as that needs no library.

        Raises:
            ValueError: see `check`.
            SystemExit: an unknown or missing option, or a value of another type.
        """
        parser = self.parser()
        parsed: Namespace = parser.parse_args(list(args))
        for option, defaults in self.shortcuts.items():
            if parsed[option]:  # what is given explicitly wins over these
                parser.set_defaults(defaults)
                parsed = parser.parse_args(list(args))
        self.check(parsed)
        return parsed

    def parser(self) -> CommandParser:
        parser = CommandParser(prog=f"{PROGRAM} {self.name}", description=f"{self.summary}\n\n{self.description}")
        parser.example = self.example
        self.add_options(parser)
        return parser
