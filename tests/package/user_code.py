"""A user's program as type checkers see it: mypy and pyright read this file in strict mode, and nobody runs it."""

from pathlib import Path
from typing import Any, assert_type

import jax
import modula_rs as mr
import numpy as np
import optax


def own_modules() -> None:
    m = mr.Linear(10, 64) @ mr.ReLU() @ (0.9 * mr.Identity() + 0.1 * mr.Linear(64, 64)) ** 4 @ mr.Linear(64, 784)
    assert_type(m, mr.Module)
    assert_type(m.mass, float)
    assert_type(m.leaves, list[mr.Leaf])
    w = m.initialize(0)
    update, vectors = m.normalize(w, vectors=None)
    again, vectors = m.normalize(update, vectors=vectors)
    w = [a - 0.1 * u for a, u in zip(w, m.dualize(again), strict=True)]
    mr.set_num_threads(2)
    assert_type(mr.num_threads(), int)


def in_optax(m: mr.Module, w: list[Any]) -> None:
    optimizer = optax.chain(optax.scale_by_adam(), mr.optax.scale_by_modular_norm(m, "dualize"), optax.scale(-0.1))
    transformation: optax.GradientTransformation = mr.optax.scale_by_modular_norm(m)
    transformation.init(w)
    optimizer.init(w)


def any_network(x: jax.Array) -> None:
    def apply(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        return x @ params["w"]

    net = mr.trace(apply, {"w": x}, x, rules={"w": "linear io"}, masses=mr.tracing.Masses(blocks=2.0))
    assert_type(net, mr.tracing.Network)
    for leaf in net.leaves:
        assert_type(leaf.path, str)
        assert_type(leaf.kind, str)
    net.save(Path("net.json"))
    assert_type(mr.load("net.json"), mr.tracing.Network)


def lab(m: mr.Module, w: list[Any]) -> None:
    data = mr.data.digits()
    assert_type(data, mr.data.Examples)
    table = mr.transfer.sweep(lambda size: mr.ResMLP(size.width, size.depth, 1, 64, 10), data, widths=[8], depths=[2])
    assert_type(table, mr.transfer.Table)
    assert_type(mr.transfer.report(table), str)
    mr.checkpoint.save("run.safetensors", m, w, step=3)
    assert_type(mr.checkpoint.load("run.safetensors", m, w).step, int)


class Sine(mr.Bond):
    sensitivity = 1.0
    sharpness = mr.Sharpness(0, 0, 1)

    def forward(self, x: Any, w: Any) -> Any:
        return np.sin(x)


class Gain(mr.Atom):
    shape = ()
    mass = 0.5

    def forward(self, x: Any, w: Any) -> Any:
        return x * w[0]

    def initialize(self, key: Any = 0, dtype: Any = None) -> list[Any]:
        return [np.ones((), np.float32)]

    def norm(self, w: Any, **options: Any) -> Any:
        return abs(w[0])

    def normalize(self, w: Any, target_norm: Any = 1.0, **options: Any) -> Any:
        return [np.sign(w[0]) * target_norm]

    def dualize(self, g: Any, target_norm: Any = 1.0, **options: Any) -> Any:
        return self.normalize(g, target_norm)


def composed() -> mr.Module:
    return mr.Linear(3, 3) @ Sine() @ Gain()
