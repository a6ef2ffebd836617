"""Commands of a whole run, whose options are those of Lightning's trainer, of a module and of a data module."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from lit_sparse.commands.layout import block, screen
from lit_sparse.commands.parser import nearest, refuse, unknown_key
from lit_sparse.common.shipped import shipped, shipped_names

EVERY_KEY = "--help_all"
CONFIG = "--config"
_OWN = ("run_dir", "on_existing", "prerequisite", "seed_everything", "model", "data", "trainer", "ckpt_path")
_COMMON = ("config", "help", "print_config", "verbose", "weights_only")


class Knob(NamedTuple):
    """An option with its default and its help, for a first page of help."""

    key: str
    default: str
    help: str


@dataclass(frozen=True)
class RunCommand:
    """A command that parses a run's config.

    Args:
        knobs: the options that matter first, by heading; --help_all prints all of them.
        more: further top-level options.
        run: `module:function`, called with the arguments.
    """

    name: str
    summary: str
    description: str
    example: str
    knobs: Mapping[str, Sequence[Knob]]
    run: str
    more: Sequence[str] = ()

    def call(self, args: Sequence[str]) -> None:
        """Runs it.

        Raises:
            ValueError: a config that does not exist.
        """
        if any(arg in ("-h", "--help") for arg in args):
            print(self.help(), end="")
            raise SystemExit(0)
        args = ["--help" if arg == EVERY_KEY else arg for arg in _with_shipped(args)]
        self.check(args)
        module, function = self.run.split(":")
        getattr(import_module(module), function)([self.name, *args])

    def help(self) -> str:
        blocks = [
            block(heading, [(f"--{knob.key} {knob.default}", knob.help) for knob in knobs])
            for heading, knobs in self.knobs.items()
        ]
        end = (
            "Options come after the config, whose keys they replace. "
            f"All of them: {EVERY_KEY} (trainer and run), --model.help SparseAttentionModule, --data.help TextData, "
            "--model SparseAttentionModule --model.gate.help Contribution."
        )
        return screen(f"lit-sparse {self.name}", f"{self.summary}\n\n{self.description}", self.example, blocks, end)

    def check(self, args: Sequence[str]) -> None:
        """Refuses options that nothing takes, as far as that can be told without importing a library."""
        known = [*_OWN, *_COMMON, *self.more]
        trainer = [f"trainer.{name}" for name in _trainer_arguments()]
        for arg in args:
            if not arg.startswith("--"):
                continue
            key, _, _ = arg[2:].partition("=")
            first, _, rest = key.partition(".")
            of_trainer = f"trainer.{rest.split('.')[0].rstrip('+')}"
            if first not in known or (first == "trainer" and rest and of_trainer not in trainer):
                refuse(unknown_key(key, [*known, *trainer]), f"`lit-sparse {self.name} --help` lists the options")


def config_file(name: str) -> str:
    """The path of a config: itself where it exists, else that of the shipped config of this name.

    Raises:
        ValueError: there is neither.
    """
    if Path(name).is_file():
        return name
    inside = name.removeprefix("configs/")
    if (found := shipped("configs", inside)) is not None:
        return str(found)
    close = nearest(inside.removesuffix(".yaml"), [one.removesuffix(".yaml") for one in shipped_names("configs")])
    raise ValueError(f"no config file {name}, and no shipped one of that name{close} `lit-sparse configs` lists them")


def _with_shipped(args: Sequence[str]) -> list[str]:
    """The arguments, with the names of shipped configs replaced by their paths."""
    replaced = list(args)
    for index, arg in enumerate(replaced):
        if arg == CONFIG and index + 1 < len(replaced):
            replaced[index + 1] = config_file(replaced[index + 1])
        elif arg.startswith(f"{CONFIG}="):
            replaced[index] = f"{CONFIG}={config_file(arg.removeprefix(f'{CONFIG}='))}"
    return replaced


@cache
def _trainer_arguments() -> list[str]:
    """Names of the arguments of Lightning's Trainer, read from its source: an import takes seconds."""
    spec = find_spec("lightning")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).parent / "pytorch" / "trainer" / "trainer.py"
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name == "Trainer":
            init = next(one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__")
            return [argument.arg for argument in init.args.kwonlyargs]
    return []
