"""Local replacement model of one prompt, in which features, errors and biases replace the MLPs, as tensors.

Shapes: L layers, H heads, T positions, D model width, F features of a layer. The residual stream at a position is the
sum of the embedding, every head's output, and for every layer's MLP

    sum over features of this and earlier layers (activation x decoder) + b_dec + error,

error = the MLP's true output - the transcoder's output at the true inputs, a constant. So every layer has exactly the
inputs that it has in the model ("Circuit Tracing", transformer-circuits.pub 2025, local replacement model). Attention
weights (with gates, 0 at closed edges), norm denominators and the set of active features are constants too. The rest
is linear.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lit_sparse.anatomy.calls import Projected
from lit_sparse.anatomy.linear import FrozenNorm, LinearStack, freeze_norm
from lit_sparse.anatomy.reach import reachable
from lit_sparse.attention import Gate
from lit_sparse.transcoders import Transcoder

_SAME = 1e-3  # relative: rounding in float32 is ten times below


class Replacement:
    """Local replacement model of one prompt.

    Attributes:
        embedding: (T, D) the residual stream before the first layer.
        weights: per layer (H, T, T), the factor of key s's value in query t's output, 0 at closed edges.
        carried: per layer (H, T, V), the vectors that a head's edges move from each position: values, or with centered
            gates their deviations; V is the values' dimension.
        values: per layer (H, V, D) and (H, V), the projection and the bias that make `carried`.
        outputs: per layer (D, H, V), each head's part of the output projection.
        heads: per layer (H, T, D), what each head's edges write, through the norm after the attention if there is one.
        attention_bias: per layer (T, D), the rest of what the attention writes (with centered gates, the heads' means).
        attention_norms, after_attention, mlp_norms: per layer, the norms before and after the attention and before the
            transcoder's input; `final_norm` is the one before the logits, for the last position only.
        projected: per layer, queries, keys and values; attention_inputs: (T, D) the input that they are computed from.
        allowed_edges, open_edges: numbers of attention edges over all layers and heads.
        mlp_outputs: (L, T, D) outputs of the model's MLPs.
        activations: (L, T, F) of the features; errors: (L, T, D); decoders: `Transcoder.W_dec`.
        seen: (L + 1, T), row l: the positions whose residual stream before layer l can reach the logits (row L).
        logits: (V,) of the token after the last one; vocabulary: the unembedding (V, D) and its bias (V,) or None.

    Args:
        transcoder: the transcoder. It is moved to the model's device and dtype.
        ids: token ids of one prompt.

    Raises:
        ValueError: the transcoder has another shape, the model is in half precision, or the norms or values of its
            family are not linear at fixed denominators.
    """

    @torch.no_grad()
    def __init__(self, stack: LinearStack, transcoder: Transcoder, ids: Int[Tensor, "1 time"]):
        self.stack, self.ids = stack, ids
        self.layers = len(stack.anatomy.layers)
        self.parallel = stack.graph.parallel
        self.embedding = stack.embed(ids)[0]
        self._check(transcoder)
        self.transcoder = transcoder.to(self.embedding.device, self.embedding.dtype)
        stack.embed(ids[:, :1])  # notes how attention is called with one token, which `value_map` does
        self.weights: list[Tensor] = []
        self.carried: list[Tensor] = []
        self.values: list[tuple[Tensor, Tensor]] = []
        self.outputs: list[Tensor] = []
        self.heads: list[Tensor] = []
        self.attention_bias: list[Tensor] = []
        self.attention_norms: list[FrozenNorm] = []
        self.after_attention: list[FrozenNorm] = []
        self.mlp_norms: list[FrozenNorm] = []
        self.projected: list[Projected] = []
        self.attention_inputs: list[Tensor] = []
        self.allowed_edges = 0
        inputs, mlp_outputs = [], []
        residual = self.embedding
        for layer in range(self.layers):
            attention = self._attention(layer, residual)
            after = residual + attention
            read = residual if self.parallel[layer] else after
            norm = self._norm_before_features(layer)
            self.mlp_norms.append(freeze_norm(norm, read, self.family))
            inputs.append(norm(read))
            mlp_outputs.append(stack.mlp(layer, read[None])[0])
            residual = after + mlp_outputs[-1]
        self.final_norm = freeze_norm(stack.anatomy.final_norm, residual[-1:], self.family)
        self.logits: Float[Tensor, " token"] = stack.logits(residual[None])[0]
        self.mlp_outputs: Float[Tensor, "layer time model"] = torch.stack(mlp_outputs)
        self.activations: Float[Tensor, "layer time feature"] = transcoder.encode(torch.stack(inputs))
        self.errors: Float[Tensor, "layer time model"] = self.mlp_outputs - transcoder.decode(self.activations)
        self.decoders = list(transcoder.W_dec)
        open_ones = [weight.float().cpu().numpy() for weight in self.weights]
        self.open_edges = sum(int((weight != 0).sum()) for weight in open_ones)
        self.seen: Bool[Tensor, "layer_and_logits time"] = torch.from_numpy(reachable(open_ones))

    @property
    def family(self) -> str:
        return str(self.stack.model.config.model_type)

    @property
    def vocabulary(self) -> tuple[Float[Tensor, "token model"], Float[Tensor, " token"] | None]:
        head = self.stack.anatomy.head
        return head.weight, head.bias  # type: ignore[return-value]

    @property
    def replacement_error(self) -> float:
        """|error| / |MLP output|, averaged over layers and positions."""
        return float((self.errors.norm(dim=-1) / self.mlp_outputs.norm(dim=-1).clamp_min(1e-30)).mean())

    @property
    def explained_variance(self) -> float:
        """1 - squared error / squared deviation from the mean over the prompt's positions, averaged over layers; nan
        for a prompt of one token."""
        deviation = self.mlp_outputs - self.mlp_outputs.mean(1, keepdim=True)
        return float((1 - self.errors.square().sum((1, 2)) / deviation.square().sum((1, 2))).mean())

    @torch.no_grad()
    def replacement_kl(self) -> float:
        """KL divergence (nats) of the next token from the model's, when the transcoder's output replaces every MLP's.
        Each layer reads the replaced run; nothing is frozen."""
        residual, acts = self.embedding[None], []
        for layer in range(self.layers):
            _, attention = self.stack.write(layer, self.stack.attend(layer, self.stack.project(layer, residual)))
            after = residual + attention
            read = self._norm_before_features(layer)(residual if self.parallel[layer] else after)
            acts.append(self.transcoder.activate(layer, self.transcoder.preactivations(layer, read)))
            residual = after + self.transcoder.write(layer, acts)
        log_p, log_q = self.logits.log_softmax(-1), self.stack.logits(residual)[0].log_softmax(-1)
        return float((log_p.exp() * (log_p - log_q)).sum())

    def _attention(self, layer: int, residual: Float[Tensor, "time model"]) -> Float[Tensor, "time model"]:
        """Records all tensors of a layer's attention; returns what it adds to the residual stream."""
        stack, parts = self.stack, self.stack.anatomy.layers[layer]
        projected = stack.project(layer, residual[None])
        count, group = projected.query.shape[1], projected.query.shape[1] // projected.key.shape[1]
        normed = parts.before_attention(residual)
        self.attention_inputs.append(normed)
        self.projected.append(projected)
        self.attention_norms.append(freeze_norm(parts.before_attention, residual, self.family))
        value_map = stack.value_map(layer, normed, projected.value[0])
        gate: Gate = parts.attention.edge_gate
        center = gate.head_center(residual.dtype).to(residual.device)
        self.carried.append(gate.deviation(projected.value)[0].repeat_interleave(group, 0))
        self.values.append(
            (value_map[0].repeat_interleave(group, 0), value_map[1].repeat_interleave(group, 0) - center)
        )
        listed = stack.open_edges(layer, projected)
        weight = residual.new_zeros(count, len(residual), len(residual))
        self.weights.append(weight.index_put(tuple(listed.indices[1:]), listed.weights.to(residual.dtype)))
        self.allowed_edges += stack.allowed_edges(layer, projected)
        attended = stack.attend(layer, projected)[0] - center  # (time, head, value)
        output = parts.output_weight().unflatten(1, (count, attended.shape[-1]))
        total = parts.output((attended + center).flatten(1))
        after = freeze_norm(parts.after_attention, total, self.family)
        self.outputs.append(output)
        self.after_attention.append(after)
        self.heads.append(after.linear(torch.einsum("thv,dhv->htd", attended, output), after.scale))
        constant = torch.einsum("hv,dhv->d", center.expand(count, attended.shape[-1]), output)
        bias = parts.output.bias
        written = (constant if bias is None else constant + bias).expand_as(total)  # type: ignore[operator]
        self.attention_bias.append(after.linear(written, after.scale) + after.bias)
        attention: Tensor = parts.after_attention(total)
        difference = self.heads[-1].sum(0) + self.attention_bias[-1] - attention
        if float(difference.abs().max()) > _SAME * float(attention.abs().max()) + torch.finfo(total.dtype).tiny:
            raise ValueError(f"model family {self.family!r}: layer {layer}'s heads do not add up to its attention")
        return attention

    def _norm_before_features(self, layer: int) -> nn.Module:
        """What the features of a layer read of the residual stream: what the MLP reads, or the stream itself."""
        read_residual = self.transcoder.reads == "hook_resid_mid"
        return nn.Identity() if read_residual else self.stack.anatomy.layers[layer].before_mlp

    def _check(self, transcoder: Transcoder) -> None:
        width = self.embedding.shape[1]
        if (transcoder.layers, transcoder.width) != (self.layers, width):
            raise ValueError(
                f"the transcoder reads {transcoder.layers} layers of width {transcoder.width}, the model has "
                f"{self.layers} of width {width}: it was trained on another model"
            )
        normed = any(not isinstance(parts.after_mlp, nn.Identity) for parts in self.stack.anatomy.layers)
        if normed and transcoder.writes == "mlp.hook_out":
            raise ValueError(
                f"the transcoder writes mlp.hook_out, and in model family {self.family!r} a norm comes between that "
                "and the residual stream; transcoders of hook_mlp_out are supported"
            )
        if self.embedding.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"attribution is exact in float32 only, not in {self.embedding.dtype}: load it in float32")
