"""Does scale="unit" matter where weights are stored in few bits? A perceptron on digits, for each format, width and scale.

    python benches/low_precision.py                                                                  # both tables of
    python benches/low_precision.py --widths 64 --scales 1 64 4096 --formats bfloat16 float8_e4m3fn  # docs/constraints.md

"copy": float32 weights are trained, and every step computes with a copy of them in the format. "only": the weights are rounded to the
format after each step, and nothing else is kept.
"""

from __future__ import annotations

import argparse

import ml_dtypes
import modula_rs as mr
import numpy as np
from sklearn.datasets import load_digits

FORMATS = ("float32", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def network(width: int, scale: float | str) -> mr.Module:
    """Three Linears with GELU in between."""
    layers = (mr.Linear(width, 64, scale=scale), mr.Linear(width, width, scale=scale), mr.Linear(10, width, scale=scale))
    return layers[2] @ mr.GELU() @ layers[1] @ mr.GELU() @ layers[0]


def rounded(w: list[np.ndarray], fmt: str) -> list[np.ndarray]:
    """The weights as the format stores them, in float32; numbers beyond its range are saturated."""
    dtype = np.dtype(getattr(ml_dtypes, fmt, fmt))
    largest = float(ml_dtypes.finfo(dtype).max)
    return [np.clip(a, -largest, largest).astype(dtype).astype(np.float32) for a in w]


def loss_and_slope(out: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Cross entropy, and its derivative in the output."""
    p = np.exp(out - out.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    rows = np.arange(len(labels))
    loss = float(-np.log(np.maximum(p[rows, labels], 1e-30)).mean())
    p[rows, labels] -= 1
    return loss, p / len(labels)


def train(width: int, scale: float | str, fmt: str, kept: str, seed: int, steps: int) -> float:
    """The loss on all digits after dualized SGD with momentum, computed with the stored weights."""
    x, y = load_digits(return_X_y=True)
    x = x.astype(np.float32)
    x /= np.sqrt((x * x).mean(-1, keepdims=True))
    m = network(width, scale)
    rng = np.random.default_rng(seed)
    w = m.initialize(seed)
    average = [np.zeros_like(a) for a in w]
    for step in range(steps):
        chosen = rng.integers(0, len(x), 64)
        used = rounded(w, fmt)
        out, pullback = m.vjp(x[chosen], used)
        _, slope = loss_and_slope(out, y[chosen])
        average = [0.9 * a + 0.1 * g for a, g in zip(average, pullback(slope)[1], strict=True)]
        rate = 0.5 * (1 - step / steps)
        w = [a - rate * u for a, u in zip(used if kept == "only" else w, m.dualize(average), strict=True)]
    return loss_and_slope(m(x, rounded(w, fmt)), y)[0]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--scales", nargs="+", default=["1", "unit"], help='numbers, or "unit"')
    options = parser.parse_args()
    print(f"| width | format | kept | {' | '.join(f'scale {scale}' for scale in options.scales)} |", flush=True)
    print("|---|---|---|" + "---|" * len(options.scales), flush=True)
    for width in options.widths:
        for fmt in options.formats:
            for kept in ("copy",) if fmt == "float32" else ("copy", "only"):
                cells = []
                for given in options.scales:
                    scale = given if given == "unit" else float(given)
                    losses = [train(width, scale, fmt, kept, seed, options.steps) for seed in range(options.seeds)]
                    cells.append(f"{np.mean(losses):.4f} ({min(losses):.4f} to {max(losses):.4f})")
                print(f"| {width} | {fmt} | {kept} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
