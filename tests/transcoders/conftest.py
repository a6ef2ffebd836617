"""A small transcoder with random weights of a usual size, and the config of a small run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_sparse.transcoders import Transcoder, TranscoderConfig

RUN = {
    "class_path": "lit_sparse.transcoders.TranscoderModule",
    "init_args": {
        "transcoder": {"features": 16, "k": 4},
        "dead_after": 300,
        "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-2}},
    },
}


@pytest.fixture
def make_transcoder() -> Callable[..., Transcoder]:
    """make_transcoder(seed=0, **config keys) -> 4 layers of 12 features, 8 wide."""

    def make(seed: int = 0, **keys: Any) -> Transcoder:
        torch.manual_seed(seed)
        transcoder = Transcoder(TranscoderConfig(**{"features": 12, "k": 3, **keys}), layers=4, width=8)
        with torch.no_grad():
            for parameter in transcoder.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.5)
            if transcoder.threshold is not None:
                transcoder.threshold.abs_()
        return transcoder

    return make


@pytest.fixture(scope="session")
def write_transcoder_config(write_config, llama_folder) -> Callable[..., Path]:
    """The config of a run of 6 steps on 1-digit addition, as `write_config`."""

    def write(folder: Path, name: str = "run", changes: dict[str, Any] | None = None) -> Path:
        model = {**RUN, "init_args": {**RUN["init_args"], "model": str(llama_folder)}}
        return write_config(folder, name, {"model": model, **(changes or {})})

    return write


@pytest.fixture
def transcoder_config(tmp_path, write_transcoder_config) -> Callable[..., Path]:
    """`write_transcoder_config` into the test's own folder."""
    return lambda name="run", changes=None: write_transcoder_config(tmp_path, name, changes)
