"""A tiny model and a tiny run that every test may use; no test reads or writes the user's cache."""

import base64
import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import tests.shapes  # noqa: F401 - before anything of lit_sparse
from tests.tiny import tiny_llama

REPOSITORY = Path(__file__).parent.parent
CHARACTERS = "0123456789+= abcdefghijklmnopqrstuvwxyz."
ONE_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
"""A PNG."""


@pytest.fixture(scope="session", autouse=True)
def _quiet_machine(tmp_path_factory):
    """A cache of the tests' own, and one thread: these models are too small for more."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_SPARSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        yield


@pytest.fixture(scope="module")
def unpainted() -> Iterator[None]:
    """Figures of reports are made but not painted, which is most of what a run of a few steps takes.

    For tests that look at something else; those of fit, trainer and reports paint theirs.
    """
    from lit_sparse.report.shared import style

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "png", lambda figure, dpi=0: base64.b64decode(ONE_PIXEL))
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
    sizes = {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 32, "initializer_range": 0.4}
    ids = {"bos_token_id": None, "eos_token_id": character_tokenizer.eos_token_id}
    with torch.random.fork_rng():
        tiny_llama(vocab_size=len(character_tokenizer), **sizes, **ids).save_pretrained(folder)
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
                    "objective": {
                        "constraint": {"class_path": "lit_sparse.objective.KL", "init_args": {"tolerance": 0.05}}
                    },
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


# Every spelling of "small" that a family may use; a configuration ignores the others'.
_SMALL = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 64, "head_dim": 8, "n_embd": 32, "n_layer": 2, "n_head": 4,
    "n_positions": 64, "ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_WINDOW = {"sliding_window": 3}
_ALTERNATING = _WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
_OWN: dict[str, dict[str, object]] = {
    "mistral": _WINDOW,
    "mixtral": _WINDOW | {"num_local_experts": 4},
    "phi3": _WINDOW,
    "qwen2": _ALTERNATING | {"use_sliding_window": True},
    "qwen3": _ALTERNATING | {"use_sliding_window": True},
    "gemma2": _ALTERNATING,
    "gemma3_text": _ALTERNATING,
    "phi": {"partial_rotary_factor": 0.5},
    # Multi-head latent attention: keys of 8 + 4 dimensions, values of 6.
    "deepseek_v3": {
        "head_dim": 4, "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4, "v_head_dim": 6, "moe_intermediate_size": 16, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    },
}  # fmt: skip


def _make_model(family: str, seed: int = 0, **keys: object) -> PreTrainedModel:
    torch.manual_seed(seed)
    keys = {name: key for name, key in (_SMALL | _OWN.get(family, {}) | keys).items() if key is not None}
    config = AutoConfig.for_model(family, **keys)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)  # the usual 0.02 leaves attention uniform and the logits deaf to it
    return model


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    """make_model(family, seed=0, **config keys) -> a random model of 2 layers and 4 heads in evaluation mode."""
    return _make_model


@pytest.fixture
def tokens() -> Callable[..., Tensor]:
    """tokens(batch, length, seed=0) -> ids without the special ones."""

    def draw(batch: int, length: int, seed: int = 0) -> Tensor:
        return torch.randint(3, 64, (batch, length), generator=torch.Generator().manual_seed(seed))

    return draw
