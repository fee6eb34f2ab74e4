"""What happens to weights: decay in the modular norm, weights at a fixed norm, a second moment after orthogonalising."""

import battery
import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import optax
import pytest
from recursion import atom_norm


def small() -> mr.Module:
    return mr.Linear(3, 12) @ mr.Bias(12) @ (0.5 * mr.Identity() + 0.5 * mr.Linear(12, 12)) ** 2 @ mr.Scale(12) @ mr.Embed(12, 9)


def drawn(m, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(leaf.shape).astype(dtype) for leaf in m.leaves]


def atom_norms(m, w):
    """(path, norm of one copy over its unit) of every copy of every leaf."""
    rows = {}
    for row in m.targets():
        rows.setdefault(row.path, []).append(row)
    for leaf, array in zip(m.leaves, w, strict=True):
        for copy in np.asarray(array, np.float64).reshape(len(rows[leaf.path]), *rows[leaf.path][0].shape):
            yield leaf, atom_norm(leaf.kind, copy)


# ---- decay -------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("backend", battery.BACKENDS)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_every_copy_decays_by_its_own_target(backend, dtype):
    m = battery.model()
    w, update = (battery.arrays("ordinary", dtype, seed) for seed in range(2))
    if backend == "jax" and dtype == "float64":
        dtype, w, update = "float32", *([a.astype(np.float32) for a in arrays] for arrays in (w, update))
    made = mr.optim.add_modular_decay(m, battery.to(backend, update), battery.to(backend, w), 0.3)
    battery.check_like(made, battery.to(backend, update))
    for leaf, a, u, result in zip(m.leaves, w, update, made, strict=True):
        for target, *copies in zip(battery.targets()[leaf.path], *(battery.copies(leaf, x) for x in (a, u, result)), strict=True):
            expected = copies[1] + 0.3 * target * copies[0]
            np.testing.assert_allclose(copies[2], expected, rtol=2 * battery.eps(dtype), atol=4 * battery.eps(dtype) * (0.3 * target + 1))


def test_it_is_the_decay_of_regularize_but_for_tables():
    m = small()
    w = drawn(m)
    decayed = mr.optim.add_modular_decay(m, [np.zeros_like(a) for a in w], w, 0.2)
    for leaf, a, d, r in zip(m.leaves, w, decayed, m.regularize(w, 0.2), strict=True):
        if leaf.kind != "Embed":
            np.testing.assert_allclose(a - d, r, rtol=1e-5, atol=1e-6)


def test_no_weight_grows_beyond_one_over_the_strength():
    """Updates that never change their direction push hardest; the bound holds for atoms of any target."""
    m = mr.Linear(3, 12).tare(0.2) @ (0.5 * mr.Identity() + 0.5 * mr.Linear(12, 12)) ** 2 @ mr.Embed(12, 9).tare(4)
    w, update = m.initialize(0, np.float64), m.normalize(drawn(m, 1, np.float64))
    largest = 0.0
    for step in range(2000):
        w = [a - 0.5 * u for a, u in zip(w, mr.optim.add_modular_decay(m, update, w, 0.25), strict=True)]
        if step % 20 == 0:
            largest = max(largest, *(norm for _, norm in atom_norms(m, w)))
    assert largest < 4 * 1.01  # a normalised update is within 1 % of its target
    assert min(norm for _, norm in atom_norms(m, w)) > 0.9 * 4  # all reach it: each decays by its own target


@pytest.mark.slow
def test_cautious_decay_spares_entries_that_the_update_moves_outwards():
    m = small()
    w, update = drawn(m, 0), m.normalize(drawn(m, 1))
    for backend in battery.BACKENDS:
        given = battery.to(backend, update), battery.to(backend, w)
        full = mr.optim.add_modular_decay(m, *given, 0.3)
        made = mr.optim.add_modular_decay(m, *given, 0.3, cautious=True)
        for a, u, every, some in zip(w, update, full, made, strict=True):
            inwards = a * u > 0  # the update is subtracted
            np.testing.assert_array_equal(np.asarray(some)[inwards], np.asarray(every)[inwards])
            np.testing.assert_array_equal(np.asarray(some)[~inwards], u[~inwards])
            assert a.ndim < 2 or 0.2 < inwards.mean() < 0.8


def test_a_shared_array_decays_once_for_each_copy_of_its_first_use():
    m = mr.Linear(4, 4, share="w") @ mr.Tanh() @ mr.Linear(4, 4, share="w") ** 3 @ mr.Linear(4, 4)
    w = drawn(m)
    zero = [np.zeros_like(a) for a in w]
    for a, d, r in zip(w, mr.optim.add_modular_decay(m, zero, w, 0.2), m.regularize(w, 0.2), strict=True):
        np.testing.assert_allclose(a - d, r, rtol=1e-5, atol=1e-6)


# ---- weights at a fixed norm -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_weights_keep_the_norm_of_their_initialisation():
    m = small()
    w = m.initialize(jax.random.key(0))
    w[0] = w[0].at[3].set(0.0)  # a row of zeros stays what it is made
    optimizer = optax.chain(
        optax.scale_by_adam(), mr.optax.scale_by_modular_norm(m), optax.scale(-0.7), mr.optax.keep_radius(m)
    )  # fmt: skip
    state, update = optimizer.init(w), jax.jit(optimizer.update)
    for step in range(10):
        g = [jnp.asarray(np.cos(step / 5) * a + np.sin(step / 5) * b) for a, b in zip(drawn(m, 0), drawn(m, 1), strict=True)]
        made, state = update(g, state, w)
        w = optax.apply_updates(w, made)
        for leaf, norm in atom_norms(m, w):
            if leaf.kind not in ("Bias", "Scale"):
                assert norm == pytest.approx(1, rel=0.03 if leaf.kind == "Linear" else 1e-5), (step, leaf.path)
    assert float(jnp.abs(w[3]).max()) > 0.1  # the bias moves freely


def test_one_step_is_the_radius_of_the_weights_moved():
    m = small()
    w, u = m.initialize(jax.random.key(0)), [jnp.asarray(0.3 * a) for a in drawn(m)]
    made, _ = mr.optax.keep_radius(m).update(u, mr.optax.keep_radius(m).init(w), w)
    expected = m.radius([a + b for a, b in zip(w, u, strict=True)])
    for a, b, e in zip(w, made, expected, strict=True):
        np.testing.assert_allclose(a + b, e, rtol=0.01, atol=1e-5)


def test_zeros_stay_zeros():
    m = mr.Linear(3, 4) @ mr.Linear(4, 5)
    w = [jnp.zeros((4, 5)), *m.initialize(jax.random.key(0))[1:]]
    made, _ = mr.optax.keep_radius(m).update([jnp.zeros_like(a) for a in w], mr.optax.keep_radius(m).init(w), w)
    assert all(bool((abs(a) <= 0.01).all()) for a in made)
    assert not made[0].any()


# ---- a second moment after orthogonalising -----------------------------------------------------------------------------------------


def test_rows_follow_the_formula():
    m = mr.Linear(2, 24) @ mr.Tanh() @ mr.Linear(24, 3) ** 1
    state, square = mr.optim.row_moments_init(m, m.initialize(0)), np.zeros(24)
    for seed in range(5):
        update = m.dualize(drawn(m, seed, np.float64))
        made, state = mr.optim.row_moments(m, update, state, beta2=0.8)
        square = 0.8 * square + 0.2 * np.mean(update[0] ** 2, axis=1)
        expected = update[0] / np.sqrt(square)[:, None]
        expected *= 0.5 * (24 / 3) ** 0.5 / np.linalg.norm(expected, 2)  # the target of one of two atoms
        np.testing.assert_allclose(made[0], expected, rtol=0.011, atol=1e-4)
        assert m.norm(made) == pytest.approx(1, rel=0.011)


def test_a_matrix_with_no_more_outputs_than_inputs_stays_as_it_is():
    m = mr.Linear(16, 16) @ mr.Linear(16, 64) @ mr.Linear(64, 16)
    update = m.dualize(drawn(m))
    made, _ = mr.optim.row_moments(m, update, mr.optim.row_moments_init(m, m.initialize(0)))
    change = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(made, update, strict=True)]
    assert change[0] > 0.2  # 64 outputs, 16 inputs: its rows have different lengths
    assert max(change[1:]) < 0.025  # the errors of dualize and normalize, 1 % each


@pytest.mark.slow
def test_rows_are_outputs_in_every_layout():
    """The same network with kernels (in, out), as in Flax, and (out, in): the same updates."""
    rng = np.random.default_rng(0)
    g = {"a": rng.standard_normal((5, 24)).astype(np.float32), "b": rng.standard_normal((24, 3)).astype(np.float32)}
    x = jnp.ones((2, 5))
    flax = mr.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], g, x)
    turned = {name: a.T.copy() for name, a in g.items()}
    torch = mr.trace(lambda p, x: jnp.tanh(x @ p["a"].T) @ p["b"].T, turned, x)
    made = []
    for net, given in ((flax, g), (torch, turned)):
        transform = optax.chain(mr.optax.scale_by_modular_norm(net, "dualize"), mr.optax.scale_by_row_moments(net))
        update, _ = jax.jit(transform.update)(given, transform.init(given))
        made.append(update)
        twin, _ = mr.optim.row_moments(net, net.dualize(given), mr.optim.row_moments_init(net, given))
        for name in given:
            np.testing.assert_allclose(update[name], twin[name], rtol=0.03, atol=2e-3)
    for name in g:
        np.testing.assert_allclose(made[0][name], made[1][name].T, rtol=0.03, atol=2e-3)
    plain = flax.dualize(g)
    assert np.abs(made[0]["a"] - plain["a"]).max() > 0.1 * np.abs(plain["a"]).max()


# ---- all of them ---------------------------------------------------------------------------------------------------------------


def transformations(m):
    yield mr.optax.add_modular_decay(m, 0.1)
    yield mr.optax.add_modular_decay(m, 0.1, cautious=True)
    yield mr.optax.keep_radius(m)
    yield optax.chain(mr.optax.scale_by_modular_norm(m, "dualize"), mr.optax.scale_by_row_moments(m))


@pytest.mark.slow
@pytest.mark.parametrize("which", range(4))
def test_optax_composes_them(which):
    m = small()
    w, g = m.initialize(jax.random.key(0)), [jnp.asarray(a) for a in drawn(m)]
    (ours,) = [each for at, each in enumerate(transformations(m)) if at == which]
    whole, _ = jax.jit(ours.update)(g, ours.init(w), w)
    labels = [index != 1 for index in range(len(w))]
    masked = optax.masked(ours, labels)
    made, state = masked.update(g, masked.init(w), w)
    made, _ = jax.jit(masked.update)(g, masked.init(w), w)
    for index, (a, b) in enumerate(zip(made, whole, strict=True)):
        np.testing.assert_allclose(a, g[1] if index == 1 else b, rtol=2e-2, atol=1e-3)
    steps = optax.MultiSteps(ours, 2)
    state = steps.init(w)
    _, state = steps.update(g, state, w)
    second, state = steps.update(g, state, w)
    for a, b in zip(second, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-2, atol=1e-3)
    mapped = optax.tree_map_params(ours, lambda x: x, ours.init(w))
    assert jax.tree.structure(mapped) == jax.tree.structure(ours.init(w))
    half = [a.astype(jnp.bfloat16) for a in g]
    made, _ = ours.update(half, ours.init([a.astype(jnp.bfloat16) for a in w]), [a.astype(jnp.bfloat16) for a in w])
    for a, b in zip(made, whole, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=0.05, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("which", range(4))
def test_traced_networks_take_them(which):
    params = {"table": jnp.ones((7, 8)), "in": jnp.ones((2, 8, 8)), "gain": jnp.ones(8), "out": jnp.ones((8, 3))}

    def apply(p, tokens):
        x = p["table"][tokens]
        x, _ = jax.lax.scan(lambda x, w: (x + 0.5 * jnp.tanh(x @ w), None), x, p["in"])
        return (x * p["gain"]) @ p["out"]

    net = mr.trace(apply, params, jnp.zeros((4,), jnp.int32))
    w = net.initialize(jax.random.key(0))
    g = net.initialize(jax.random.key(1))
    (ours,) = [each for at, each in enumerate(transformations(net)) if at == which]
    made, _ = jax.jit(ours.update)(g, ours.init(w), w)
    assert jax.tree.structure(made) == jax.tree.structure(w)
    if which == 0:
        targets = {}
        for row in net.targets():
            targets.setdefault(row.path, []).append(row.target)
        for name in w:
            share = np.asarray(targets[name]).reshape(-1, *[1] * (w[name].ndim - 1)) if name == "in" else targets[name][0]
            np.testing.assert_allclose(made[name], g[name] + 0.1 * share * w[name], rtol=1e-5, atol=1e-6)
    if which == 2:
        moved = jax.tree.map(lambda a, b: a + b, w, made)
        expected = net.radius(jax.tree.map(lambda a, b: a + b, w, g))
        for name in w:
            np.testing.assert_allclose(moved[name], expected[name], rtol=0.02, atol=1e-4)
    if which == 3:
        assert float(net.norm(made)) == pytest.approx(1, rel=0.03)


def test_bad_arguments_are_refused():
    m = small()
    w, u = m.initialize(0), drawn(m)
    rows = mr.optim.row_moments_init(m, w)
    for call, error, message in [
        (lambda: mr.optim.add_modular_decay([m], u, w, 0.1), TypeError, "module must be a Module"),
        (lambda: mr.optim.add_modular_decay(m, u, w, -0.1), ValueError, "strength must be at least 0 and finite, got -0.1"),
        (lambda: mr.optim.add_modular_decay(m, u, w, "a"), TypeError, "strength must be a number"),
        (lambda: mr.optim.add_modular_decay(m, u, w[:-1], 0.1), ValueError, "expected 5 weights"),
        (lambda: mr.optim.add_modular_decay(m, u[:-1], w, 0.1), ValueError, "expected 5 updates"),
        (lambda: mr.optim.add_modular_decay(m, u, w, 0.1, cautious=1), TypeError, "cautious must be True or False"),
        (lambda: mr.optim.row_moments(m, u, ()), TypeError, "the state must be the RowState"),
        (lambda: mr.optim.row_moments(m, u, rows, 1.5), ValueError, "beta2 must be from 0 to 1"),
        (lambda: mr.optim.row_moments(m, u[:-1], rows), ValueError, "expected 5 updates"),
        (lambda: mr.optax.add_modular_decay([m], 0.1), TypeError, "module must be a Module"),
        (lambda: mr.optax.add_modular_decay(m, -0.1), ValueError, "strength must be at least 0"),
        (lambda: mr.optax.keep_radius(None), TypeError, "module must be a Module"),
        (lambda: mr.optax.scale_by_row_moments(None), TypeError, "module must be a Module"),
        (lambda: mr.optax.scale_by_row_moments(m, 2), ValueError, "beta2 must be from 0 to 1"),
        (lambda: mr.optax.scale_by_row_moments(m, nonfinite="raise"), ValueError, "compiled code cannot raise"),
    ]:
        with pytest.raises(error, match=message):
            call()
    for transform in (mr.optax.keep_radius(m), mr.optax.add_modular_decay(m, 0.1)):
        with pytest.raises(ValueError, match="needs the parameters"):
            transform.update(u, transform.init([jnp.asarray(a) for a in w]))
