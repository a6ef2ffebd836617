"""Text for post-training: documents of several sources, split by content, tokenised and packed into blocks."""

import hashlib
from itertools import islice

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lit_sparse.data.base import BatchDataModule, Splits, require_positive
from lit_sparse.data.cache import cache_path, load_blocks, save_blocks, tokenizer_fingerprint
from lit_sparse.data.packing import PackedBlocks, pack_documents
from lit_sparse.data.sources import Source, parse_source

HELD_OUT_PERCENT = {"val": 10, "test": 10}
"""Share of the documents in each held-out split; the rest is for training."""

SPLITS = ("train", *HELD_OUT_PERCENT)
_DOCUMENTS_PER_CALL = 256

_Tokenised = dict[str, dict[bytes, np.ndarray]]
"""For each split, the tokens of each document by the digest of its text."""


class TextData(BatchDataModule):
    """Text packed into blocks of `sequence_length` tokens (see `data.packing` for positions and labels).

    The hash of a document's text decides its split (train, val or test: 80, 10, 10 %) and its order in the
    split. So held-out text is never trained on, duplicates are dropped, and neither the order of the sources
    nor that of the files changes a block. Blocks are cached (`data.cache`), so a later start takes about a
    second. Special tokens that are spelled out in a text become special tokens.

    Args:
        sources: texts to read, any number of: "python-docs" (Python's own documentation, on every machine);
            "docs:torch" (the docstrings of an installed package); "code:torch" (its source files); a path or
            glob of .txt, .md or .jsonl files (key "text"; .gz too). Text and source files are cut into
            documents of 20,000 characters;
            "hf:dataset[:config]", a Hugging Face dataset, streamed, which needs `train_sequences`.
        tokenizer: name or path of a pretrained model, or a tokenizer. The command line fills in the model's
            name.
        sequence_length: tokens of a block.
        batch_size: sequences in a training batch of one device.
        eval_batch_size: sequences in a validation, test or calibration batch of one device.
        val_sequences: blocks to validate on, at most.
        test_sequences: blocks to test on, at most.
        train_sequences: blocks to train on, at most; None takes all.
        calibration_sequences: training blocks that thresholds are set on.
        max_documents: documents to read of each source, at most; None reads all.
        seed: order of training. It changes neither the splits nor the blocks.
        num_workers: processes that load batches; 0 loads them in the main process.

    Raises:
        ValueError: A size is out of range, or a stream has no `train_sequences`. `prepare_data` and `setup`
            raise it for unknown sources, paths that match nothing, unreadable files, a missing network, a
            tokenizer without an end-of-sequence token, and a split without one full block.
    """

    task_name = "text"

    def __init__(
        self,
        sources: list[str],
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        sequence_length: int = 256,
        batch_size: int = 2,
        eval_batch_size: int = 8,
        val_sequences: int = 32,
        test_sequences: int = 32,
        train_sequences: int | None = None,
        calibration_sequences: int = 8,
        max_documents: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            calibration_sequences=calibration_sequences,
            seed=seed,
            num_workers=num_workers,
        )
        require_positive(
            val_sequences=val_sequences,
            test_sequences=test_sequences,
            train_sequences=train_sequences,
            max_documents=max_documents,
        )
        if sequence_length < 2:
            raise ValueError(f"sequence_length must be at least 2, not {sequence_length}")
        if not sources:
            raise ValueError("data.sources is empty: name at least one source, for example ['python-docs']")
        if train_sequences is None and any(source.startswith("hf:") for source in sources):
            raise ValueError("a Hugging Face dataset is streamed without end: set data.train_sequences")
        self.sources = list(sources)
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.max_documents = max_documents
        self.wanted = {"train": train_sequences, "val": val_sequences, "test": test_sequences}

    def prepare_data(self) -> None:
        """Tokenise on one process of each node, so that the others find the blocks in the cache."""
        self.setup()

    def build(self) -> Splits:
        sources = [parse_source(source) for source in self.sources]
        tokenizer = self.load_tokenizer()
        streamed = any(source.streamed for source in sources)
        key: dict[str, object] = {
            "sources": sorted(source.fingerprint() for source in sources),
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "sequence_length": self.sequence_length,
            "max_documents": self.max_documents,
            "wanted": self.wanted if streamed else None,
        }
        path = cache_path(key)
        blocks = load_blocks(path)
        if blocks is None:
            blocks = self._pack(sources, tokenizer)
            save_blocks(path, blocks)
        for name in SPLITS:
            wanted, found = self.wanted[name], len(blocks[name])
            if wanted is not None and found < wanted:
                rank_zero_warn(f"{name}: the text fills {found} of the {wanted} blocks of data.{name}_sequences")
        return Splits(*(blocks[name].first(self.wanted[name]) for name in SPLITS))

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded if it was given by name.

        Raises:
            ValueError: None was given, or it has no end-of-sequence token.
        """
        if self.tokenizer is None:
            raise ValueError("TextData has no tokenizer: set data.tokenizer to the name or path of the model")
        if isinstance(self.tokenizer, str):
            from lit_sparse.models.base import load_tokenizer

            self.tokenizer = load_tokenizer(self.tokenizer)
        if self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token, which separates documents: set its eos_token")
        return self.tokenizer

    def _pack(self, sources: list[Source], tokenizer: PreTrainedTokenizerBase) -> dict[str, PackedBlocks]:
        tokenised: _Tokenised = {name: {} for name in SPLITS}
        for source in sources:
            for name, documents in self._tokenise(source, tokenizer).items():
                tokenised[name].update(documents)
        splits = {}
        for name, documents in tokenised.items():
            ordered = [documents[digest] for digest in sorted(documents)]
            splits[name] = pack_documents(ordered, tokenizer.eos_token_id, self.sequence_length)
            if len(splits[name]) == 0:
                raise ValueError(
                    f"the {name} split of {self.sources} has {_tokens(documents)} tokens in {len(documents)}"
                    f" documents, and one block needs {self.sequence_length}: add text, or lower"
                    " data.sequence_length"
                )
        return splits

    def _tokenise(self, source: Source, tokenizer: PreTrainedTokenizerBase) -> _Tokenised:
        """All documents of a source, or as many of a stream as fill every split on their own."""
        tokenised: _Tokenised = {name: {} for name in SPLITS}
        tokens = dict.fromkeys(SPLITS, 0)
        documents = islice(source.documents(), self.max_documents)
        while texts := list(islice(documents, _DOCUMENTS_PER_CALL)):
            encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
            for text, ids in zip(texts, encoded["input_ids"], strict=True):
                digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
                name = split_of(digest)
                if ids and digest not in tokenised[name]:
                    tokenised[name][digest] = np.asarray(ids, dtype=np.int32)
                    tokens[name] += len(ids) + 1
            if source.streamed and all(self._is_filled(name, tokens[name]) for name in SPLITS):
                break
        return tokenised

    def _is_filled(self, name: str, tokens: int) -> bool:
        wanted = self.wanted[name]
        return wanted is not None and tokens >= wanted * self.sequence_length


def split_of(digest: bytes) -> str:
    """The split of the document whose text has this hash: "train", "val" or "test"."""
    percentile = int.from_bytes(digest[:8], "big") % 100
    for name, percent in HELD_OUT_PERCENT.items():
        if percentile < percent:
            return name
        percentile -= percent
    return "train"


def _tokens(documents: dict[bytes, np.ndarray]) -> int:
    return sum(len(ids) + 1 for ids in documents.values())
