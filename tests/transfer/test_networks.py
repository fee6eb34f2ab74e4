"""Traced networks in sweeps, single runs and the coordinate check, against the module of the same shape."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest
from flax import nnx
from modula_rs import data, transfer
from modula_rs.transfer import coordinates, networks, single

RECIPE = transfer.Recipe(6, 16)
SIZE = transfer.Size(8, 1)


def dots(shape: tuple[int, ...] = (6,)) -> data.Examples:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, *shape)).astype(np.float32)
    labels = (x.reshape(400, -1) @ rng.standard_normal((math.prod(shape), 3))).argmax(axis=1).astype(np.int32)
    return data.Examples("dots", x, labels, held_out=40)


def module(size: transfer.Size) -> mr.Module:
    return mr.Linear(3, size.width) @ mr.Tanh() @ mr.Linear(size.width, 6)


def apply(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["in"]) @ p["out"]


def twin(size: transfer.Size) -> Any:
    """The same network in plain JAX, with kernels (in, out), from the weights of seed 0."""
    first, last = module(size).initialize(0)
    return mr.trace(apply, {"in": jnp.asarray(first.T), "out": jnp.asarray(last.T)}, jnp.ones((4, 6)))


@pytest.mark.slow
def test_a_sweep_of_a_twin_has_the_losses_of_the_module() -> None:
    options: dict[str, Any] = {
        "widths": [8],
        "depths": [1],
        "rates": [0.1],
        "recipe": RECIPE,
        "optimizers": ["normed-adam", "dualized-sgd", "adam"],
    }
    ours, theirs = transfer.sweep(twin, dots(), **options), transfer.sweep(module, dots(), **options)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.optimizer, one.size, one.rate, one.seed) == (other.optimizer, other.size, other.rate, other.seed)
        # Norms are within 1 % of their targets, and the two have their matrices transposed.
        assert one.train_loss == pytest.approx(other.train_loss, rel=0.01 if one.optimizer != "adam" else 1e-4)


@pytest.mark.slow
def test_the_coordinate_check_of_a_twin_is_that_of_the_module() -> None:
    options: dict[str, Any] = {"optimizers": ["normed-adam"], "rates": [0.1], "steps": 2}
    ours = transfer.coordinate_check(twin, dots(), [SIZE], **options)
    theirs = transfer.coordinate_check(module, dots(), [SIZE], **options)
    names = {"linear": "in", "linear_1": "out", "network": "network"}
    found = {(entry.step, entry.path): entry for entry in ours}
    assert found.keys() == {(entry.step, names[entry.path]) for entry in theirs}
    for entry in theirs:
        own = found[entry.step, names[entry.path]]
        assert own.change == pytest.approx(entry.change, rel=0.02)
        assert own.alignment == pytest.approx(entry.alignment, rel=0.03)


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        return x + nn.Dense(self.width, name="up")(nn.relu(nn.LayerNorm(name="norm")(x))), None


class Scanned(nn.Module):
    width: int
    depth: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Dense(self.width)(x.reshape(len(x), -1))
        stack = nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth)
        return nn.Dense(3)(stack(self.width)(x, None)[0])


@pytest.mark.slow
def test_each_array_is_observed_where_it_meets_data() -> None:
    found = transfer.coordinate_check(
        lambda size: Scanned(size.width, size.depth), dots((3, 2)), [transfer.Size(8, 3)], optimizers=["normed-adam"], rates=[0.1], steps=2
    )
    assert all(entry.change > 0 and entry.alignment > 0 for entry in found)
    for entry in found:
        if entry.path.endswith("bias"):
            assert entry.alignment == pytest.approx(1, rel=0.02), entry.path  # what a bias adds is its own size
        elif entry.path != coordinates.NETWORK:
            assert entry.alignment <= 1.02, entry.path  # what a matrix or a gain adds is bounded by its norm times the input
    assert len(found) == 2 * (8 + 1)


def branches(p: Any, x: Any) -> Any:
    y = jax.lax.cond(x.sum() > 1e9, lambda x: x, lambda x: 2 * x, x) @ p["in"]
    return jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["square"])), (0, y))[1] @ p["out"]


def test_branches_and_loops_that_depend_on_values_are_run_as_they_are() -> None:
    rng = np.random.default_rng(0)
    w = {name: rng.standard_normal(size).astype(np.float32) for name, size in {"in": (6, 8), "square": (8, 8), "out": (8, 3)}.items()}
    x = rng.standard_normal((5, 6)).astype(np.float32)
    net = mr.trace(branches, w, x)
    results, met = net.observer(x, w).run(jax.tree.leaves(w))
    np.testing.assert_allclose(results[0], branches(w, x), rtol=1e-5)
    assert {path: len(calls) for path, calls in met.items()} == {"in": 1, "square": 2, "out": 1}
    hidden = np.tanh(2 * x @ w["in"] @ w["square"])
    np.testing.assert_allclose(met["square"][1].output, hidden @ w["square"], rtol=1e-4, atol=1e-5)
    assert met["square"][1].input_size == pytest.approx(np.sqrt((hidden**2).mean()), rel=1e-4)


class Model(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.first, self.norm, self.last = nnx.Linear(6, width, rngs=rngs), nnx.BatchNorm(width, rngs=rngs), nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.last(nnx.relu(self.norm(self.first(x))))


class Normalised(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(3)(nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(self.width)(x))))


def init(width: int) -> Any:
    return lambda key: {"in": jax.random.normal(key, (6, width)) / 3, "out": jax.random.normal(key, (width, 3)) / 3}


MODELS = {
    "linen": lambda size: Normalised(size.width),
    "linen pair": lambda size: (Normalised(size.width).apply, lambda key: Normalised(size.width).init(key, jnp.ones((2, 6)))),
    "nnx": lambda size: Model(size.width, nnx.Rngs(0)),
    "Equinox": lambda size: eqx.nn.MLP(6, 3, size.width, 2, key=jax.random.key(0)),
    "Haiku": lambda size: hk.transform(lambda x: hk.nets.MLP([size.width, 3])(x)),
    "plain": lambda size: (apply, init(size.width)),
    "traced": lambda size: mr.trace(apply, init(size.width), jnp.ones((2, 6))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_every_library_is_swept_and_not_trained_twice(name: str, tmp_path: Any) -> None:
    options: dict[str, Any] = {"widths": [8], "depths": [1], "optimizers": ["normed-adam", "adam"], "rates": [0.25, 2**-6], "out": tmp_path}
    table = transfer.sweep(MODELS[name], dots(), seeds=2, recipe=RECIPE, **options)
    losses = [row.train_loss for row in table]
    assert len(losses) == 8
    assert max(losses) < 5
    points = (tmp_path / "points.csv").read_bytes()
    assert transfer.sweep(MODELS[name], dots(), seeds=2, recipe=RECIPE, **options).rows == table.rows
    assert (tmp_path / "points.csv").read_bytes() == points  # it continued, and nothing was left to do
    with pytest.raises(ValueError, match="holds points of another network"):
        transfer.sweep(MODELS[name], dots(), recipe=RECIPE, start="norm", **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linen", "nnx", "plain"])
def test_one_run_goes_on_to_the_same_bits(name: str, tmp_path: Any) -> None:
    net = networks.network(MODELS[name](SIZE), dots(), 16)

    class Stopped(Exception):
        pass

    def stop(entry: single.Entry) -> None:
        if entry.step >= 4:
            raise Stopped

    given = (net, dots(), ("normed-adam", transfer.OPTIMIZERS["normed-adam"]), 0.2)
    whole = single.train(*given, tmp_path / "whole", recipe=RECIPE, every=2)
    with pytest.raises(Stopped):
        single.train(*given, tmp_path / "parts", recipe=RECIPE, every=2, report=stop)
    resumed = single.train(*given, tmp_path / "parts", recipe=RECIPE, every=2, resume=True)
    assert [entry[:3] for entry in resumed] == [entry[:3] for entry in whole]
    other = networks.network(MODELS[name](transfer.Size(9, 1)), dots(), 16)
    with pytest.raises(ValueError, match="holds another network"):
        single.train(other, *given[1:], tmp_path / "parts", recipe=RECIPE, every=2, resume=True)


@pytest.mark.slow
def test_frozen_statistics_are_not_moved_by_any_optimizer() -> None:
    from modula_rs.transfer.training import Lane, Program

    net = networks.network(MODELS["linen"](SIZE), dots(), 16)
    program = Program(net, dots(), {"adam": transfer.OPTIMIZERS["adam"]}, RECIPE, jax.devices()[0])
    lanes = program.begin([Lane("adam", 0.1, 0)])
    before = jax.tree.leaves(lanes.state.frozen)
    assert [leaf.shape for leaf in before] == [(1, 8), (1, 8)]
    weights = jax.tree.map(np.asarray, lanes.state.weights)
    lanes.advance(2)
    np.testing.assert_array_equal(jax.tree.leaves(lanes.state.frozen)[0], np.zeros((1, 8)))
    assert all((a != b).any() for a, b in zip(jax.tree.leaves(weights), jax.tree.leaves(lanes.state.weights), strict=True))


def test_where_the_weights_start() -> None:
    net = networks.network(MODELS["plain"](SIZE), dots(), 16)
    np.testing.assert_array_equal(networks.starting_weights(net, "own", 3)["in"], init(8)(jax.random.key(3))["in"])
    np.testing.assert_allclose(np.linalg.norm(networks.starting_weights(net, "norm", 3)["in"], 2), (8 / 6) ** 0.5, rtol=1e-5)
    shapes = mr.trace(apply, jax.eval_shape(init(8), jax.random.key(0)), jnp.ones((2, 6)))
    np.testing.assert_array_equal(networks.starting_weights(shapes, "own", 3)["in"], shapes.initialize(3)["in"])
    with pytest.raises(ValueError, match="start must be one of 'own', 'norm', got 'cold'"):
        transfer.sweep(module, dots(), widths=[8], depths=[1], start="cold")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "a network is a Module, a traced network or a model that can be traced, got None"),
        (3, "does not take a batch of dots, float32 of shape .16, 6.: apply must be a function"),
        ((apply, {"in": jnp.ones((5, 8)), "out": jnp.ones((8, 3))}), "the network does not take a batch of dots, float32 of shape"),
        (lambda: mr.trace(apply, {"in": jnp.ones((5, 8)), "out": jnp.ones((8, 3))}, jnp.ones((2, 5))), "does not take a batch of dots"),
        ((apply, {"in": jnp.ones((6, 8)), "out": jnp.ones((8, 2))}), "the network has 2 outputs for the 3 classes of dots"),
        ((lambda p, x: x @ jnp.exp(p["a"]), {"a": jnp.ones((6, 3))}), "cannot tell what an array is"),
    ],
)
def test_what_cannot_be_trained_is_refused(made: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        networks.network(made() if message.startswith("does") and callable(made) else made, dots(), 16)


_IDENTITY = """
import flax.linen as nn, jax, jax.numpy as jnp, modula_rs as mr
from modula_rs.transfer import networks
class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.gelu(nn.Dense(8)(x))))
net = mr.trace(Net(), jax.ShapeDtypeStruct((4, 6), "float32"))
print(networks.network_identity(net, "own"), net.fingerprint)
"""


@pytest.mark.slow
def test_a_network_is_recognised_in_every_process() -> None:
    seen = set()
    for seed in ("1", "2"):
        made = subprocess.run(
            [sys.executable, "-c", _IDENTITY],
            env={**__import__("os").environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        seen.add(made.stdout)
    assert len(seen) == 1
