"""Maps, optimizers and checkpoints of traced networks on pytrees of every kind, with arrays of every library."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections import OrderedDict
from typing import Any, NamedTuple

import equinox as eqx
import flax
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from modula_rs import tracing
from trace_cases import params, shape


class Pair(NamedTuple):
    kernel: Any
    value: Any  # as in attention: no array of nnx
    nothing: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    value: Any
    nothing: Any = None


@flax.struct.dataclass
class Struct:
    kernel: Any
    value: Any
    name: str = flax.struct.field(pytree_node=False, default="layer")


class Tree(eqx.Module):
    kernel: Any
    value: Any
    activation: Any = eqx.field(static=True, default=jnp.tanh)
    nothing: Any = None


def attribute(tree: Any, x: Any) -> Any:
    return jnp.tanh(x @ tree.kernel + tree.value)


def item(tree: Any, x: Any) -> Any:
    return jnp.tanh(x @ tree["kernel"] + tree["value"])


def state(kernel: Any, value: Any) -> Any:
    return nnx.State({"kernel": nnx.Param(kernel), "value": nnx.Param(value)})


KINDS = {
    "dict": (lambda k, v: {"kernel": k, "value": v, "nothing": None}, item, ["kernel", "value"]),
    "OrderedDict": (lambda k, v: OrderedDict(value=v, kernel=k), item, ["value", "kernel"]),
    "FrozenDict": (lambda k, v: freeze({"kernel": k, "value": v}), item, ["kernel", "value"]),
    "NamedTuple": (Pair, attribute, ["kernel", "value"]),
    "dataclass": (Layer, attribute, ["kernel", "value"]),
    "flax.struct": (Struct, attribute, ["kernel", "value"]),
    "Equinox": (Tree, attribute, ["kernel", "value"]),
    "nnx.State": (state, lambda tree, x: item({name: tree[name][...] for name in ("kernel", "value")}, x), ["kernel", "value"]),
    "tuple": (lambda k, v: (k, [v, None]), lambda p, x: jnp.tanh(x @ p[0] + p[1][0]), ["0", "1/0"]),
    "list": (lambda k, v: [{"a": k}, v], lambda p, x: jnp.tanh(x @ p[0]["a"] + p[1]), ["0/a", "1"]),
}


def drawn(make: Any, seed: int, to: Any = np.asarray) -> Any:
    rng = np.random.default_rng(seed)
    return make(*(to(rng.standard_normal(sizes).astype(np.float32)) for sizes in ((6, 5), (5,))))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("to", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_a_tree_comes_back_with_its_own_structure(name: str, to: Any) -> None:
    make, apply, paths = KINDS[name]
    net = mr.trace(apply, make(shape(6, 5), shape(5)), shape(4, 6))
    assert [leaf.path for leaf in net.leaves] == paths
    w = drawn(make, 0, to)
    expected = mr.trace(item, {"kernel": shape(6, 5), "value": shape(5)}, shape(4, 6))
    flat = dict(zip((path.rpartition("/")[2] for path in ("kernel", "value")), (None, None), strict=True))
    plain = drawn(lambda k, v: {"kernel": k, "value": v}, 0, to)
    for map_ in ("normalize", "dualize", "project", "radius"):
        made = getattr(net, map_)(w)
        assert jax.tree.structure(made) == jax.tree.structure(w)
        assert type(made) is type(w)
        theirs = getattr(expected, map_)(plain)
        ours = {leaf.ndim: leaf for leaf in jax.tree.leaves(made)}
        for array in theirs.values():
            assert type(ours[array.ndim]) is type(array)
            np.testing.assert_allclose(ours[array.ndim], array, rtol=1e-5, atol=1e-6)
    assert float(net.norm(w)) == pytest.approx(float(expected.norm(plain)), rel=1e-5)
    assert float(net.dual_norm(w)) == pytest.approx(float(expected.dual_norm(plain)), rel=1e-5)
    assert jax.tree.structure(net.regularize(w, 0.1)) == jax.tree.structure(w)
    assert net(jnp.ones((4, 6)), drawn(make, 0, jnp.asarray)).shape == (4, 5)
    assert flat.keys() == plain.keys()


@pytest.mark.parametrize("name", KINDS)
def test_optimizers_take_every_tree(name: str, tmp_path: Any) -> None:
    make, apply, _ = KINDS[name]
    net = mr.trace(apply, make(shape(6, 5), shape(5)), shape(4, 6))
    w = drawn(make, 0, jnp.asarray)
    optimizer = optax.chain(optax.scale_by_adam(), mr.optax.scale_by_modular_norm(net), optax.scale_by_learning_rate(0.1))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((4, 6)), jnp.float32)

    @jax.jit
    def step(w: Any, state: Any) -> Any:
        update, state = optimizer.update(jax.grad(lambda w: jnp.sum(apply(w, x) ** 2))(w), state, w)
        return optax.apply_updates(w, update), state, update

    state = optimizer.init(w)
    for _ in range(2):
        w, state, update = step(w, state)
        assert float(net.norm(update)) == pytest.approx(0.1, rel=0.03)
    mr.checkpoint.save(tmp_path / "run", net, w, state, step=2)
    fresh = jax.tree.map(jnp.zeros_like, w)
    saved = mr.checkpoint.load(tmp_path / "run", net, fresh, optimizer.init(fresh))
    assert saved.step == 2
    assert jax.tree.structure((saved.weights, saved.state)) == jax.tree.structure((w, state))
    for ours, theirs in zip(jax.tree.leaves((saved.weights, saved.state)), jax.tree.leaves((w, state)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    ours, theirs = step(saved.weights, saved.state), step(w, state)  # the run goes on to the same bits
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_dataclass_that_jax_does_not_know_is_explained() -> None:
    @dataclasses.dataclass
    class Loose:
        kernel: Any

    with pytest.raises(TypeError, match=r"must be an array, got Loose; register the class as a pytree: jax.tree_util.register_dataclass"):
        mr.trace(lambda p, x: x @ p.kernel, Loose(shape(6, 5)), shape(4, 6))


def test_two_arrays_with_one_path_are_refused() -> None:
    with pytest.raises(ValueError, match="two arrays of a pytree have one path: a/b"):
        mr.trace(lambda p, x: x @ p["a"]["b"] @ p["a/b"], {"a": {"b": shape(6, 6)}, "a/b": shape(6, 6)}, shape(4, 6))


def test_a_tree_in_another_order_is_matched_by_path() -> None:
    """Keys of equal shapes in another order get the maps of their own names."""
    net = mr.trace(lambda p, x: jnp.tanh(x @ p["a"] + p["b"]) * p["c"], params(a=(5, 5), b=(5,), c=(5,)), shape(4, 5))
    w = {
        name: np.random.default_rng(at).standard_normal(leaf.shape)
        for at, (name, leaf) in enumerate(params(a=(5, 5), b=(5,), c=(5,)).items())
    }
    turned = OrderedDict((name, w[name]) for name in "cba")
    for name, array in net.dualize(turned).items():
        np.testing.assert_array_equal(array, net.dualize(w)[name])
    assert net.norm(turned) == net.norm(w)


class Normalised(nn.Module):
    """A network with a collection that is not trained."""

    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        return nn.Dense(3)(nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x))))


def test_the_trained_collection_may_stand_for_all_variables() -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5)), jnp.float32)
    model = Normalised()
    variables = model.init(jax.random.key(0), x)
    net = mr.trace((model.apply, variables), x)
    assert {leaf.path for leaf in net.leaves if not leaf.roles} == {"batch_stats/BatchNorm_0/mean", "batch_stats/BatchNorm_0/var"}
    whole, alone = net.dualize(variables), net.dualize(variables["params"])
    assert jax.tree.structure(alone) == jax.tree.structure(variables["params"])
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(whole["params"]), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not any(leaf.any() for leaf in jax.tree.leaves(whole["batch_stats"]))
    transform = mr.optax.scale_by_modular_norm(net, "dualize")
    update, _ = transform.update(variables["params"], transform.init(variables["params"]))
    np.testing.assert_allclose(update["Dense_0"]["kernel"], alone["Dense_0"]["kernel"], atol=1e-6)
    with pytest.raises(ValueError, match=r"without params/BatchNorm_0/bias, .* and with Dense_9/kernel"):
        net.dualize({"Dense_9": {"kernel": x}})
    with pytest.raises(ValueError, match="must hold the frozen arrays too, got a pytree without batch_stats"):
        mr.checkpoint.save("unused", net, variables["params"])
    # The output alone, without the updated statistics, and with the flags of the trace.
    assert net(x, variables).shape == (4, 3)
    still = mr.trace((model.apply, variables), x, train=False)
    np.testing.assert_allclose(still(x, variables), model.apply(variables, x, train=False), rtol=1e-6)
    np.testing.assert_allclose(mr.trace(model.apply, variables, x, False)((x, False), variables), still(x, variables), rtol=1e-6)


def test_arrays_that_are_none_are_told() -> None:
    net = mr.trace(item, params(kernel=(6, 5), value=(5,)), shape(4, 6))
    with pytest.raises(TypeError, match="gradient of value must be a NumPy, JAX or CuPy array, got float"):
        net.dualize({"kernel": np.ones((6, 5)), "value": 1.0})
    with pytest.raises(
        ValueError, match=r"gradient of kernel must have shape \(6, 5\), got \(5, 6\), of value must have shape \(5,\), got \(6,\)"
    ):
        net.dualize({"kernel": np.ones((5, 6)), "value": np.ones(6)})


def test_copies_and_pickles(tmp_path: Any) -> None:
    net = mr.trace(item, params(kernel=(6, 5), value=(5,)), shape(4, 6))
    w = drawn(lambda k, v: {"kernel": k, "value": v}, 0)
    for other in (copy.copy(net), copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.fingerprint == net.fingerprint
        np.testing.assert_array_equal(other.dualize(w)["kernel"], net.dualize(w)["kernel"])
        assert other(jnp.ones((4, 6)), w).shape == (4, 5)


# ---- states -------------------------------------------------------------------------------------------------------------------------


def two_nets() -> tuple[Any, Any]:
    sizes, x = params(kernel=(6, 5), value=(5,)), shape(4, 6)
    return mr.trace(item, sizes, x), mr.trace(item, sizes, x, masses=tracing.Masses(vectors=0.5))


def test_a_state_of_another_network_is_refused_compiled_or_not() -> None:
    net, other = two_nets()
    w = drawn(lambda k, v: {"kernel": k, "value": v}, 0, jnp.asarray)
    state = mr.optax.scale_by_modular_norm(net).init(w)
    assert state.made_for.fingerprint == net.fingerprint
    assert net.fingerprint in str(jax.tree.structure(state))
    transform = mr.optax.scale_by_modular_norm(other)
    for update in (transform.update, jax.jit(transform.update)):
        with pytest.raises(
            ValueError, match=f"the state is of the network with fingerprint {net.fingerprint}, but this one has {other.fingerprint}"
        ):
            update(w, state)
    module = mr.Linear(5, 6)
    state = mr.optax.scale_by_modular_norm(module).init([w["kernel"].T])
    with pytest.raises(ValueError, match=module.fingerprint):
        mr.optax.scale_by_modular_norm(mr.Linear(5, 6) @ mr.Identity()).update([w["kernel"].T], state)


def test_updates_of_other_arrays_than_those_of_init_are_refused_by_their_difference() -> None:
    net, _ = two_nets()
    w = drawn(lambda k, v: {"kernel": k, "value": v}, 0, jnp.asarray)
    transform = mr.optax.scale_by_modular_norm(net)
    masked = {"kernel": w["kernel"], "value": optax.MaskedNode()}
    with pytest.raises(ValueError, match="update: a pytree of the 2 arrays of init was expected, got one without value"):
        transform.update(masked, transform.init(w))
    with pytest.raises(ValueError, match="update: a pytree of the 1 arrays of init was expected, got one with value"):
        transform.update(w, transform.init(masked))
    with pytest.raises(ValueError, match="got one without value and with bias"):
        transform.update({"kernel": w["kernel"], "bias": w["value"]}, transform.init(w))
    with pytest.raises(
        ValueError, match=r"update of kernel must have shape \(6, 5\), got \(5, 6\), of value must have shape \(5,\), got \(4,\)"
    ):
        transform.update({"kernel": w["kernel"].T, "value": w["value"][:4]}, transform.init(w))
    with pytest.raises(ValueError, match=r"params of kernel must have shape"):
        transform.init({"kernel": w["kernel"].T, "value": w["value"]})


def test_masked_parts_in_optax() -> None:
    net, _ = two_nets()
    w = drawn(lambda k, v: {"kernel": k, "value": v}, 0, jnp.asarray)
    whole = net.dualize(w)
    make = lambda: mr.optax.scale_by_modular_norm(net, "dualize")  # noqa: E731  a fresh transformation each time
    mask = {"kernel": True, "value": False}
    for transform in (
        optax.masked(make(), mask),
        optax.multi_transform({"ours": make(), "rest": optax.identity()}, {"kernel": "ours", "value": "rest"}),
        optax.partition({"ours": make(), "rest": optax.identity()}, {"kernel": "ours", "value": "rest"}),
    ):
        state = transform.init(w)
        for update in (transform.update, jax.jit(transform.update)):
            made, after = update(w, state, w)
            np.testing.assert_allclose(made["kernel"], whole["kernel"], atol=1e-6)
            np.testing.assert_array_equal(made["value"], w["value"])
            assert jax.tree.structure(after) == jax.tree.structure(state)
    mapped = optax.tree_map_params(make(), lambda a: a, make().init(w))
    assert jax.tree.structure(mapped) == jax.tree.structure(make().init(w))


def test_nnx_optimizer_trains_the_module(capsys: Any) -> None:
    model = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
    net = mr.trace(model, shape(4, 6))
    optimizer = nnx.Optimizer(model, optax.chain(mr.optax.scale_by_modular_norm(net), optax.scale(-0.1)), wrt=nnx.Param)
    x = jnp.ones((4, 6))

    @nnx.jit
    def step(model: Any, optimizer: Any) -> Any:
        value, gradient = nnx.value_and_grad(lambda model: jnp.mean((model(x) - 1) ** 2))(model)
        optimizer.update(model, gradient)
        return value

    losses = [float(step(model, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.2 * losses[0]


def test_flax_serialization_keeps_and_compares_the_fingerprint() -> None:
    net, other = two_nets()
    w = drawn(lambda k, v: {"kernel": k, "value": v}, 0, jnp.asarray)
    transform = mr.optax.scale_by_modular_norm(net)
    _, state = transform.update(w, transform.init(w))
    data = flax.serialization.to_bytes(state)
    restored = flax.serialization.from_bytes(transform.init(w), data)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for one, two in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(one, two)
    with pytest.raises(ValueError, match="the state is of the network with fingerprint"):
        flax.serialization.from_bytes(mr.optax.scale_by_modular_norm(other).init(w), data)


def test_orbax_restores_a_state(tmp_path: Any) -> None:
    import orbax.checkpoint as orbax

    net, _ = two_nets()
    w = drawn(lambda k, v: {"kernel": k, "value": v}, 0, jnp.asarray)
    transform = optax.chain(optax.scale_by_adam(), mr.optax.scale_by_modular_norm(net))
    _, state = transform.update(w, transform.init(w))
    with orbax.StandardCheckpointer() as saver:
        saver.save(tmp_path / "state", state)
        saver.wait_until_finished()
        restored = saver.restore(tmp_path / "state", transform.init(w))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for one, two in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(one, two)


# ---- checkpoints --------------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_network_is_refused_by_its_difference(tmp_path: Any) -> None:
    net, other = two_nets()
    w = drawn(lambda k, v: {"kernel": k, "value": v}, 0)
    mr.checkpoint.save(tmp_path / "run", net, w)
    with pytest.raises(ValueError, match=r"holds another network(.|\n)*-value.*mass 0\.1(.|\n)*\+value.*mass 0\.5"):
        mr.checkpoint.load(tmp_path / "run", other, w)
    with pytest.raises(ValueError, match="holds another network"):
        mr.checkpoint.load(tmp_path / "run", mr.Linear(5, 6), [w["kernel"].T])
    larger = mr.trace(item, params(kernel=(6, 7), value=(7,)), shape(4, 6))
    with pytest.raises(ValueError, match=r"\(6, 5\)(.|\n)*\(6, 7\)"):
        mr.checkpoint.load(tmp_path / "run", larger, {"kernel": np.ones((6, 7)), "value": np.ones(7)})
    with pytest.raises(ValueError, match="without value and with bias"):
        mr.checkpoint.load(tmp_path / "run", net, {"kernel": w["kernel"], "bias": w["value"]})
    net.save(tmp_path / "net.json")
    saved = mr.checkpoint.load(tmp_path / "run", mr.load(tmp_path / "net.json"), w)  # the table suffices
    np.testing.assert_array_equal(saved.weights["kernel"], w["kernel"])


def test_frozen_arrays_of_any_dtype_are_in_a_checkpoint(tmp_path: Any) -> None:
    given = {"weight": jnp.ones((6, 5)), "codes": jnp.arange(3, dtype=jnp.int8), "seen": jnp.array(7)}
    net = mr.trace(lambda p, x: x @ p["weight"], given, shape(4, 6), rules={"{codes,seen}": "frozen"})
    mr.checkpoint.save(tmp_path / "run", net, given)
    saved = mr.checkpoint.load(tmp_path / "run", net, jax.tree.map(jnp.zeros_like, given))
    for name, array in given.items():
        np.testing.assert_array_equal(saved.weights[name], array)
