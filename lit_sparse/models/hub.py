"""Sparse models by name: a folder, a release that lit_sparse ships, or a repository of a hub.

A repository is a sparse model folder (`sparse_folder`), whole, in shards or with adapters alone. It is sparse if it has
a sparse.json. What is downloaded goes to huggingface_hub's cache, all of one commit.
"""

from pathlib import Path

import torch
from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers import PreTrainedModel

from lit_sparse.attention import Backend
from lit_sparse.common.shipped import shipped, shipped_names
from lit_sparse.models.base import LOGGED_IN, SPARSE_FILE, HubAccess, may_be_on_hub
from lit_sparse.models.hub_errors import DOWNLOAD, HubError, NotReachedError, explaining
from lit_sparse.models.sparse_folder import load_sparse, missing_files

_FILES = ["*.json", "*.safetensors", "*.md", "*.jinja", "*.model", "*.txt", "*.py"]  # no pickles
_SECONDS = 10.0  # for the hub's first answer


def from_pretrained(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    dtype: torch.dtype = torch.float32,
    backend: Backend | str = Backend.AUTO,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A sparse model on the CPU, in evaluation mode. It generates like any model of transformers.

    Args:
        name: a sparse model folder (such as a run's `model/`), else a release that lit_sparse ships
            (`smollm2_2048`), else a repository of the hub (`user/model`).
        revision: of the repository: a branch, a tag or a commit.
        token: for a private repository; None is the one that `hf auth login` saved.
        cache_dir: the folder for downloads; None is huggingface_hub's own.
        local_files_only: take what was downloaded before, without asking the hub.
        dtype: of the weights; gates stay float32.
        backend: the attention operator (see `Backend`).
        trust_remote_code: let the base model run code that came with it.

    Raises:
        ValueError: no sparse model of this name, no access to it, a hub that does not answer, or files that are
            missing or do not fit each other. The message says what to do.
    """
    access = HubAccess(token, cache_dir, local_files_only)
    folder = _folder_of(str(name), revision, access)
    return load_sparse(folder, dtype=dtype, backend=backend, trust_remote_code=trust_remote_code, access=access)


def find_sparse(name: str) -> Path | None:
    """The folder of a sparse model by its name, as in `from_pretrained`, downloaded if need be; None if it is a dense
    model.

    Raises:
        ValueError: the hub has no such model, does not answer and nothing was downloaded before, or files are missing.
    """
    path = Path(name).expanduser()
    if folder := path if path.is_dir() else shipped("release", name):
        return folder if (folder / SPARSE_FILE).is_file() else None
    if not _may_be_sparse(name):
        return None
    try:
        return _from_hub(name, None, LOGGED_IN)
    except HubError:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):  # a dense model that was downloaded before
            return None
        raise


def _folder_of(name: str, revision: str | None, access: HubAccess) -> Path:
    path = Path(name).expanduser()
    if folder := path if path.is_dir() else shipped("release", name):
        if revision is not None:
            raise ValueError(f"revision={revision!r} belongs to a repository of the hub, and {name!r} is a folder")
        return folder
    if not _may_be_sparse(name):
        ours = [name for name in shipped_names("release") if find_sparse(name)]
        raise ValueError(
            f"there is no folder {name!r}; models of the hub are named user/model, and lit_sparse ships "
            f"{', '.join(ours)}"
        )
    folder = _from_hub(name, revision, access)
    if folder is None:
        raise ValueError(
            f"{name!r} is a dense model: its repository has no {SPARSE_FILE}. Load it with transformers, and give it "
            "gates with lit_sparse.sparsify(model)"
        )
    return folder


def _may_be_sparse(name: str) -> bool:
    return may_be_on_hub(name) and "/" in name  # names without a user are the hub's own, of old dense models


def _from_hub(name: str, revision: str | None, access: HubAccess) -> Path | None:
    """The folder of a repository in the cache, as the hub has it now or, if the hub cannot be asked, as it was
    downloaded before; None of a dense model."""
    try:
        files = _files_on_hub(name, revision, access)
    except NotReachedError:
        if (folder := _downloaded(name, revision, access)) is None:
            raise
    else:
        if SPARSE_FILE not in files:
            return None
        with explaining(DOWNLOAD, name, revision):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=_FILES, **access.options()))
    if missing := missing_files(folder):
        raise HubError(
            f"{name!r} is no whole sparse model: {', '.join(missing)} is missing in {folder}. If the hub has it, "
            f"download it again with `hf download {name} --force-download`; if not, ask the author to push it again"
        )
    return folder


def _files_on_hub(name: str, revision: str | None, access: HubAccess) -> set[str]:
    """Names of a repository's files, asked for once: `hf_hub_download` would ask six times in 23 seconds."""
    with explaining(DOWNLOAD, name, revision):
        if access.local_files_only:
            raise OfflineModeIsEnabled
        described = HfApi(token=access.token).model_info(name, revision=revision, timeout=_SECONDS)
        return {file.rfilename for file in described.siblings or ()}


def _downloaded(name: str, revision: str | None, access: HubAccess) -> Path | None:
    found = try_to_load_from_cache(name, SPARSE_FILE, cache_dir=access.cache_dir, revision=revision)
    return Path(found).parent if isinstance(found, str) else None
