"""A model's digest: a short text by which files say whose figures they hold. Compare two with
`records.digest.same_model`, not ==.

    digest = gates "-" weights

gates: `dense`, or 16 hex digits of the SHA-256 of all layers' gates: family, normalisation, cutoffs and centers in
float32. Every form in which a run is exported stores these bit for bit. Sharpness is left out, because it does not
decide which edges are open at evaluation.

weights: 8 float32 numbers in hex. Each is a sum over all parameters, of the inner product of the parameter, scaled to
norm 1, with random signs that its name seeds. A hash would not do, because one model has several roundings: a folder of
adapters holds the update in half precision, and what it gives with the base depends on the processor in the last
bits. On SmolLM2-135M this moves a sum by 7e-6 (1.5e-4 of the update's relative size), training by 4e-2, and 3e-4 is the
border. So adapters and an export with all weights of one run are the same model, and so is a model that was loaded
again; its base, or another run on it, is not.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from lit_sparse.attention.bridge import gates_of

_SUMS = 8


def digest_of(model: nn.Module) -> str:
    """The digest of a model without adapters, dense or sparse, on any device, as it is loaded in float32: weights that
    were rounded to bfloat16 on loading are another model's."""
    weights = ((name, tensor) for name, tensor in model.named_parameters() if ".edge_gate." not in name)
    return f"{_gates(model)}-{_weights(weights)}"


def digest_of_weights(weights: Iterable[tuple[str, Tensor]]) -> str:
    """The digest of some weights by name, to be compared like that of a model."""
    return f"weights-{_weights(weights)}"


def _weights(weights: Iterable[tuple[str, Tensor]]) -> str:
    sums, count = np.zeros(_SUMS), 0
    for name, tensor in weights:
        sums += _signed_sums(name, tensor.detach().float().cpu().numpy())
        count += 1
    digest: bytes = (sums / max(count, 1) ** 0.5).astype(">f4").tobytes()
    return digest.hex()


def _gates(model: nn.Module) -> str:
    gates = gates_of(model)
    found = hashlib.sha256()
    for gate in gates:
        found.update(f"{gate.family} {gate.config.normalisation}".encode())
        for tensor in (*gate.parameters(), gate.center):
            found.update(b"none" if tensor is None else tensor.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()[:16] if gates else "dense"


def _signed_sums(name: str, weights: Float[np.ndarray, "..."]) -> Float[np.ndarray, " sums"]:
    matrix = np.atleast_1d(weights).reshape(len(np.atleast_1d(weights)), -1)
    right = _signs(f"{name} columns", matrix.shape[1]).astype(np.float32)
    left = _signs(f"{name} rows", matrix.shape[0])
    norm = float(np.linalg.norm(matrix))
    return (left * (matrix @ right)).sum(0) / norm if norm else np.zeros(_SUMS)


def _signs(label: str, size: int) -> Float[np.ndarray, "size sums"]:
    bits = np.frombuffer(hashlib.shake_128(label.encode()).digest(size * _SUMS // 8), np.uint8)
    return np.unpackbits(bits).reshape(size, _SUMS) * 2.0 - 1.0
