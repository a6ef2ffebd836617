"""Transcoders, which express what a model's MLPs compute in sparse features: training, saving and loading."""

from lit_sparse.transcoders.cache import ActivationCache
from lit_sparse.transcoders.cached import CachedActivations
from lit_sparse.transcoders.folder import check_model, describe_transcoder, load_transcoder, save_transcoder
from lit_sparse.transcoders.losses import SparsityLoss
from lit_sparse.transcoders.module import TranscoderModule
from lit_sparse.transcoders.transcoder import Transcoder, TranscoderConfig

__all__ = [
    "ActivationCache",
    "CachedActivations",
    "SparsityLoss",
    "Transcoder",
    "TranscoderConfig",
    "TranscoderModule",
    "check_model",
    "describe_transcoder",
    "load_transcoder",
    "save_transcoder",
]
