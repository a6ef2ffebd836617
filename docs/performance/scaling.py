"""The figures of scaling.md, every one from a formula here or in `lit_sparse.costs`.

python docs/performance/scaling.py            prints the tables
python docs/performance/scaling.py --write    puts them into scaling.md, between its <!-- table: NAME --> marks
"""

import argparse
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lit_sparse.costs import (
    STRATEGIES,
    Activations,
    FlopsPerToken,
    ModelSize,
    Precision,
    flops_per_token,
    memory_per_gpu,
)

DOCUMENT = Path(__file__).with_name("scaling.md")

# --- machines: NVIDIA's data sheet of the H100 SXM, InfiniBand NDR ---

PEAK = 989e12  # FLOP/s, dense bfloat16 products on tensor cores
PEAK_VECTOR = 67e12  # FLOP/s, float32 outside of tensor cores
REACHED = 0.4  # share of either that training code reaches
IN_NODE = 450e9  # bytes/s of a GPU and direction, NVLink, 8 GPUs
BETWEEN_NODES = 50e9  # bytes/s of a GPU and direction, one 400 Gbit/s port each
NETWORK_REACHED = 0.8
HOP = 5e-6  # s, latency of one hop of a ring
GPU_MEMORY = 80e9
WORKSPACE = 20e9  # of that, for activations, logits and CUDA

# --- the method ---

BATCH = 2**20  # tokens of an optimizer step over all GPUs
LENGTH = 2048
RANK = 16  # of adapters
# Element-wise operations for each edge beyond those of dense flash attention, counted in attention/row_kernels.py.
NOISE = 6  # Philox 4x32-7, four keys a counter, as compiled for attention/gpu (benchmarks/RESULTS.md: 5 to 6)
GATE_FORWARD = 9 + NOISE  # z 2, sigmoid 3, comparison, product with the weight, two counts
GATE_BACKWARD = 22 + NOISE  # z and sigmoid again 5, relaxation 6, its gradient 6, gate 2, row's shift 3
LOSSES = 20  # for each logit of CE, base CE and KL, both directions: three exponentials, and sums


@dataclass(frozen=True)
class Model:
    """Published sizes."""

    name: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    tied: bool = False
    experts: int = 1
    routed: int = 1

    def _layer(self, experts: int) -> int:
        attention = self.width * self.head_dim * 2 * (self.heads + self.kv_heads)
        return attention + experts * 3 * self.width * self.inner

    @property
    def weights(self) -> int:
        """All, but for norms."""
        tables = 1 if self.tied else 2
        return self.layers * self._layer(self.experts) + tables * self.vocabulary * self.width

    @property
    def active(self) -> int:
        """Weights in a token's matrix products."""
        return self.layers * self._layer(self.routed) + self.vocabulary * self.width

    @property
    def adapters(self) -> int:
        """Of rank RANK on every linear layer of a block."""
        attention = 2 * self.width + self.head_dim * 2 * (self.heads + self.kv_heads) + 2 * self.width
        mlp = 3 * (self.width + self.inner)
        return self.layers * RANK * (attention + mlp)

    def flops(self, length: int = LENGTH, lora: bool = False, checkpointing: bool = True) -> FlopsPerToken:
        extra = self.adapters if lora else 0
        return flops_per_token(
            self.active + extra,
            extra or self.active,
            self.layers * self.heads * self.head_dim,
            length,
            teacher_weights=self.active,
            checkpointing=checkpointing,
        )

    def edges(self, length: int) -> float:
        """Allowed edges for each query token, over all heads."""
        return self.layers * self.heads * (length + 1) / 2


MODELS = (
    Model("1B (Llama-3.2-1B)", 2048, 16, 32, 8, 64, 8192, 128256, tied=True),
    Model("7B (OLMo-7B)", 4096, 32, 32, 32, 128, 11008, 50304),
    Model("70B (Llama-3-70B)", 8192, 80, 64, 8, 128, 28672, 128256),
)
SEVEN = MODELS[1]
MIXTURE = Model("8x7B (Mixtral)", 4096, 32, 32, 8, 128, 14336, 32000, experts=8, routed=2)


def assumptions() -> list[str]:
    rows = [
        ["a GPU's peak, bf16 products; float32 element-wise", f"{PEAK / 1e12:.0f}; {PEAK_VECTOR / 1e12:.0f} TFLOP/s"],
        ["share of either that is reached", f"{REACHED:.0%}"],
        ["network of a GPU, each direction, in a node of 8", f"{IN_NODE / 1e9:.0f} GB/s"],
        ["the same between nodes", f"{BETWEEN_NODES / 1e9:.0f} GB/s"],
        ["share of bandwidth that is reached", f"{NETWORK_REACHED:.0%}"],
        ["latency of a hop in a ring", f"{HOP * 1e6:.0f} µs"],
        ["memory of a GPU; kept free for activations", f"{GPU_MEMORY / 1e9:.0f} GB; {WORKSPACE / 1e9:.0f} GB"],
        ["tokens of a step over all GPUs; of a sequence", f"{BATCH:,}; {LENGTH:,}"],
        ["element-wise operations of an edge, forward; backward", f"{GATE_FORWARD}; {GATE_BACKWARD}"],
        ["of these, its random number", f"{NOISE}"],
        ["element-wise operations of a logit, all losses", f"{LOSSES}"],
    ]
    return table(["assumption", "value"], rows)


# --- 1. operations ---


def operations() -> list[str]:
    rows = []
    for model in MODELS:
        for lora in (False, True):
            flops = model.flops(lora=lora)
            gate = model.edges(LENGTH) * (2 * GATE_FORWARD + GATE_BACKWARD)
            plain = flops.forward + flops.backward
            rows.append(
                [
                    model.name,
                    "LoRA" if lora else "all",
                    *(giga(x) for x in (flops.forward, flops.backward, flops.teacher, flops.recomputed)),
                    giga(LOSSES * model.vocabulary),
                    giga(gate),
                    f"{(flops.model / plain - 1):.0%}",
                    f"{seconds_of_vector(gate) / seconds_of_products(flops.hardware):.0%}",
                ]
            )
    heading = [
        "model", "trained", "student forward", "student backward", "teacher", "recomputed", "losses", "gates",
        "teacher adds", "gates add, in time",
    ]  # fmt: skip
    return table(heading, rows)


def seconds_of_products(flops: float) -> float:
    return flops / (PEAK * REACHED)


def seconds_of_vector(operations: float) -> float:
    return operations / (PEAK_VECTOR * REACHED)


# --- 2. communication ---

GPUS = (8, 64, 512)


@dataclass(frozen=True)
class Traffic:
    """What one GPU sends in a step of one micro-batch: bytes for each weight, and collectives for each layer.

    With n GPUs an all-gather or reduce-scatter of S bytes sends S (n - 1) / n from each, an all-reduce twice that.
    """

    bytes_per_weight: float
    collectives_per_layer: int
    collectives: int


TRAFFIC = {
    # all-reduce of float32 gradients, in buckets
    "ddp": Traffic(2 * 4, 0, 20),
    # reduce-scatter of bf16 gradients, all-gather of bf16 weights
    "zero1": Traffic(2 + 2, 0, 20),
    "zero2": Traffic(2 + 2, 0, 20),
    # all-gathers: student forward, backward, teacher; reduce-scatter; all bf16
    "zero3": Traffic(2 + 2 + 2 + 2, 4, 0),
    # the same, but gradients are reduced in float32
    "fsdp2": Traffic(2 + 2 + 2 + 4, 4, 0),
}


def volume(model: Model, strategy: str, gpus: int) -> float:
    return TRAFFIC[strategy].bytes_per_weight * model.weights * (gpus - 1) / gpus


def network_seconds(model: Model, strategy: str, gpus: int) -> float:
    traffic = TRAFFIC[strategy]
    bandwidth = (IN_NODE if gpus <= 8 else BETWEEN_NODES) * NETWORK_REACHED
    collectives = traffic.collectives_per_layer * model.layers + traffic.collectives
    return volume(model, strategy, gpus) / bandwidth + collectives * (gpus - 1) * HOP


def compute_seconds(model: Model, gpus: int) -> float:
    return seconds_of_products(model.flops().hardware) * BATCH / gpus


def fits_from(model: Model, strategy: str) -> int | None:
    """The smallest power of two of GPUs whose memory holds weights, gradients, states, buffers and the teacher."""
    size = ModelSize(
        base=model.weights,
        total=model.weights,
        trained=model.weights,
        layer=model._layer(model.experts),
        outside=2 * model.vocabulary * model.width,
        vocabulary=0,
    )
    for exponent in range(14):
        plan = memory_per_gpu(
            size,
            Activations(0, 0, 0, 0, 0, 0),
            STRATEGIES[strategy],
            gpus=2**exponent,
            tokens=0,
            precision=Precision.of("bf16-mixed"),
            optimizer_bytes=8,
            checkpointing=True,
        )
        if plan.total <= GPU_MEMORY - WORKSPACE:
            return 2**exponent
    return None


def scales_to(model: Model, strategy: str) -> int:
    """The largest power of two of GPUs, 8 at least, at which the network takes no longer than computing does."""
    gpus = 8
    while gpus < BATCH // LENGTH and network_seconds(model, strategy, 2 * gpus) <= compute_seconds(model, 2 * gpus):
        gpus *= 2
    return gpus


def communication() -> list[str]:
    rows = []
    for model in MODELS:
        for strategy in TRAFFIC:
            smallest = fits_from(model, strategy)
            cells = [
                f"{volume(model, strategy, n) / 1e9:.0f} GB, {network_seconds(model, strategy, n):.2f} / "
                f"{compute_seconds(model, n):.2f} s"
                for n in GPUS
            ]
            last = scales_to(model, strategy)
            if smallest is None:
                reach = "does not fit"
            elif network_seconds(model, strategy, last) > compute_seconds(model, last):
                reach = "under 8"
            else:
                reach = f"{last}" + (" (the batch ends)" if last == BATCH // LENGTH else "")
            rows.append([model.name, strategy, "never" if smallest is None else str(smallest), *cells, reach])
    return table(["model", "strategy", "fits from", *(f"{n} GPUs" for n in GPUS), "scales to"], rows)


# --- 3. long contexts ---

CONTEXT_PARALLEL = 8


def contexts() -> list[str]:
    """One sequence over CONTEXT_PARALLEL GPUs, keys and values going round in a ring."""
    rows = []
    model = SEVEN
    for length in (2048, 8192, 32768, 131072):
        flops = model.flops(length)
        attention = 4 * model.layers * model.heads * model.head_dim * length
        shared = 5 * attention + attention / 2  # forward, backward, teacher, checkpoint, recomputed scores
        gate = model.edges(length) * (2 * GATE_FORWARD + GATE_BACKWARD)
        pairs = model.edges(length) * length
        keys = model.layers * length * model.kv_heads * model.head_dim * 2 * (1 - 1 / CONTEXT_PARALLEL)
        # forward and its recomputation K, V; backward K, V and their gradients; the probability gate: K once more
        # before each of the three
        ring, again = keys * (2 + 2 + 4), keys * 3
        scores = 3 * attention / 2
        rows.append(
            [
                f"{length:,}",
                f"{shared / flops.hardware:.0%}",
                f"{seconds_of_vector(gate) / seconds_of_products(flops.hardware):.0%}",
                f"{pairs / 1e9:,.0f}",
                f"{ring / 1e9:.1f} GB",
                f"{again / 1e9:.1f} GB",
                f"{scores / flops.hardware:.1%}",
            ]
        )
    heading = [
        "length", "attention's share of operations", "gates add, in time", "edges of a sequence, 10^9",
        "keys and values sent", "more for the probability gate", "operations more for it",
    ]  # fmt: skip
    return table(heading, rows)


# --- 4. mixture of experts ---


def mixtures() -> list[str]:
    rows = []
    for model in (SEVEN, MIXTURE):
        flops = model.flops().hardware
        gathered = TRAFFIC["zero3"].bytes_per_weight * model.weights
        # bf16, to the experts and back, in the forward pass, its recomputation, the backward pass and the teacher
        routed = 4 * 2 * model.routed * model.width * 2 * model.layers if model.experts > 1 else 0
        # tokens a GPU needs so that computing hides the gathers between nodes
        tokens = gathered / (BETWEEN_NODES * NETWORK_REACHED) / seconds_of_products(flops)
        rows.append(
            [
                model.name,
                f"{model.weights / 1e9:.1f}",
                f"{model.active / 1e9:.1f}",
                giga(flops),
                f"{gathered / 1e9:.0f} GB",
                f"{tokens:,.0f}",
                f"{routed / 1e6:.2f} MB" if routed else "none",
            ]
        )
    heading = [
        "model", "weights, 10^9", "active, 10^9", "GFLOP a token", "ZeRO-3 a step",
        "tokens a GPU that hide it", "sent to experts a token",
    ]  # fmt: skip
    return table(heading, rows)


# --- output ---


def giga(value: float) -> str:
    return f"{value / 1e9:.1f}" if value >= 5e7 else f"{value / 1e9:.3f}"


def table(heading: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = [heading, ["---"] * len(heading), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


TABLES: dict[str, Callable[[], list[str]]] = {
    "assumptions": assumptions,
    "operations": operations,
    "communication": communication,
    "contexts": contexts,
    "mixtures": mixtures,
}


def filled(document: str) -> str:
    """The document with every table as it is computed now.

    Raises:
        ValueError: a table without its marks.
    """
    for name, make in TABLES.items():
        marks = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", flags=re.DOTALL)
        text = "\n".join(make()) + "\n"
        document, count = marks.subn(lambda match, text=text: match[1] + text + match[2], document)
        if count != 1:
            raise ValueError(
                f"{DOCUMENT.name} needs <!-- table: {name} --> and <!-- end --> once, has it {count} times"
            )
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into scaling.md")
    if parser.parse_args().write:
        DOCUMENT.write_text(filled(DOCUMENT.read_text()))
        return
    for name, make in TABLES.items():
        print(f"{name}\n\n" + "\n".join(make()) + "\n")


if __name__ == "__main__":
    main()
