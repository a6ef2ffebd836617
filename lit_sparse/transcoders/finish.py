"""End of a transcoder's run: measurement on held-out text, and saving for raw activations."""

from pathlib import Path
from typing import Any

import torch

from lit_sparse.common.progress import progress_bar
from lit_sparse.models.digest import digest_of
from lit_sparse.models.tokens import token_text
from lit_sparse.records.transcoder import TranscoderSummary
from lit_sparse.transcoders.examples import TopExamples
from lit_sparse.transcoders.folder import save_transcoder
from lit_sparse.transcoders.metric import TranscoderMetric

FOLDER = "transcoder"


@torch.no_grad()
def finish_transcoder(module: Any, run_dir: Path) -> TranscoderSummary:
    """Writes `run_dir/transcoder` and returns its summary. Only the first rank calls it.

    The folder holds the weights for raw activations, summary.json, and examples.json with the strongest contexts of
    each feature. Measurements and contexts come from the test split.

    Args:
        module: a `TranscoderModule`.
    """
    trainer, data = module.trainer, module.data
    module.to(trainer.strategy.root_device)  # Lightning moves it to the CPU when training ends
    raw = module.scaling.fold(module.transcoder)
    layers, features = raw.layers, raw.config.features
    metric = TranscoderMetric(layers, raw.width, sync_on_compute=False).to(module.device)
    examples = TopExamples(layers, features)
    loader = data.test_dataloader()
    with trainer.precision_plugin.forward_context(), progress_bar("held-out evaluation") as advance:
        for index, batch in enumerate(loader):
            batch = {name: part.to(module.device) for name, part in batch.items()}
            acts = module.evaluate(batch, metric, raw)
            examples.update(batch["input_ids"], acts.float().unflatten(1, batch["input_ids"].shape))
            advance(index + 1, len(loader))
    model = module.mlps.model
    if model.dtype is not torch.float32:  # the digest is of the model as commands load it to use the transcoder
        model = module.build_model(torch.float32)
    digest = digest_of(model)
    summary = TranscoderSummary(
        model=module.base_name,
        model_digest=digest,
        layers=layers,
        features=features,
        cross_layer=raw.config.cross_layer,
        activation=raw.config.activation,
        tokens=module.state.tokens,
        steps=trainer.global_step,
        seconds=round(module.state.seconds, 1),
        dead_fraction=float(module.dead.float().mean()),
        **metric.compute().summary(),
    )
    folder = run_dir / FOLDER
    save_transcoder(raw, folder, model_name=module.base_name, model_digest=digest, measured=summary.model_dump())
    summary.write(folder)
    if hasattr(data, "load_tokenizer"):
        tokenizer = data.load_tokenizer()
        examples.save(folder / "examples.json", lambda index: token_text(tokenizer, index))
    module.print(
        f"transcoder: {summary.explained_variance:.1%} of the variance explained with {summary.l0:.1f} features "
        f"per layer and token; CE {summary.ce:.3f}, with the transcoder for the MLPs {summary.replacement_ce:.3f}, "
        f"with their mean outputs {summary.mean_ablation_ce:.3f}; written to {folder}"
    )
    return summary
