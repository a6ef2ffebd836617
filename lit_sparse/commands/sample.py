"""The command sample: text that a base model writes itself, to train on.

Where the base's own training text cannot be had, its samples are text of that kind, for any model, offline.
The file is a source for `TextData` like any other. An interrupted command goes on where it was when called again.
"""

import hashlib
import json
import os
from pathlib import Path

import torch
from jsonargparse import Namespace
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from lit_sparse.common.files import check_writable
from lit_sparse.common.progress import progress_bar
from lit_sparse.models.base import load_model, load_tokenizer


def sample_command(options: Namespace) -> None:
    """Writes the file.

    Raises:
        ValueError: no such model, a number that makes no sense, a start that is no token, or a file that exists.
    """
    out = Path(options.out)
    check_writable(out.parent)
    dtype = getattr(torch, options.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"--dtype {options.dtype} is no float type of torch: use bfloat16 or float32")
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(options.model)
    start = start_token(tokenizer, options.start)
    batches = -(-options.tokens // (options.length * options.batch_size))
    part = _part(out, options, start)
    done = whole_batches(part, options.batch_size)
    if done < batches:
        model = load_model(options.model, dtype=dtype, trust_remote_code=options.trust_remote_code)
        model.to(device)
        if device == "cpu":
            model.set_attn_implementation("eager")  # one query a step: torch's fused attention takes 1.6 times as long
        with progress_bar("writing") as advance:
            advance(done, batches)
            for batch in range(done, batches):
                torch.manual_seed(options.seed + batch)
                documents = sample(model, start, options.batch_size, options.length, options.top_k)
                part.parent.mkdir(parents=True, exist_ok=True)
                with part.open("a", encoding="utf-8") as file:
                    file.write("".join(json.dumps({"text": tokenizer.decode(one)}) + "\n" for one in documents))
                advance(batch + 1, batches)
    os.replace(part, out)
    print(f"{batches * options.batch_size:,} documents of {options.length} tokens in {out}")


def start_token(tokenizer: PreTrainedTokenizerBase, start: str | None) -> int:
    """The token that documents start from and that is not part of them.

    Raises:
        ValueError: the text is not one token, or the tokenizer has neither bos nor eos.
    """
    if start is not None:
        ids = tokenizer.encode(start, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(f"--start {start!r} is {len(ids)} tokens: name one, such as {tokenizer.eos_token!r}")
        return int(ids[0])
    token = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if token is None:
        raise ValueError("the tokenizer has neither a bos nor an eos token: name a token with --start")
    return int(token)


def _part(out: Path, options: Namespace, start: int) -> Path:
    """The unfinished file beside `out`, of this command's settings alone: others never go on with it."""
    names = ("model", "length", "batch_size", "top_k", "dtype", "seed")
    settings = json.dumps([start, *(options[name] for name in names)])
    return out.with_name(f"{out.name}.{hashlib.sha256(settings.encode()).hexdigest()[:8]}.part")


def whole_batches(part: Path, batch_size: int) -> int:
    """Whole batches in an unfinished file, which is cut back to them."""
    if not part.exists():
        return 0
    lines = part.read_bytes().splitlines(keepends=True)
    whole = sum(line.endswith(b"\n") for line in lines) // batch_size
    os.truncate(part, sum(map(len, lines[: whole * batch_size])))
    return whole


@torch.inference_mode()
def sample(model: PreTrainedModel, start: int, count: int, length: int, top_k: int) -> list[list[int]]:
    """Documents (count of them) of `length` tokens, drawn with torch's global generator. An end of sequence inside one
    does not stop it, as in packed training text."""
    cache, ids, drawn = DynamicCache(config=model.config), torch.full((count, 1), start, device=model.device), []
    for _ in range(length):
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1].float()
        likeliest = logits.topk(min(top_k, logits.shape[-1]))
        ids = likeliest.indices.gather(1, torch.multinomial(likeliest.values.softmax(-1), 1))
        drawn.append(ids)
    return torch.cat(drawn, dim=1).tolist()
