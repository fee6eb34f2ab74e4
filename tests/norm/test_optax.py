"""scale_by_modular_norm after optax's own common battery: chains, jit, dtypes, injection, accumulation, checkpoints, sharding."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import optax
import pytest

METHODS = ["normalize", "dualize"]


@pytest.fixture(scope="module")
def module() -> mr.Module:
    residual = 0.5 * mr.Identity() + 0.5 * mr.Linear(8, 8)
    return mr.Linear(3, 8) @ mr.Bias(8) @ (residual**2) @ mr.Scale(8) @ mr.Embed(8, 11)


def gradients(m: mr.Module, seed: int = 0, dtype: Any = jnp.float32) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(leaf.shape), dtype) for leaf in m.leaves]


def assert_close(first: Any, second: Any, tolerance: float = 1e-5) -> None:
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_first_update_is_the_map_of_the_module_with_its_sign(module: mr.Module, method: str) -> None:
    g = gradients(module)
    transform = mr.optax.scale_by_modular_norm(module, method, target_norm=0.5)
    made, _ = jax.jit(transform.update)(g, transform.init(g))
    assert_close(made, getattr(module, method)(g, 0.5))
    assert all(jnp.sum(a * b) > 0 for a, b in zip(made, g, strict=True))


@pytest.mark.slow
def test_one_warm_step_an_update_keeps_the_norm_on_target(module: mr.Module) -> None:
    # The updates must turn slowly, as averages do: one step from the estimates of an unrelated matrix is wrong by tens of per cents.
    transform = mr.optax.scale_by_modular_norm(module)
    g, h = gradients(module, 0), gradients(module, 1)
    state = transform.init(g)
    update = jax.jit(transform.update)
    for step in range(12):
        made, state = update([np.cos(step / 20) * a + np.sin(step / 20) * b for a, b in zip(g, h, strict=True)], state)
        for array, target in zip(made, module.leaves, strict=True):
            assert jnp.isfinite(array).all(), target.path
        assert float(module.norm(made)) == pytest.approx(1, rel=0.05), step


def test_zero_gradients_and_dead_leaves_do_not_spoil_later_updates(module: mr.Module) -> None:
    transform = mr.optax.scale_by_modular_norm(module)
    g = gradients(module)
    zeros = jax.tree.map(jnp.zeros_like, g)
    state = transform.init(g)
    update = jax.jit(transform.update)
    for given in (zeros, g, zeros, g):
        made, state = update(given, state)
        assert_close(made, module.normalize(given), 1e-3)
    spoiled = [*g[:-1], g[-1].at[0, 0].set(jnp.nan)]
    made, state = update(spoiled, state)
    assert jnp.isnan(made[-1]).all()
    assert_close(made[:-1], module.normalize(g)[:-1], 1e-3)
    made, state = update(g, state)
    assert_close(made, module.normalize(g), 1e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision(module: mr.Module, method: str, dtype: Any) -> None:
    transform = mr.optax.scale_by_modular_norm(module, method)
    g = gradients(module, dtype=dtype)
    state = transform.init(g)
    for _ in range(2):
        made, state = jax.jit(transform.update)(g, state)
        assert all(a.dtype == dtype for a in made)
        assert_close(made, getattr(module, method)([a.astype(jnp.float32) for a in g]), 2e-2)
    assert all(v.dtype == jnp.float32 for v in jax.tree.leaves(state.vectors))


@pytest.mark.parametrize("method", METHODS)
def test_inject_hyperparams(module: mr.Module, method: str) -> None:
    # A module must be named static, because it can be called, and optax takes any other callable argument for a schedule.
    inject = optax.inject_hyperparams(mr.optax.scale_by_modular_norm, static_args=("module", "method"))
    g = gradients(module)
    for target, norm in ((0.25, 0.25), (lambda count: 0.5, 0.5)):
        transform = inject(module=module, method=method, target_norm=target)
        state = transform.init(g)
        made, state = jax.jit(transform.update)(g, state)
        assert float(module.norm(made)) == pytest.approx(norm, rel=0.01)
    transform = inject(module=module, method=method, target_norm=0.25)
    state = transform.init(g)
    state.hyperparams["target_norm"] = jnp.asarray(2.0)
    made, state = jax.jit(transform.update)(g, state)
    assert float(module.norm(made)) == pytest.approx(2, rel=0.01)


def test_multi_steps(module: mr.Module) -> None:
    transform = optax.MultiSteps(optax.chain(mr.optax.scale_by_modular_norm(module), optax.scale(-0.1)), every_k_schedule=2)
    g, h = gradients(module, 0), gradients(module, 1)
    state = transform.init(g)
    update = jax.jit(transform.update)
    first, state = update(g, state)
    assert all((a == 0).all() for a in first)
    second, state = update(h, state)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, g, h)
    assert_close(second, [-0.1 * a for a in module.normalize(mean)])


@pytest.mark.slow
@pytest.mark.parametrize("base", [optax.scale_by_adam, optax.sgd, optax.lion, optax.rmsprop], ids=lambda f: f.__name__)
def test_chains_with_any_optimizer(module: mr.Module, base: Any) -> None:
    inner = base(0.1) if base is not optax.scale_by_adam else base()
    transform = optax.chain(inner, mr.optax.scale_by_modular_norm(module), optax.scale_by_learning_rate(0.1))
    w = module.initialize(jax.random.key(0))
    state = transform.init(w)
    for _ in range(2):
        made, state = jax.jit(transform.update)(gradients(module), state, w)
        w = optax.apply_updates(w, made)
    assert float(module.norm(made)) == pytest.approx(0.1, rel=0.05)


def test_any_pytree_with_the_leaves_in_order(module: mr.Module) -> None:
    g = gradients(module)
    tree = {"a": tuple(g[:2]), "b": {"c": g[2], "d": list(g[3:])}}
    transform = mr.optax.scale_by_modular_norm(module)
    made, _ = transform.update(tree, transform.init(tree))
    assert jax.tree.structure(made) == jax.tree.structure(tree)
    assert_close(made, module.normalize(g))
    with pytest.raises(ValueError, match="expected 5"):
        transform.init(g[:-1])


def test_the_state_is_a_plain_pytree_that_survives_a_checkpoint(module: mr.Module) -> None:
    transform = mr.optax.scale_by_modular_norm(module)
    g = gradients(module)
    _, state = transform.update(g, transform.init(g))
    leaves, structure = jax.tree.flatten(state)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    restored = jax.tree.unflatten(structure, [jnp.asarray(x) for x in pickle.loads(pickle.dumps([np.asarray(x) for x in leaves]))])
    assert_close(transform.update(gradients(module, 1), restored), transform.update(gradients(module, 1), state), 0)
    assert jax.tree.structure(transform.init(g)) == structure


def test_runs_inside_scan_with_a_stable_state(module: mr.Module) -> None:
    transform = optax.chain(optax.scale_by_adam(), mr.optax.scale_by_modular_norm(module), optax.scale(-0.1))
    w = module.initialize(jax.random.key(0))

    def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
        w, state = carry
        loss = lambda w: jnp.mean((module(jnp.arange(11), w) - 1) ** 2)  # noqa: E731
        value, g = jax.value_and_grad(loss)(w)
        made, state = transform.update(g, state)
        return (optax.apply_updates(w, made), state), value

    _, losses = jax.jit(lambda w: jax.lax.scan(step, (w, transform.init(w)), length=40))(w)
    assert losses[-1] < 0.5 * losses[0]


def test_bad_arguments(module: mr.Module) -> None:
    with pytest.raises(TypeError, match="Module"):
        mr.optax.scale_by_modular_norm([module])
    with pytest.raises(ValueError, match="'muon'"):
        mr.optax.scale_by_modular_norm(module, "muon")


def frozen(module, w):
    """Transformations with the second array frozen, in the ways that optax offers."""
    ours = mr.optax.scale_by_modular_norm(module)
    labels = ["freeze" if index == 1 else "train" for index in range(len(w))]
    yield optax.masked(ours, [label == "train" for label in labels])
    yield optax.multi_transform({"train": ours, "freeze": optax.set_to_zero()}, labels)
    yield optax.partition({"train": ours, "freeze": optax.set_to_zero()}, labels)


@pytest.mark.slow
def test_a_frozen_part_leaves_the_targets_of_the_rest_as_they_are():
    module = mr.Linear(3, 6) @ (mr.Bias(6) @ mr.Linear(6, 6)) ** 2 @ mr.Linear(6, 5)
    w, g = (module.initialize(jax.random.key(seed)) for seed in range(2))
    whole, _ = mr.optax.scale_by_modular_norm(module).update(g, mr.optax.scale_by_modular_norm(module).init(w))
    for transform in frozen(module, w):
        update, state = transform.update(g, transform.init(w), w)
        update, _ = jax.jit(transform.update)(g, state, w)
        for index, (ours, theirs) in enumerate(zip(update, whole, strict=True)):
            if index != 1:
                np.testing.assert_allclose(ours, theirs, rtol=2e-2)  # norms within 1 % each


def test_a_dict_is_matched_by_the_paths_of_the_leaves():
    module = mr.Linear(4, 4).named("a_last") @ mr.Linear(4, 4).named("z_first").tare(3)
    g = module.initialize(jax.random.key(0))
    by_order, _ = mr.optax.scale_by_modular_norm(module).update(g, mr.optax.scale_by_modular_norm(module).init(g))
    named = {leaf.path: array for leaf, array in zip(module.leaves, g, strict=True)}  # JAX sorts keys: another order
    transform = mr.optax.scale_by_modular_norm(module)
    update, _ = transform.update(named, transform.init(named))
    for leaf, expected in zip(module.leaves, by_order, strict=True):
        np.testing.assert_array_equal(update[leaf.path], expected)
    with pytest.raises(ValueError, match=r"names in a pytree must be those of the leaves \(z_first, a_last\), got b beside them"):
        transform.init({"z_first": g[0], "b": g[1]})
    with pytest.raises(ValueError, match=r"expected 2 arrays \(z_first, a_last\), got 1 \(z_first\)"):
        transform.init({"z_first": g[0]})


def test_a_state_maps_like_its_parameters():
    """optax.tree_map_params, with which sharded states are built, makes a state without parameters."""
    module = mr.Linear(4, 4) @ mr.Bias(4)
    w = module.initialize(jax.random.key(0))
    for method in ("normalize", "dualize"):
        optimizer = optax.chain(optax.scale_by_adam(), mr.optax.scale_by_modular_norm(module, method))
        state = optimizer.init(w)
        doubled = optax.tree_map_params(optimizer, lambda x: x + 1, state)
        assert float(doubled[0].mu[0].sum()) == w[0].size
        assert jax.tree.structure(doubled) == jax.tree.structure(state)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [[True, False, True], [False, False, False], "other order"])
def test_a_state_maps_whatever_is_masked_and_in_any_order(kept: Any):
    """Whatever part of the network a state is for, tree_map_params finds its parameters, and the state that it makes can be used."""
    module = mr.Linear(4, 5).named("out") @ mr.Bias(5).named("bias") @ mr.Linear(5, 3).named("in")
    w: Any = module.initialize(jax.random.key(0))
    if kept == "other order":
        w = {leaf.path: array for leaf, array in zip(module.leaves, w, strict=True)}  # a dict's keys are sorted
        kept = True
    of_norm = mr.optax.scale_by_modular_norm
    links = (of_norm(module, "dualize"), mr.optax.scale_by_row_moments(module), of_norm(module), mr.optax.keep_radius(module))
    inner = mr.optax.scale_by_dog(module, optax.chain(optax.scale_by_adam(), *links, mr.optax.add_modular_decay(module, 0.1)))
    frozen = jax.tree.map(lambda keep: "t" if keep else "f", kept)
    for optimizer in (optax.masked(inner, kept), optax.multi_transform({"t": inner, "f": optax.set_to_zero()}, frozen)):
        state = optimizer.init(w)
        mapped = optax.tree_map_params(optimizer, lambda x: x, state)
        assert jax.tree.structure(mapped) == jax.tree.structure(state)
        assert_close(optimizer.update(w, mapped, w), optimizer.update(w, state, w))
        moved = optax.tree_map_params(optimizer, lambda x: "w", state, transform_non_params=lambda x: "other")
        assert set(jax.tree.leaves(moved)) <= {"w", "other"}


@pytest.mark.slow
@pytest.mark.parametrize("traced", [False, True])
def test_a_mask_may_name_a_whole_part_of_the_tree(traced: bool):
    m = (mr.Linear(3, 4).named("out")) @ (mr.Bias(4).named("bias") @ mr.Linear(4, 5).named("in")).named("body")
    w = [jnp.asarray(array) + 1 for array in m.initialize(0)]
    params = {"body": {"in": w[0], "bias": w[1]}, "out": w[2]}
    net: Any = m
    if traced:
        params["body"]["in"], params["out"] = w[0].T, w[2].T
        net = mr.trace(lambda p, x: jax.nn.relu(x @ p["body"]["in"] + p["body"]["bias"]) @ p["out"], params, jnp.ones((2, 5)))
    transform = mr.optax.scale_by_modular_norm(net)
    whole, _ = transform.update(params, transform.init(params))
    for mask in ({"body": False, "out": True}, {"body": {"in": True, "bias": False}, "out": False}, False, True):
        masked = optax.masked(transform, mask)
        made, _ = masked.update(params, masked.init(params))
        kept = optax.tree.broadcast(mask, params) if hasattr(optax.tree, "broadcast") else jax.tree.broadcast(mask, params)
        assert_close(made, jax.tree.map(lambda keep, new, old: new if keep else old, kept, whole, params))
    with pytest.raises(ValueError, match="expected"):  # an array that is missing, not masked
        transform.init({"out": params["out"]})


def test_arguments_are_checked_where_they_are_given(module: mr.Module):
    for arguments in (
        {"accuracy": "x"},
        {"accuracy": ["fast"]},
        {"steps": 0},
        {"target_norm": -1},
        {"nonfinite": []},
        {"method": ["dualize"]},
    ):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            mr.optax.scale_by_modular_norm(module, **arguments)
