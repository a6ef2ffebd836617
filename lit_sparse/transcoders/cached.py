"""`CachedActivations`: training on an `ActivationCache`, which is filled at the start, and validation on the text."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from lit_sparse.data.base import BatchDataModule, require_positive
from lit_sparse.transcoders.activations import Batch
from lit_sparse.transcoders.cache import ActivationCache, fingerprint


class ShardLoader:
    """Batches of tokens from shards in random order, shuffled within each shard and resumable within an epoch.

    Ranks take different shards. Tokens that do not fill a batch of a shard are left out, and so are shards that do not
    suffice for every rank.

    Args:
        shards: number of shards in the cache.
        shard_tokens: tokens of each shard.
        batch_tokens: tokens in a batch of one device.
    """

    def __init__(
        self,
        cache: ActivationCache,
        shards: int,
        shard_tokens: int,
        batch_tokens: int,
        seed: int,
        rank: int,
        world: int,
    ):
        self.cache, self.shards, self.batch_tokens, self.seed = cache, shards, batch_tokens, seed
        self.rank, self.world = rank, world
        self.batches_per_shard = shard_tokens // batch_tokens
        self.epoch = self.done = 0
        self._resumed = False
        if not len(self):
            raise ValueError(
                f"the cache holds {shards} shards of {shard_tokens} tokens: too few for {world} processes with batches "
                f"of {batch_tokens}"
            )

    def __len__(self) -> int:
        return self.shards // self.world * self.batches_per_shard

    def __iter__(self) -> Iterator[Batch]:
        if not self._resumed:
            self.done = 0
        self._resumed = False
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.shards, generator=generator)[: self.shards // self.world * self.world]
        for place, index in enumerate(order[self.rank :: self.world].tolist()):
            first = self.done - place * self.batches_per_shard
            if first >= self.batches_per_shard:
                continue
            shard = self.cache.read(index)
            tokens = len(shard["input_ids"])
            inside = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch * self.shards + index)
            batches = torch.randperm(tokens, generator=inside).split(self.batch_tokens)
            for rows in batches[first : self.batches_per_shard]:
                self.done += 1
                yield {name: part[..., rows] if part.dim() == 1 else part[:, rows] for name, part in shard.items()}
        self.epoch, self.done = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.done, self._resumed = state["epoch"], state["done"], True


class CachedActivations(LightningDataModule):
    """Activations of a model on the training text of another data module.

    Args:
        data: data module of the text, or of another task.
        folder: folder of the cache; it takes about 35 kB per token for SmolLM2-135M.
        model: model whose activations are cached; the command line fills in the model's name.
        tokens: largest number of tokens to cache; None takes all training text.
        dtype: "int8", with a scale for each token and layer, or "bfloat16".
        shard_tokens: tokens of a file; the order is random over files, and within one.
        batch_tokens: tokens in a training batch of one device.
        seed: order of training.

    Raises:
        ValueError: a size is out of range. `prepare_data` raises it for a cache of another model or text.
    """

    def __init__(
        self,
        data: BatchDataModule,
        folder: str,
        model: str | None = None,
        tokens: int | None = None,
        dtype: str = "int8",
        shard_tokens: int = 4096,
        batch_tokens: int = 256,
        seed: int = 0,
    ):
        super().__init__()
        require_positive(tokens=tokens, shard_tokens=shard_tokens, batch_tokens=batch_tokens)
        if shard_tokens < max(batch_tokens, data.sequence_length):
            raise ValueError(
                f"shard_tokens = {shard_tokens} must hold a batch of {batch_tokens} tokens and a sequence of "
                f"{data.sequence_length}"
            )
        self.data, self.model, self.tokens = data, model, tokens
        self.batch_tokens, self.seed = batch_tokens, seed
        self.sequences_per_shard = shard_tokens // data.sequence_length
        self.cache = ActivationCache(folder, dtype)
        self.task_name, self.sequence_length = data.task_name, data.sequence_length
        self._shards = 0

    def prepare_data(self) -> None:
        """Fills the cache on one process of each node."""
        if self.model is None:
            raise ValueError("CachedActivations has no model: set data.model")
        self.data.prepare_data()
        self.data.setup()
        dataset = self.data.splits.train
        shards = self._sequences()
        key = fingerprint(self.model, dataset, torch.cat(shards)) | {"sequences_per_shard": self.sequences_per_shard}
        self.cache.fill(self.model, dataset, shards, key)

    def setup(self, stage: str | None = None) -> None:
        """Builds the text's datasets and counts the shards."""
        self.data.setup(stage)
        self._shards = len(self._sequences())

    def train_dataloader(self) -> ShardLoader:
        """Loader of batches with `mlp_inputs` and `mlp_outputs` (L, N, D) and `input_ids` (N,)."""
        kwargs = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        replicas = kwargs or {"rank": 0, "num_replicas": 1}
        shard_tokens = self.sequences_per_shard * self.sequence_length
        return ShardLoader(
            self.cache, self._shards, shard_tokens, self.batch_tokens, self.seed, replicas["rank"],
            replicas["num_replicas"],
        )  # fmt: skip

    def val_dataloader(self) -> Any:
        return self._text().val_dataloader()

    def test_dataloader(self) -> Any:
        return self._text().test_dataloader()

    def calibration_batches(self) -> list[Batch]:
        """Calibration batches of the text."""
        return self.data.calibration_batches()

    def load_tokenizer(self) -> Any:
        """The text's tokenizer."""
        return self.data.load_tokenizer()  # type: ignore[attr-defined]

    def _text(self) -> BatchDataModule:
        self.data.trainer = self.trainer  # the data module asks it for ranks
        return self.data

    def _sequences(self) -> list[torch.Tensor]:
        """Training sequences of each shard, full ones only."""
        dataset = self.data.splits.train
        wanted = len(dataset) if self.tokens is None else min(len(dataset), self.tokens // self.sequence_length)
        shards = torch.arange(wanted).split(self.sequences_per_shard)
        full = [shard for shard in shards if len(shard) == self.sequences_per_shard]
        if not full:
            raise ValueError(
                f"{wanted} training sequences do not fill one shard of {self.sequences_per_shard}: lower shard_tokens, "
                "or raise tokens"
            )
        return full
