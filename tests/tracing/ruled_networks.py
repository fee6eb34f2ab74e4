"""Networks whose programs do not decide what some arrays are: the refusals, and the tables with the rules that the user gives."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from equinox_networks import KEYS, abstract
from flax_networks import linen
from jax import lax
from trace_cases import Case, attend, layer_norm, params, shape
from trace_rows import dense, linear
from vision_networks import weight

D = 32
X = shape(4, 7, D)


def weight_norm(p: Any, x: Any) -> Any:
    """A direction and a length for each output (Salimans and Kingma 2016)."""
    w = p["length"] * p["direction"] / jnp.linalg.norm(p["direction"], axis=0, keepdims=True)
    return jax.nn.relu(x @ w + p["b"]) @ p["out"]


def spectral_norm(p: Any, x: Any) -> Any:
    """A weight over its largest singular value, by power steps."""
    u = jnp.ones(48) / 48**0.5
    for _ in range(2):
        v = p["w"] @ u
        v = v / jnp.linalg.norm(v)
        u = v @ p["w"]
        u = u / jnp.linalg.norm(u)
    return jax.nn.relu(x @ (p["w"] / (v @ p["w"] @ u))) @ p["out"]


def dora(p: Any, x: Any) -> Any:
    """The direction of a weight with a low-rank term, and a magnitude for each output."""
    w = lax.stop_gradient(p["w"]) + p["a"] @ p["b"]
    w = p["magnitude"] * w / jnp.linalg.norm(w, axis=0, keepdims=True)
    return x @ w


def perceiver(p: Any, x: Any) -> Any:
    """Latents are normed, attend to the input, then to each other."""
    z = jnp.broadcast_to(layer_norm(p["latents"], p["gain"]), (4, 5, D))
    q, k, v = ((y @ p[name]).reshape(4, -1, 4, 8) for name, y in (("q", z), ("k", x), ("v", x)))
    z = z + attend(q, k, v).reshape(4, 5, D) @ p["o"]
    return z.mean(1) @ p["out"]


def hypernetwork(p: Any, x: Any) -> Any:
    """Weights of layers are made from learned embeddings of the layers."""
    for i in range(2):
        w = (jax.nn.relu(p["codes"][i] @ p["a"]) @ p["b"]).reshape(D, D)
        x = jnp.tanh(x @ w)
    return x @ p["out"]


def long_filter(p: Any, x: Any) -> Any:
    """A filter as long as the sequence, by Fourier transforms."""
    y = jnp.fft.irfft(jnp.fft.rfft(x @ p["in"], 14, axis=1) * jnp.fft.rfft(p["filter"], 14, axis=0), 14, axis=1)[:, :7]
    return (y + x * p["skip"]) @ p["out"]


def cosine_head(p: Any, x: Any) -> Any:
    """Cosines between features and the columns of a weight, over a learned temperature."""
    y = jnp.tanh(x @ p["in"])
    y = y / jnp.linalg.norm(y, axis=-1, keepdims=True)
    return y @ (p["w"] / jnp.linalg.norm(p["w"], axis=0)) / p["temperature"]


def standardised(p: Any, x: Any) -> Any:
    """Kernels of mean 0 and variance 1 (Qiao et al. 2019)."""
    k = p["k"]
    k = (k - k.mean((0, 1, 2))) / jnp.sqrt(k.var((0, 1, 2)) + 1e-5)
    y = lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(y + p["b"]).mean((1, 2)) @ p["out"]


def recurrent_start(p: Any, x: Any) -> Any:
    """A recurrent network with a learned first state."""
    start = jnp.broadcast_to(p["start"], (4, 16))
    step = lambda h, x: (jnp.tanh(x @ p["w"] + h @ p["u"] + p["b"]), None)  # noqa: E731
    return lax.scan(step, start, jnp.swapaxes(x, 0, 1))[0] @ p["out"]


def factors(p: Any, x: Any) -> Any:
    """A weight that is a product of two, multiplied first."""
    return jax.nn.relu(x @ (p["a"] @ p["b"])) @ p["out"]


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = nn.relu(nn.WeightNorm(nn.Dense(48, name="wide"), name="norm")(x))
        return nn.Dense(5, name="head")(y)


class EquinoxNormed(eqx.Module):
    wide: eqx.nn.WeightNorm
    head: eqx.nn.Linear

    def __init__(self) -> None:
        self.wide = eqx.nn.WeightNorm(eqx.nn.Linear(D, 48, key=KEYS[0]))
        self.head = eqx.nn.Linear(48, 5, key=KEYS[1])

    def __call__(self, x: Any) -> Any:
        return self.head(jax.nn.relu(self.wide(x)))


def haiku_bilinear(x: Any) -> Any:
    """A temperature that is divided by, written with haiku's own parameters."""
    y = hk.Linear(16, with_bias=False)(x)
    return y / hk.get_parameter("temperature", [], init=jnp.ones)


ANOTHER = "multiplied with another parameter"
ITSELF = "of the parameter itself"
CASES = [
    Case(
        "weight norm",
        lambda: (weight_norm, params(direction=(D, 48), length=(48,), b=(48,), out=(48, 5)), X),
        {"direction": linear(48, D), "length": ("Scale", (1, 1, 48)), "b": ("Bias", (1, 1, 48)), "out": linear(5, 48)},
        rules={"direction": "linear io", "length": "scale"},
        refused={"direction": "another parameter", "length": "another parameter"},
    ),
    Case(
        "spectral norm",
        lambda: (spectral_norm, params(w=(D, 48), out=(48, 5)), X),
        {"w": linear(48, D), "out": linear(5, 48)},
        rules={"w": "linear io"},
        refused={"w": ""},
    ),
    Case(
        "dora",
        lambda: (dora, params(w=(D, 48), a=(D, 2), b=(2, 48), magnitude=(48,)), X),
        {"w": ("frozen",), "a": linear(2, D), "b": linear(48, 2), "magnitude": ("Scale", (1, 1, 48))},
        rules={"w": "frozen", "{a,b}": "linear io", "magnitude": "scale"},
        refused={"w": "", "a": "", "b": "", "magnitude": ""},
    ),
    Case(
        "perceiver",
        lambda: (perceiver, params(latents=(5, D), gain=(D,), q=(D, D), k=(D, D), v=(D, D), o=(D, D), out=(D, 3)), X),
        {
            "latents": ("Embed", (1, 5, D)),
            "gain": ("Scale", (1, 1, D)),
            **dict.fromkeys("qkvo", linear(D, D)),
            "out": linear(3, D),
        },
        rules={"latents": "embed"},
        refused={"latents": ITSELF},
    ),
    Case(
        "hypernetwork",
        lambda: (hypernetwork, params(codes=(2, 6), a=(6, 16), b=(16, D * D), out=(D, 3)), X),
        {"codes": ("Embed", (1, 2, 6)), "a": linear(16, 6), "b": linear(D * D, 16), "out": linear(3, D)},
        rules={"codes": "embed"},
        refused={"codes": ANOTHER, "a": ANOTHER},
    ),
    Case(
        "long filter",
        lambda: (long_filter, params(**{"in": (D, D)}, filter=(7, D), skip=(D,), out=(D, 3)), X),
        {"in": linear(D, D), "filter": ("Scale", (1, 1, 7 * D)), "skip": ("Scale", (1, 1, D)), "out": linear(3, D)},
        rules={"filter": "scale"},
        refused={"filter": "it is used by the primitive fft, of which nothing is known"},
    ),
    Case(
        "cosines",
        lambda: (cosine_head, params(**{"in": (D, 16)}, w=(16, 5), temperature=()), X),
        {"in": linear(16, D), "w": linear(5, 16), "temperature": ("Scale", (1, 1, 1))},
        rules={"w": "linear io", "temperature": "scale"},
        refused={"w": "", "temperature": "data is divided by it"},
    ),
    Case(
        "standardised kernels",
        lambda: (standardised, params(k=(3, 3, 4, 8), b=(8,), out=(8, 5)), shape(2, 8, 8, 4)),
        {"k": ("Conv2D", (9, 8, 4)), "b": ("Bias", (1, 1, 8)), "out": linear(5, 8)},
        rules={"k": "conv kkio"},
        refused={"k": ""},
    ),
    Case(
        "learned start",
        lambda: (recurrent_start, params(start=(16,), w=(D, 16), u=(16, 16), b=(16,), out=(16, 3)), X),
        {
            "start": ("Bias", (1, 1, 16)),
            "w": linear(16, D),
            "u": linear(16, 16),
            "b": ("Bias", (1, 1, 16)),
            "out": linear(3, 16),
        },
        rules={"start": "bias"},
        refused={"start": "it is the initial carry of a loop"},
    ),
    Case(
        "a product of two weights",
        lambda: (factors, params(a=(D, 6), b=(6, 48), out=(48, 3)), X),
        {"a": linear(6, D), "b": linear(48, 6), "out": linear(3, 48)},
        rules={"{a,b}": "linear io"},
        refused={"a": ANOTHER, "b": ANOTHER},
    ),
    Case(
        "linen: weight norm",
        linen(Normed(), X),
        {
            "wide/kernel": linear(48, D),
            "wide/bias": ("Bias", (1, 1, 48)),
            "norm/wide/kernel/scale": ("Scale", (1, 1, 48)),
            **dense("head", 5, 48),
        },
        rules={"wide/kernel": "linear io"},
        refused={"wide/kernel": ITSELF},
    ),
    Case(
        "equinox: weight norm",
        lambda: (abstract(EquinoxNormed), shape(D)),
        {
            "wide/layer/weight": linear(48, D),
            "wide/layer/bias": ("Bias", (1, 1, 48)),
            "wide/g": ("Scale", (1, 1, 48)),
            **weight("head", 5, 48),
        },
        rules={"wide/layer/weight": "linear oi", "wide/g": "scale"},
        refused={"wide/layer/weight": "", "wide/g": ""},
    ),
    Case(
        "haiku: temperature",
        lambda: (hk.transform(haiku_bilinear), X),
        {"linear/w": linear(16, D), "~/temperature": ("Scale", (1, 1, 1))},
        rules={"**/temperature": "scale"},
        refused={"~/temperature": "data is divided by it"},
    ),
]
