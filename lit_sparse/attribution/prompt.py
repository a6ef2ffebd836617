"""The attribution graph of a prompt in one call, from text to the record for files and pages.

graph = prompt_graph(model, tokenizer, "The opposite of hot is", "runs/sparse_transcoder/transcoder")
"""

import math
import os
import time
from pathlib import Path

import torch
from transformers import PreTrainedModel

from lit_sparse.attention import attention_modules
from lit_sparse.attribution.as_record import graph_file
from lit_sparse.attribution.build import build_graph
from lit_sparse.attribution.graph import Kind
from lit_sparse.attribution.heads import heads_for
from lit_sparse.attribution.influence import prune
from lit_sparse.attribution.qk import why_open
from lit_sparse.circuits.tasks.vocabulary import Tokenizer
from lit_sparse.models.digest import digest_of
from lit_sparse.models.names import shown_name
from lit_sparse.models.tokens import token_text
from lit_sparse.records.feature_examples import Examples
from lit_sparse.records.graph import GraphFile
from lit_sparse.records.graph_summary import GraphSummary
from lit_sparse.tracing.flow import encode
from lit_sparse.transcoders import Transcoder, check_model, describe_transcoder, load_transcoder

EXAMPLES_FILE = "examples.json"


def prompt_graph(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompt: str,
    transcoders: str | os.PathLike[str],
    answer: str | None = None,
    *,
    node_share: float = 0.8,
    edge_share: float = 0.98,
    explained_heads: int = 100,
    name: str | None = None,
) -> GraphFile:
    """The attribution graph of the token after a prompt. Jupyter shows it as a view to explore.

    Args:
        tokenizer: a tokenizer of transformers, or a character tokenizer.
        transcoders: the folder of transcoders that were trained on this model.
        answer: the token to explain, with its leading space if it has one; default the likeliest ones that cover 95 %.
        node_share, edge_share: shares of the influence that the kept nodes and the kept links have.
        explained_heads: largest number of head nodes with a reason why their edge is open.
        name: name of the model in the graph; default its own name, or that of its base.

    Raises:
        ValueError: the transcoders belong to another model, the prompt or the answer cannot be used, or the model's
            family is not understood (see `Stack`).
    """
    folder = Path(transcoders)
    name = name or shown_name(model)
    digest = digest_of(model)
    check_model(folder, name, digest)
    examples = folder / EXAMPLES_FILE
    file, _ = graph_and_heads(
        model,
        load_transcoder(folder),
        tokenizer,
        prompt,
        answer,
        node_share=node_share,
        edge_share=edge_share,
        explained_heads=explained_heads,
        name=name,
        digest=digest,
        scan=scan_of(folder),
        examples=Examples.load(examples) if examples.is_file() else None,
    )
    return file


def graph_and_heads(
    model: PreTrainedModel,
    transcoder: Transcoder,
    tokenizer: Tokenizer,
    prompt: str,
    answer: str | None,
    *,
    node_share: float,
    edge_share: float,
    explained_heads: int,
    name: str,
    digest: str,
    scan: str,
    examples: Examples | None,
) -> tuple[GraphFile, list[float]]:
    """The pruned graph, and the model's heads' shares of the attribution, largest first."""
    started = time.perf_counter()
    ids, answer_id = encode(tokenizer, prompt, answer)
    whole = build_graph(model, transcoder, torch.tensor([ids]), answer_id=answer_id)
    shares = heads_for(whole)
    graph = prune(whole, node_share, edge_share)
    heads = (graph.nodes.kind == Kind.HEAD).nonzero()[0]
    strongest = heads[(-graph.influence[heads]).argsort(kind="stable")][:explained_heads]
    reasons = why_open(model, transcoder, graph, strongest.tolist(), most_keys=1)
    variance = graph.explained_variance
    summary = GraphSummary(
        prompt=prompt,
        nodes=len(graph.nodes),
        links=len(graph.edges),
        explained_variance=variance if math.isfinite(variance) else None,
        replacement_error=graph.replacement_error,
        heads_for_80=shares.by_attribution,
        heads_for_80_by_influence=shares.by_influence,
        heads_for_80_by_connection=shares.by_connection,
        replacement_kl=graph.replacement_kl,
        seconds=round(time.perf_counter() - started, 2),
        model=name,
        model_digest=digest,
        sparse=bool(attention_modules(model)),
        answer=token_text(tokenizer, int(graph.logit_ids[0])),
        probability=float(graph.probabilities[0]),
        heads=shares.attribution.size,
        attention_edges=graph.open_edges,
        allowed_attention_edges=graph.allowed_edges,
    )
    file = graph_file(
        graph,
        whole,
        text=lambda token: token_text(tokenizer, token),
        prompt=prompt,
        scan=scan,
        slug=_slug(prompt),
        node_share=node_share,
        shares=shares,
        reasons=reasons,
        summary=summary,
        examples=examples,
    )
    falling = sorted((float(share) for share in shares.attribution.ravel() if share), reverse=True)
    return file, falling


def scan_of(folder: Path) -> str:
    """The name that a graph gives to its transcoders."""
    return str(describe_transcoder(folder).get("scan", folder.name))


def _slug(prompt: str) -> str:
    words = "".join(letter.lower() if letter.isalnum() else " " for letter in prompt).split()
    return "-".join(words[-5:]) or "prompt"
