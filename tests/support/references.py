"""Independent forward passes in float64: loops over batch, heads and positions, written from the definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = Any


def prepare(x: Array, norm: str | None) -> Array:
    if norm == "layer":
        x = x - x.mean(-1, keepdims=True)
    return x if norm is None else x / np.sqrt((x**2).mean(-1, keepdims=True))


def turn(x: Array, position: int, base: float = 10000.0) -> Array:
    """One query or key turned by its position, with pairs of features as complex numbers."""
    half = len(x) // 2
    z = x[:half] + 1j * x[half:]
    z = z * np.exp(1j * position * base ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def attention(x: Array, q: Array, k: Array, v: Array, output: Array, heads: int, causal: bool, rope: bool = False) -> Array:
    """Attention on one sequence (length, d)."""
    length, dq, dv = len(x), len(q) // heads, len(v) // heads
    merged = np.zeros((length, heads * dv))
    for h in range(heads):
        queries = [x[i] @ q[h * dq : (h + 1) * dq].T / 3 for i in range(length)]
        keys = [x[i] @ k[h * dq : (h + 1) * dq].T / 3 for i in range(length)]
        values = [x[i] @ v[h * dv : (h + 1) * dv].T / 3 for i in range(length)]
        if rope:
            queries = [turn(a, i) for i, a in enumerate(queries)]
            keys = [turn(a, i) for i, a in enumerate(keys)]
        for i in range(length):
            seen = range(i + 1) if causal else range(length)
            weights = [math.exp(queries[i] @ keys[j] / dq) for j in seen]
            mixed = sum(weight * values[j] for weight, j in zip(weights, seen, strict=True)) / sum(weights)
            merged[i, h * dv : (h + 1) * dv] = mixed
    return merged @ output.T


def gelu(x: Array) -> Array:
    return np.vectorize(lambda t: 0.5 * t * (1 + math.erf(t / math.sqrt(2))), otypes=[float])(x)


def gpt(tokens: Array, w: dict[str, Array], heads: int, blocks: int, position: str, norm: str | None) -> Array:
    logits = []
    for sequence in tokens:
        x = w["tokens"][sequence]
        if position == "learned":
            x = 0.5 * x + 0.5 * w["positions"][: len(sequence)]
        for i in range(blocks):
            part = [w[f"blocks/attention/{name}"][i] for name in ("q", "k", "v", "output")]
            step = attention(prepare(x, norm), *part, heads, causal=True, rope=position == "rope")
            x = (1 - 1 / (2 * blocks)) * x + step / (2 * blocks)
            hidden = gelu(prepare(x, norm) @ w["blocks/mlp/hidden"][i].T) * math.sqrt(2)
            x = (1 - 1 / (2 * blocks)) * x + hidden @ w["blocks/mlp/output"][i].T / (2 * blocks)
        logits.append(prepare(x, norm) @ w.get("output", w["tokens"]).T)
    return np.array(logits)


def correlate(x: Array, w: Array, stride: tuple[int, int], padding: tuple[int, int]) -> Array:
    """The correlation of one image (height, width, channels)."""
    kh, kw, out, _ = w.shape
    height, width, channels = x.shape
    padded = np.zeros((height + 2 * padding[0], width + 2 * padding[1], channels))
    padded[padding[0] : padding[0] + height, padding[1] : padding[1] + width] = x
    y = np.zeros(((padded.shape[0] - kh) // stride[0] + 1, (padded.shape[1] - kw) // stride[1] + 1, out))
    for r in range(y.shape[0]):
        for c in range(y.shape[1]):
            patch = padded[r * stride[0] : r * stride[0] + kh, c * stride[1] : c * stride[1] + kw]
            y[r, c] = np.einsum("ijoc,ijc->o", w, patch)
    return y


def resmlp(rows: Array, w: dict[str, Array], blocks: int, block_depth: int, final_norm: bool = False) -> Array:
    logits = []
    for row in rows:
        x = w["input"] @ row
        for i in range(blocks):
            step = x
            for j in range(block_depth):
                step = np.abs(w["blocks/linear"][i, j] @ prepare(step, "rms"))
                step = step - step.mean()
            x = (1 - 1 / blocks) * x + step / blocks
        logits.append(w["output"] @ prepare(x, "rms" if final_norm else None))
    return np.array(logits)


def rescnn(images: Array, w: dict[str, Array], blocks: int, block_depth: int, final_norm: bool = False) -> Array:
    logits = []
    for image in images:
        x = correlate(image, w["input"], (1, 1), (1, 1))
        for i in range(blocks):
            step = x
            for j in range(block_depth):
                step = step / np.sqrt((step**2).mean())
                step = np.abs(correlate(step, w["blocks/conv2d"][i, j], (1, 1), (1, 1)))
                step = step - step.mean()
            x = (1 - 1 / blocks) * x + step / blocks
        logits.append(w["output"] @ prepare(x.mean(axis=(0, 1)), "rms" if final_norm else None))
    return np.array(logits)
