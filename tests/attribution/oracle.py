"""The frozen replacement model of a llama or a GPT-2 once more, in float64 and plain loops over their own weights."""

from itertools import product

import torch
from torch import Tensor, nn

from lit_sparse.attention import attention_modules
from lit_sparse.attention.edges import reference_pattern
from lit_sparse.attribution import Kind

Key = tuple[int, int, int, int]  # kind, layer, position, index


class Oracle:
    """Everything of one prompt (1, T), taken from the model by hooks."""

    @torch.no_grad()
    def __init__(self, model, transcoder, ids: Tensor):
        self.transcoder, self.ids = transcoder, ids
        self.is_llama = model.config.model_type == "llama"
        body = model.model if self.is_llama else model.transformer
        blocks = body.layers if self.is_llama else body.h
        self.final, self.head = (body.norm if self.is_llama else body.ln_f), model.lm_head
        self.norms = [
            (b.input_layernorm, b.post_attention_layernorm) if self.is_llama else (b.ln_1, b.ln_2) for b in blocks
        ]
        attentions = [b.self_attn if self.is_llama else b.attn for b in blocks]
        seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        watched = [self.final, *(norm for pair in self.norms for norm in pair), *(b.mlp for b in blocks)]
        handles = [m.register_forward_hook(lambda m, a, o: seen.update({m: (a[0][0], o[0])})) for m in watched]
        if attention_modules(model):
            pattern = reference_pattern(model, ids)
            self.weights = [(w * o).double() for w, o in zip(pattern.weights, pattern.is_open, strict=True)]
            self.logits = model(ids, use_cache=False).logits[0, -1]
        else:
            model.set_attn_implementation("eager")
            output = model(ids, use_cache=False, output_attentions=True)
            self.weights, self.logits = [w[0] for w in output.attentions], output.logits[0, -1]
        for handle in handles:
            handle.remove()
        self.inputs = {norm: seen[norm][0] for norm in watched if norm not in {b.mlp for b in blocks}}
        self.embedding = self.inputs[self.norms[0][0]]
        mlp_inputs = torch.stack([seen[b.mlp][0] for b in blocks])
        self.preactivations = torch.einsum("ltd,lfd->ltf", mlp_inputs, transcoder.W_enc) + transcoder.b_enc[:, None]
        self.activations = transcoder.encode(mlp_inputs)
        self.errors = torch.stack([seen[b.mlp][1] for b in blocks]) - transcoder.decode(self.activations)
        self.heads = self.weights[0].shape[0]
        self.values, self.value_biases, self.outputs, self.output_biases = [], [], [], []
        for attention in attentions:
            if self.is_llama:
                groups = attention.num_key_value_groups
                value = attention.v_proj.weight.unflatten(0, (self.heads // groups, -1)).repeat_interleave(groups, 0)
                value_bias, output, output_bias = value.new_zeros(value.shape[:2]), attention.o_proj.weight, None
            else:
                value = attention.c_attn.weight.chunk(3, dim=1)[2].T.unflatten(0, (self.heads, -1))
                value_bias = attention.c_attn.bias.chunk(3)[2].unflatten(0, (self.heads, -1))
                output, output_bias = attention.c_proj.weight.T, attention.c_proj.bias
            self.values.append(value)
            self.value_biases.append(value_bias)
            self.outputs.append(output.unflatten(1, (self.heads, -1)))
            self.output_biases.append(torch.zeros_like(self.embedding[0]) if output_bias is None else output_bias)

    @property
    def layers(self) -> int:
        return len(self.norms)

    def norm(self, norm: nn.Module, x: Tensor, position: int | slice = slice(None), bias: bool = True) -> Tensor:
        """With the denominator that it has on the prompt."""
        true = self.inputs[norm][position]
        if self.is_llama:
            return x * norm.weight * (true.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
        scale = (true.var(-1, correction=0, keepdim=True) + norm.eps).rsqrt()
        return (x - x.mean(-1, keepdim=True)) * scale * norm.weight + (norm.bias if bias else 0)

    def run(self, added: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Logits, with something added to each attention's output, and what each head writes (H, T, D)."""
        stream, acts, written = self.embedding, [], []
        for layer, (before_attention, before_mlp) in enumerate(self.norms):
            value = torch.einsum("hvd,sd->hsv", self.values[layer], self.norm(before_attention, stream))
            value = value + self.value_biases[layer][:, None]
            mixed = torch.einsum("hts,hsv->htv", self.weights[layer], value)
            written.append(torch.einsum("dhv,htv->htd", self.outputs[layer], mixed))
            stream = stream + written[-1].sum(0) + self.output_biases[layer] + added[layer]
            read = self.norm(before_mlp, stream) @ self.transcoder.W_enc[layer].T + self.transcoder.b_enc[layer]
            acts.append(read * (self.activations[layer] > 0))
            stream = stream + self.errors[layer] + self.transcoder.b_dec[layer]
            for source in range(layer + 1):
                if layer - source < self.transcoder.W_dec[source].shape[1]:
                    stream = stream + acts[source] @ self.transcoder.W_dec[source][:, layer - source]
        return self.head(self.norm(self.final, stream))[-1], written

    def derivatives(self, ids: Tensor, probabilities: Tensor) -> list[Tensor]:
        """Per layer (T, D): of sum_k p_k (logit_k - mean logit) in what the attention adds."""
        added = [torch.zeros_like(self.embedding, requires_grad=True) for _ in range(self.layers)]
        logits, _ = self.run(added)
        return list(torch.autograd.grad((probabilities * (logits[ids] - logits.mean())).sum(), added))

    @torch.no_grad()
    def edges(self, ids: Tensor, gradients: list[Tensor]) -> dict[tuple[Key, Key], float]:
        """Every direct effect that is not 0, one by one."""
        zeros = [torch.zeros_like(self.embedding)] * self.layers
        _, self.written = self.run(zeros)
        found: dict[tuple[Key, Key], float] = {}

        def note(reader: Tensor, norm: nn.Module, position: int, heads_below: int, mlps_below: int, target: Key):
            for source, vector in self._writers(position, heads_below, mlps_below):
                weight = float(reader @ self.norm(norm, vector, position, bias=False))
                if weight != 0:
                    found[source, target] = found.get((source, target), 0.0) + weight

        length = len(self.embedding)
        for layer, (before_attention, before_mlp) in enumerate(self.norms):
            for head, query, key in product(range(self.heads), range(length), range(length)):
                reader = gradients[layer][query] @ self.outputs[layer][:, head] @ self.values[layer][head]
                reader = reader * self.weights[layer][head, query, key]
                if bool(reader.any()):
                    note(reader, before_attention, key, layer, layer, (Kind.HEAD, layer, query, head))
            for position, feature in (self.activations[layer] > 0).nonzero().tolist():
                target = (Kind.FEATURE, layer, position, feature)
                note(self.transcoder.W_enc[layer][feature], before_mlp, position, layer + 1, layer, target)
        for token in ids.tolist():
            reader, target = (
                self.head.weight[token] - self.head.weight.mean(0),
                (Kind.LOGIT, self.layers, length - 1, token),
            )
            note(reader, self.final, length - 1, self.layers, self.layers, target)
        return found

    def _writers(self, position: int, heads_below: int, mlps_below: int):
        yield (Kind.EMBEDDING, -1, position, int(self.ids[0, position])), self.embedding[position]
        for layer, head in product(range(heads_below), range(self.heads)):
            yield (Kind.HEAD, layer, position, head), self.written[layer][head, position]
        for layer in range(mlps_below):
            yield (Kind.ERROR, layer, position, 0), self.errors[layer, position]
            for feature in (self.activations[layer, position] > 0).nonzero()[:, 0].tolist():
                decoders = self.transcoder.W_dec[layer][feature, : mlps_below - layer]
                yield (
                    (Kind.FEATURE, layer, position, feature),
                    self.activations[layer, position, feature] * decoders.sum(0),
                )
