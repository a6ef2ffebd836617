"""Prompts of a command, read from a file, and split into the same tokens by all models that are compared."""

from collections.abc import Sequence
from pathlib import Path

from lit_sparse.models.compared import Candidate
from lit_sparse.tracing.flow import encode


def chosen_prompts(prompt: str | None, file: str | None) -> list[str]:
    """The prompt of --prompt, or the prompts in the file of --prompts. A command takes one of the two.

    Raises:
        ValueError: neither or both are given; or see `prompt_lines`.
    """
    if (prompt is None) == (file is None):
        raise ValueError("give either --prompt TEXT or --prompts FILE")
    return [prompt] if prompt is not None else prompt_lines(Path(str(file)))


def prompt_lines(path: Path) -> list[str]:
    """Prompts of a file, one per line, without empty lines.

    Raises:
        ValueError: the file does not exist, or holds no prompt.
    """
    if not path.is_file():
        raise ValueError(f"no file of prompts at {path}")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} holds no prompt: write one per line")
    return lines


def shared_tokens(prompt: str, answer: str | None, candidates: Sequence[Candidate]) -> list[int]:
    """Token ids of the prompt, the same for all models.

    Raises:
        ValueError: see `encode`; or the models split the prompt into different tokens, or it is too long for one.
    """
    found = [encode(candidate.tokenizer, prompt, answer) for candidate in candidates]
    if any(one != found[0] for one in found):
        names = " and ".join(candidate.name for candidate in candidates)
        raise ValueError(f"{names} split the prompt into different tokens, so they cannot be compared on it")
    size, room = len(found[0][0]), min(candidate.positions for candidate in candidates)
    if size > room:
        raise ValueError(f"the prompt has {size} tokens; the model reads {room:g} at most")
    return found[0][0]
