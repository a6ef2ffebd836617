"""Cross-entropy on any text, and KL from a base model, with deterministic gates."""

import glob
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_sparse.attention import EdgeCounts, edge_counts, gates_of
from lit_sparse.attention.bridge import separates_documents_only_when_gated
from lit_sparse.data.packing import PackedBlocks, pack_documents
from lit_sparse.data.sources import LocalFiles
from lit_sparse.downstream.scores import mean_of
from lit_sparse.objective.losses import token_losses
from lit_sparse.records.evaluation import TextScore
from lit_sparse.training.held_out import EvaluationMetric


def text_files(pattern: str) -> LocalFiles:
    """UTF-8 files of a path or glob with any suffix. Of .jsonl files the key "text" is read. All may be .gz files.

    Raises:
        ValueError: no file matches.
    """
    path = Path(pattern).expanduser()
    found = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    files = tuple(path for path in found if path.is_file())
    if not files:
        raise ValueError(f"no file matches --text {pattern} (from {Path.cwd()})")
    return LocalFiles(files)


def pack_text(files: LocalFiles, tokenizer: PreTrainedTokenizerBase, sequence_length: int) -> PackedBlocks:
    """The text as blocks of equal length, at most `sequence_length` tokens. The length is chosen so that almost nothing
    is cut off.

    Documents are packed as for training (see `data.packing`).

    Raises:
        ValueError: files are unreadable, the tokenizer has no end-of-sequence token, or the text is too short.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token, which separates documents: set its eos_token")
    texts = [text for text in files.documents() if text]
    documents = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    tokens = sum(len(document) + 1 for document in documents if document)
    if tokens < 3:
        raise ValueError(f"--text has {tokens} tokens, too few to predict one from another: give more text")
    blocks = math.ceil(tokens / sequence_length)
    return pack_documents(documents, tokenizer.eos_token_id, tokens // blocks)


@torch.no_grad()
def score_text(
    model: PreTrainedModel,
    base: PreTrainedModel | None,
    blocks: PackedBlocks,
    *,
    batch_size: int = 8,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> TextScore:
    """CE of the model and, with a base on the same device, KL(base || model).

    Args:
        advance: called with (blocks done, all blocks).

    Raises:
        ValueError: the vocabularies have different sizes, or the base's attention mixes packed documents.
    """
    gated = bool(gates_of(model))
    if (
        base is not None
        and gated
        and separates_documents_only_when_gated(model)
        and (blocks.position_ids == 0).sum() > len(blocks)
    ):
        raise ValueError(
            f"the dense attention of {model.config.model_type} mixes packed documents, so the base model would be no "
            "fair reference; give --text one document"
        )
    metric = EvaluationMetric().to(model.device)
    sums: list[Tensor] = []  # (blocks of the batch, 5): tokens, ce, base ce, ce - base ce, kl
    for start in range(0, len(blocks), batch_size):
        indices = torch.arange(start, min(start + batch_size, len(blocks)))
        batch = {name: tensor.to(model.device) for name, tensor in blocks.batch(indices).items()}
        inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
        outputs = model(**inputs, output_attentions=gated)
        base_logits = base(**inputs).logits if base is not None else outputs.logits
        if base_logits.shape != outputs.logits.shape:
            raise ValueError(
                f"KL needs the same vocabulary: the model has {outputs.logits.shape[-1]} tokens, the base "
                f"{base_logits.shape[-1]}"
            )
        losses = token_losses(outputs.logits, base_logits, batch["labels"])
        edges = edge_counts(outputs.attentions) if gated else _no_edges(model.device)
        metric.update(losses, losses.kl, edges, batch["input_ids"].numel())
        columns = (losses.scored, losses.ce, losses.base_ce, losses.ce - losses.base_ce, losses.kl)
        sums.append(torch.stack([column.double().sum(-1) for column in columns], dim=1).cpu())
        advance(start + len(indices), len(blocks))
    tokens, *by_block = torch.cat(sums).T.tolist()
    ce, base_ce, difference, kl = (mean_of(column, tokens) for column in by_block)
    reached = metric.compute()
    return TextScore(
        tokens=reached.tokens,
        sequences=len(blocks),
        sequence_length=blocks.input_ids.shape[1],
        ce=ce,
        base_ce=base_ce if base is not None else None,
        difference=difference if base is not None else None,
        kl=kl if base is not None else None,
        edge_fraction=reached.edge_fraction if gated else None,
        edges_per_query=reached.edges_per_query if gated else None,
    )


def _no_edges(device: torch.device) -> EdgeCounts:
    return EdgeCounts(*(torch.zeros(1, 1, device=device) for _ in EdgeCounts._fields))
