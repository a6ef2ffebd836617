"""A tiny model and a tiny run that every test may use; no test reads or writes the user's cache."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

REPOSITORY = Path(__file__).parent.parent
CHARACTERS = "0123456789+= abcdefghijklmnopqrstuvwxyz."


@pytest.fixture(scope="session", autouse=True)
def _quiet_machine(tmp_path_factory):
    """A cache of the tests' own, and one thread: these models are too small for more."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_SPARSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        yield


@pytest.fixture(scope="session")
def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; the first twelve ids are those of the addition task."""
    vocabulary = {character: index for index, character in enumerate([*CHARACTERS, "<unk>", "<eos>"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory, character_tokenizer) -> Path:
    """A llama of 2 layers, 4 heads on 2 key heads, 32 positions, random weights large enough that attention matters."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    config = LlamaConfig(
        vocab_size=len(character_tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=character_tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    character_tokenizer.save_pretrained(folder)
    return folder


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with dotted keys replaced: {"trainer.max_steps": 3}."""
    result = copy.deepcopy(dict(base))
    for key, value in changes.items():
        *parents, last = key.split(".")
        inner = result
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    return result


@pytest.fixture(scope="session")
def write_config(llama_folder) -> Callable[..., Path]:
    """Writes the config of a run of 6 steps on 1-digit addition: 80 training pairs, 10 batches an epoch.

    `write_config(folder, name, changes)` takes dotted keys; the run goes to `folder / name`.
    """

    def write(folder: Path, name: str = "run", changes: Mapping[str, Any] | None = None) -> Path:
        config = {
            "run_dir": str(folder / name),
            "seed_everything": 0,
            "model": {
                "class_path": "lit_sparse.SparseAttentionModule",
                "init_args": {
                    "model": str(llama_folder),
                    "constraint": {"class_path": "lit_sparse.objective.KL", "init_args": {"tolerance": 0.05}},
                    "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
                    "gate_lr": 0.1,
                },
            },
            "data": {
                "class_path": "lit_sparse.data.AdditionData",
                "init_args": {"digits": 1, "batch_size": 8, "eval_batch_size": 16, "held_out": 0.2},
            },
            "trainer": {
                "accelerator": "cpu",
                "max_steps": 6,
                "max_epochs": -1,
                "val_check_interval": 3,
                "check_val_every_n_epoch": None,
                "gradient_clip_val": 1.0,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
                "enable_progress_bar": False,
                "log_every_n_steps": 1,
            },
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(merged(config, changes or {})))
        return path

    return write


@pytest.fixture
def make_config(tmp_path, write_config) -> Callable[..., Path]:
    """`write_config` into the test's own folder."""
    return lambda name="run", changes=None: write_config(tmp_path, name, changes)


@pytest.fixture(scope="session")
def text_files(tmp_path_factory) -> str:
    """A glob of 200 short documents in letters that the tiny tokenizer knows."""
    folder = tmp_path_factory.mktemp("text")
    words = [
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "mat",
        "and",
        "then",
        "it",
        "ran",
        "off",
        "to",
        "see",
        "who",
        "had",
        "come",
        "in",
    ]
    documents = (" ".join(words[(i * k + k * k) % len(words)] for k in range(1, 9)) for i in range(200))
    lines = (json.dumps({"text": f"{text} {i}."}) for i, text in enumerate(documents))
    (folder / "documents.jsonl").write_text("\n".join(lines))
    return str(folder / "*.jsonl")


@pytest.fixture
def start_python() -> Callable[..., "subprocess.Popen[str]"]:
    """Starts `python ...` in the repository with one thread; the caller waits for it."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, **environment: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            stream.close()
