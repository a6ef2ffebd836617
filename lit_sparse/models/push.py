"""Uploads of sparse model folders to a hub. All files arrive in one commit, so nobody can download half a model."""

import tempfile
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoUrl
from torch import nn
from transformers import PreTrainedTokenizerBase

from lit_sparse.models.adapters import ADAPTERS_FILES
from lit_sparse.models.base import BASE_CONFIG_FILE, VARIANT
from lit_sparse.models.card import base_on_hub, card_for_hub, model_card
from lit_sparse.models.hub_errors import PUSH, explaining
from lit_sparse.models.sparse_folder import describe, missing_files, save_sparse, weights_of

_BESIDE = ["*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt", "*.py"]  # what belongs to a model beside weights
_FORMS = [f"model.{VARIANT}*", f"model.safetensors.index.{VARIANT}.json", BASE_CONFIG_FILE, *ADAPTERS_FILES]
"""Files of which another push may have written others: whole, in shards or adapters."""


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    license: str | None = None,
) -> str:
    """Pushes a sparse model folder (such as a run's `model/`, in shards or not), with its card, and returns its
    address. A repository that does not exist is created. Files that an earlier push wrote in another form are deleted.

    Args:
        repo_id: `user/model`, or `model` for the user of the token.
        private: of a repository that is created; None is what the user's or organisation's settings say.
        token: with the right to write; None is the one that `hf auth login` saved.
        revision: a branch, which is created if need be; None is the main one.
        message: of the commit.
        license: for the card, in the hub's words (`apache-2.0`); None is what the folder's README says, or the base
            model's where that is known.

    Raises:
        ValueError: not a whole sparse model folder, adapters whose base nobody else can load, no right to write there,
            or a hub that does not answer. Nothing is visible on the hub then.
    """
    folder = Path(folder).expanduser()
    description = describe(folder)
    if missing := missing_files(folder):
        raise ValueError(f"{folder} is no whole sparse model: {', '.join(missing)} is missing; write it again")
    measured: Mapping[str, Any] = description["measured"]
    if (folder / ADAPTERS_FILES[0]).is_file() and base_on_hub(measured.get("model")) is None:
        raise ValueError(
            f"the adapters in {folder} belong to {measured.get('model')!r}, which is on this computer only: write a "
            "folder with all weights first (`lit-sparse export` from the run's checkpoint) and push that"
        )
    repository = _open(repo_id, private, token, revision)
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else model_card(measured, description["gate"])
    names = {*weights_of(folder), *(path.name for path in folder.iterdir() if _belongs(path))}
    with explaining(PUSH, repo_id, revision):
        api, repo_id = HfApi(token=token), repository.repo_id
        there = api.list_repo_files(repo_id, revision=revision)
        stale = [name for name in there if name not in names and any(fnmatch(name, form) for form in _FORMS)]
        card = card_for_hub(text, repo_id, measured, license, _license_of(base_on_hub(measured.get("model")), api))
        api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, folder / name) for name in sorted(names)),
                CommitOperationAdd("README.md", card.encode()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=message or "Sparse model of lit_sparse",
            revision=revision,
        )
    return f"{repository}/tree/{revision}" if revision else str(repository)


def _open(repo_id: str, private: bool | None, token: str | bool | None, revision: str | None) -> RepoUrl:
    """The repository and its branch, created if need be: what a user may not do ends here, before work starts."""
    with explaining(PUSH, repo_id, revision):
        api = HfApi(token=token)
        repository = api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository.repo_id, branch=revision, exist_ok=True)
        return repository


def _license_of(base: str | None, api: HfApi) -> str | None:
    """The licence that a base model's card names; None where there is no card that can be read."""
    try:
        card = api.model_info(base).card_data if base else None
    except Exception:  # no such model, no access, no answer: the card is written without
        return None
    return card.license if card else None


def push_sparse(
    model: nn.Module,
    repo_id: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    license: str | None = None,
    **options: Any,
) -> str:
    """The `push_to_hub` of a sparsified model: `push` of what its `save_pretrained` writes.

    Args:
        tokenizer: pushed too, for those who load the model by name.
        options: of `save_pretrained`, such as `max_shard_size`.

    Raises:
        ValueError: as `push`.
    """
    _open(repo_id, private, token, revision)
    with tempfile.TemporaryDirectory(prefix="lit_sparse-push-") as folder:
        save_sparse(model, folder, **options)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        return push(
            folder, repo_id, private=private, token=token, revision=revision, message=commit_message, license=license
        )


def _belongs(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and any(fnmatch(path.name, form) for form in _BESIDE)
