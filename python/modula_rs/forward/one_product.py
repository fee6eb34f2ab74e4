"""Computes Linears with one input, such as queries, keys and values, as one product of matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from modula_rs import arrays
from modula_rs.forward.arithmetic import matmul

# One product saves a few per cent of a small GPT's gradient on one core of a CPU, and costs a copy that puts the weights side by side.
# Times of the whole gradient, over the times with three products. For 768 vectors: 0.96 at 32 features, 0.97 at 64, 0.99 at 128, 1.00 at
# 256, and at 768, in the blocks alone, 1.22. For 8 vectors: 0.96, 1.01 and 1.03 at 32, 64 and 96 features. For one vector: 1.03, 1.05 and
# 1.09.

#: Input features below which one product beats several.
FEATURES_BELOW = 128
#: Input vectors from which one product beats several.
VECTORS_FROM = 64


def outputs(leaves: Sequence[int], x: Any, weights: Mapping[int, Any]) -> dict[int, Any]:
    """The outputs of the Linears with these leaves, by leaf. Empty if applying each Linear on its own is faster, or raises an error."""
    ws = [weights[leaf] for leaf in leaves]
    if not _is_faster(x, ws):
        return {}
    import jax.numpy as jnp

    ends = [sum(w.shape[0] for w in ws[: count + 1]) for count in range(len(ws) - 1)]
    y = matmul(x, jnp.concatenate(ws))
    return dict(zip(leaves, jnp.split(y, ends, axis=-1), strict=True))


def _is_faster(x: Any, ws: Sequence[Any]) -> bool:
    features = ws[0].shape[-1]
    if len(ws) < 2 or features >= FEATURES_BELOW or len({(w.shape[-1], w.dtype) for w in ws}) > 1:
        return False
    if isinstance(x, tuple) or not arrays.is_floating(x.dtype) or x.shape[-1:] != (features,) or math.prod(x.shape[:-1]) < VECTORS_FROM:
        return False
    if "jax" not in (arrays.library(x), arrays.library(ws[0])):
        return False
    import jax

    return jax.default_backend() == "cpu"  # nothing was measured on other platforms
