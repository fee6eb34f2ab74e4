"""The result of `mr.trace`: maps on every network against a float64 reference made from the table alone, structures, twins, optax."""

from __future__ import annotations

import itertools
from collections import namedtuple
from typing import Any

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import optax
import pytest
from modula_rs import tracing
from test_trace_networks import CASES, named
from trace_cases import Case, params, shape


def numbers(structure: Any, seed: int = 0) -> Any:
    """NumPy parameters in the structure of the given ones."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float64), structure)


def matrices(leaf: tracing.Leaf) -> list[tuple[Any, float]]:
    """For each matrix, row or vector of an array: the indices of its elements, shaped (out, in), and the size at which its norm is 1.

    They are computed from the layout's letters, digit by digit.
    """
    layout = leaf.layout
    positions = np.arange(int(np.prod(leaf.shape, dtype=int))).reshape(layout.digits)
    starts = np.cumsum([0, *layout.sections])
    pieces = [(slice(None),) * len(layout.digits)]
    if layout.sections:
        pieces = [
            tuple(slice(a, b) if at == layout.cut else slice(None) for at in range(len(layout.digits)))
            for a, b in itertools.pairwise(starts)
        ]
    made = []
    for piece in pieces:
        part = positions[piece]
        counted = [at for at, role in enumerate(layout.roles) if role in "l/.k"]
        out = [at for at, role in enumerate(layout.roles) if role == "o"]
        into = [at for at, role in enumerate(layout.roles) if role == "i"]
        ordered = part.transpose([*counted, *out, *into])
        sizes = [int(np.prod([part.shape[at] for at in group], dtype=int)) for group in (counted, out, into)]
        taps = layout.taps if leaf.kind in ("Conv2D", "Scale") else 1
        for block in ordered.reshape(sizes):
            if leaf.kind == "Embed":
                made += [(row, 1.0) for row in block.T]
            else:
                made.append((block, (sizes[1] / sizes[2]) ** 0.5 / taps if leaf.kind in ("Linear", "Conv2D") else 1.0 / taps))
    return made


def reference(leaf: tracing.Leaf, array: np.ndarray, name: str) -> np.ndarray | None:
    """The map on one array, by SVD in float64."""
    flat = np.asarray(array, np.float64).ravel()
    result = np.zeros_like(flat)
    for at, unit in matrices(leaf) if leaf.roles else []:
        block = flat[at]
        match leaf.kind:
            case "Linear" | "Conv2D":
                u, s, vt = np.linalg.svd(block, full_matrices=False)
                if name == "dualize" and s[-1] < 2e-3 * s[0]:
                    return None  # no accuracy is promised for so small a singular value
                made = u @ vt if name == "dualize" else block / s[0]
            case "Scale":
                made = np.sign(block) if name == "dualize" else block / np.abs(block).max()
            case _:
                made = block / np.sqrt((block**2).mean())
        result[at] = made * unit * leaf.target
    return result.reshape(array.shape)


@named(CASES)
def test_maps_are_those_of_the_table(network: Case) -> None:
    net = mr.trace(*network.build(), rules=network.rules)
    weights = numbers(net._source.params)
    shared = {leaf.path for leaf in net.leaves if len(leaf.roles) > 1}
    for name in ("normalize", "dualize"):
        made = getattr(net, name)(weights)
        assert jax.tree.structure(made) == jax.tree.structure(weights)
        assert float(net.norm(made)) == pytest.approx(1, rel=0.02)
        for leaf, ours, given in zip(net.leaves, jax.tree.leaves(made), jax.tree.leaves(weights), strict=True):
            if leaf.path not in shared:
                theirs = reference(leaf, given, name)
                if theirs is None:
                    continue
                # Directions are within 0.01 of orthogonal above a thousandth of the largest singular value, norms within 1 %.
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.02 * np.abs(theirs).max(initial=0) + 1e-12, err_msg=leaf.path)


def test_updates_are_those_of_the_module() -> None:
    """A twin of MLP with Flax's kernels (in, out) and the same masses gets the same updates up to rounding."""

    def apply(p: Any, x: Any) -> Any:
        for name in ("a", "b", "c"):
            x = x @ p[name]
            x = jax.nn.relu(x) if name != "c" else x
        return x

    twin = mr.Linear(10, 64) @ mr.ReLU() @ mr.Linear(64, 64) @ mr.ReLU() @ mr.Linear(64, 32)
    net = mr.trace(apply, params(a=(32, 64), b=(64, 64), c=(64, 10)), shape(8, 32))
    assert [leaf.mass for leaf in net.leaves] == [1, 1, 1]
    w = twin.initialize(0)
    tree = {name: array.T.copy() for name, array in zip("abc", w, strict=True)}
    for name in ("normalize", "dualize", "project", "radius"):
        for ours, theirs in zip(getattr(net, name)(tree).values(), getattr(twin, name)(w), strict=True):
            np.testing.assert_allclose(ours, theirs.T, rtol=0, atol=2e-3 * np.abs(theirs).max())
    assert net.norm(tree) == pytest.approx(twin.norm(w), rel=1e-3)
    assert net.dual_norm(tree) == pytest.approx(twin.dual_norm(w), rel=1e-4)


Layers = namedtuple("Layers", ["kernel", "bias", "nothing"])


def dense(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["first"].kernel + p["first"].bias) @ p["last"][0]


def structured(kernel: Any, bias: Any, last: Any) -> Any:
    return {"first": Layers(kernel, bias, None), "last": [last]}


@pytest.mark.slow
def test_structures_come_back_as_they_came() -> None:
    given = structured(shape(6, 5), shape(5), shape(5, 3))
    net = mr.trace(dense, given, shape(4, 6))
    rng = np.random.default_rng(0)
    for to in (np.asarray, jnp.asarray):
        w = structured(*(to(rng.standard_normal(size).astype(np.float32)) for size in ((6, 5), (5,), (5, 3))))
        for made in (net.normalize(w), net.dualize(w), net.project(w), net.radius(w), net.regularize(w, 0.1)):
            assert jax.tree.structure(made) == jax.tree.structure(w)
            assert type(made["last"][0]) is type(w["last"][0])
        warm, vectors = net.normalize(w, vectors=None)
        again, _ = net.normalize(w, vectors=vectors)
        np.testing.assert_allclose(warm["last"][0], again["last"][0], rtol=0.02)
        assert net(jnp.ones((4, 6)), w).shape == (4, 3)
    fresh = net.initialize(0)
    assert float(net.norm(fresh)) > 0
    np.testing.assert_allclose(np.linalg.norm(fresh["last"][0], 2), (3 / 5) ** 0.5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"without last/0 and with last/1|without last/0"):
        net.dualize({"first": w["first"], "last": []})
    with pytest.raises(ValueError, match=r"update of last/0|gradient of last/0 must have shape \(5, 3\), got \(3, 5\)"):
        net.dualize({"first": w["first"], "last": [w["last"][0].T]})


def test_a_table_that_was_saved_gives_the_same_updates(tmp_path: Any) -> None:
    net = mr.trace(dense, structured(shape(6, 5), shape(5), shape(5, 3)), shape(4, 6))
    net.save(tmp_path / "net.json")
    loaded = mr.load(tmp_path / "net.json")
    w = net.initialize(1)
    for ours, theirs in zip(jax.tree.leaves(loaded.dualize(w)), jax.tree.leaves(net.dualize(w)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert loaded.fingerprint == net.fingerprint
    with pytest.raises(ValueError, match="has no program"):
        loaded(jnp.ones((4, 6)), w)


def test_in_optax() -> None:
    net = mr.trace(dense, structured(shape(6, 5), shape(5), shape(5, 3)), shape(4, 6))
    w = jax.tree.map(jnp.asarray, net.initialize(1))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 6)), jnp.float32)
    optimizer = optax.chain(optax.scale_by_adam(), mr.optax.scale_by_modular_norm(net), optax.scale_by_learning_rate(0.1))
    state = optimizer.init(w)

    @jax.jit
    def step(w: Any, state: Any) -> Any:
        value, gradient = jax.value_and_grad(lambda w: jnp.mean((dense(w, x) - 1) ** 2))(w)
        update, state = optimizer.update(gradient, state, w)
        return optax.apply_updates(w, update), state, value, update

    first = None
    for _ in range(30):
        w, state, value, update = step(w, state)
        first = value if first is None else first
        assert float(net.norm(update)) == pytest.approx(0.1, rel=0.03)
    assert value < 0.2 * first
    frozen = optax.masked(mr.optax.scale_by_modular_norm(net, "dualize"), {"first": Layers(True, False, None), "last": [True]})
    update, _ = frozen.update(w, frozen.init(w), w)
    whole = net.dualize(w)
    np.testing.assert_allclose(update["last"][0], whole["last"][0], atol=1e-5)
    np.testing.assert_array_equal(update["first"].bias, w["first"].bias)


def test_a_frozen_array_is_not_moved() -> None:
    net = mr.trace(dense, structured(shape(6, 5), shape(5), shape(5, 3)), shape(4, 6), rules={"first/bias": "frozen"})
    w = numbers(net._source.params)
    assert not net.dualize(w)["first"].bias.any()
    np.testing.assert_array_equal(net.project(w)["first"].bias, w["first"].bias)
    part = mr.optax.scale_by_modular_norm(net, "dualize")
    update, _ = part.update(jax.tree.map(jnp.asarray, w), part.init(w))
    assert not update["first"].bias.any()
