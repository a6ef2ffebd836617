"""Help comes at once, fits a screen, and says what is true."""

import json
import re
from inspect import signature

import pytest

from lit_sparse.attribution.prompt import prompt_graph
from lit_sparse.circuits.tasks import TASKS
from lit_sparse.commands.fit import SparseCLI
from lit_sparse.commands.info import InfoCLI
from lit_sparse.commands.main import main, named, overview
from lit_sparse.commands.options import circuits, evaluate, graph, runs, trace
from lit_sparse.commands.run_command import RunCommand, _trainer_arguments, config_file
from lit_sparse.common.shipped import shipped_names
from lit_sparse.downstream.harness import SHIPPED
from lit_sparse.tracing.flow import KEEP

HEAVY = ("torch", "transformers", "lightning", "numpy", "matplotlib", "pydantic", "datasets", "peft")

IMPORTED = """
import json, sys
from lit_sparse.commands.main import main
try:
    main(sys.argv[1:])
except SystemExit as exit:
    print(json.dumps([exit.code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


@pytest.fixture(autouse=True)
def columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def printed_by(capsys, *arguments):
    with pytest.raises(SystemExit) as exit:
        main([*arguments])
    assert exit.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", named())
def test_help_fits_a_screen_and_has_an_example(name, capsys):
    lines = printed_by(capsys, name, "--help").splitlines()
    command = named()[name]
    assert lines[0].startswith(f"lit-sparse {name}: ")
    assert f"  {command.example}" in lines
    assert len(lines) <= 50
    assert all(len(line) <= 80 for line in lines if line.strip() != command.example)
    assert not [line for line in lines if "==SUPPRESS==" in line or "NoneType" in line]


def test_the_overview_has_every_command_with_a_line(capsys):
    text = printed_by(capsys, "--help")
    assert text.rstrip("\n") == overview()
    for name, command in named().items():
        assert re.search(rf"^  {name} +{re.escape(command.summary.split()[0])}", text, re.M)
    assert len(text.splitlines()) <= 35


@pytest.mark.parametrize("arguments", [["--help"], ["tarce"], *([name, "--help"] for name in named())], ids=" ".join)
def test_help_and_mistakes_import_nothing_heavy(arguments, start_python):
    output, errors = start_python("-c", IMPORTED, *arguments).communicate(timeout=60)
    code, modules = json.loads(output.splitlines()[-1])
    assert code == (2 if "tarce" in arguments else 0), errors
    assert not set(HEAVY) & set(modules)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "--config", "quikstart"], "no config file quikstart, and no shipped one of that name: did you mean"),
        (["fit", "--config", "quickstart", "--trainer.max_stepz", "3"], "did you mean trainer.max_steps?"),
        (["fit", "--config", "quickstart", "--run_dirr=x"], "unknown key run_dirr: did you mean run_dir?"),
        (["trace", "--model", "smollm2_2048"], "give either --prompt TEXT or --prompts FILE"),
        (["trace", "--model", "./runs/nothing", "--prompt", "a"], "there is no folder ./runs/nothing"),
        (["circuits", "--model", "smollm2_2048", "--prompt", ""], "--prompt is empty"),
        (["evaluate", "--model", "smollm2_2048"], "nothing to measure"),
        (["push", "--model", ".", "--to", "a/b/c"], "--to is USER/NAME or NAME, got a/b/c"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_needs_no_library_is_refused_without_one(arguments, words, start_python):
    output, errors = start_python("-c", IMPORTED, *arguments).communicate(timeout=60)
    code, modules = json.loads(output.splitlines()[-1])
    assert code == 2 and words in " ".join(errors.split())
    assert not set(HEAVY) & set(modules)


def test_names_and_defaults_of_the_options_are_those_of_the_library():
    assert tuple(TASKS) == circuits.TASK_NAMES
    assert evaluate.SHIPPED_TASKS == SHIPPED
    parsed = graph.COMMAND.parse(["--model", "gpt2", "--transcoders", "t", "--prompt", "a", "--out", "b"])
    for name in ("node_share", "edge_share", "explained_heads"):
        assert parsed[name] == signature(prompt_graph).parameters[name].default
    assert trace.COMMAND.parse(["--model", "gpt2", "--prompt", "a"]).keep == KEEP


@pytest.mark.parametrize("command", [runs.FIT, runs.VALIDATE, runs.TEST, runs.INFO], ids=lambda command: command.name)
def test_first_knobs_are_options_with_these_defaults(command: RunCommand, capsys):
    """Where a default is a word in capitals or an example in quotes, the option must only exist."""
    cli = InfoCLI if command is runs.INFO else SparseCLI
    parser = _parser_of(cli, command.name)
    for knob in (knob for knobs in command.knobs.values() for knob in knobs):
        if knob.key.startswith(("model.", "data.")) or knob.key in ("config", "ckpt_path"):
            continue
        default = parser.get_defaults()[knob.key]
        assert knob.default == ("null" if default is None else str(default)), knob


def test_knobs_of_model_and_data_are_those_of_the_quickstart(capsys):
    keys = [knob for knobs in runs.FIT.knobs.values() for knob in knobs if knob.key.startswith(("model.", "data."))]
    options = [word for knob in keys for word in (f"--{knob.key}", knob.default.strip("'"))]
    with pytest.raises(SystemExit) as exit:
        main(["fit", "--config", "quickstart", *options, "--print_config"])
    assert exit.value.code == 0, capsys.readouterr().err


def test_trainer_options_are_those_of_the_trainer():
    from lightning.pytorch import Trainer

    assert set(_trainer_arguments()) == set(signature(Trainer.__init__).parameters) - {"self"}


def test_shipped_configs_are_listed_and_printed(capsys):
    main(["configs"])
    listed = capsys.readouterr().out
    names = [name.removesuffix(".yaml") for name in shipped_names("configs")]
    assert "quickstart" in names and "paper/olmo-7b" in names
    for name in names:
        assert re.search(rf"^  {name} ", listed, re.M)
    main(["configs", "--show", "quickstart"])
    with open(config_file("configs/quickstart.yaml"), encoding="utf-8") as file:
        assert capsys.readouterr().out == file.read()


def _parser_of(cli, name):
    """The parser that a command of LightningCLI makes, caught before anything is parsed."""

    class Caught(Exception):
        pass

    class Catching(cli):
        def parse_arguments(self, parser, args):
            self.caught = parser
            raise Caught(parser)

    with pytest.raises(Caught) as caught:
        Catching([name] if cli is SparseCLI else [])
    parser = caught.value.args[0]
    return parser._subcommands_action._name_parser_map[name] if cli is SparseCLI else parser
