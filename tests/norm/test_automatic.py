"""Steps without a learning rate: DoG and Prodigy in the modular norm, against formulas in float64 and on convex problems."""

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

PAIRS = {"dog": (mr.optim.dog_init, mr.optim.dog), "prodigy": (mr.optim.prodigy_init, mr.optim.prodigy)}
SCALES = {"dog": mr.optax.scale_by_dog, "prodigy": mr.optax.scale_by_prodigy}


def network() -> mr.Module:
    return mr.Linear(3, 6) @ (0.5 * mr.Identity() + 0.5 * mr.Linear(6, 6)) ** 2 @ mr.Bias(6) @ mr.Linear(6, 4)


def norms(m, w, dual=False):
    """The norm, or the dual norm, of float64 arrays, by singular values and the targets of every copy."""
    values, rows = [], {}
    for row in m.targets():
        rows.setdefault(row.path, []).append(row)
    for leaf, array in zip(m.leaves, w, strict=True):
        own = rows[leaf.path]
        for row, copy in zip(own, np.asarray(array, np.float64).reshape(len(own), *own[0].shape), strict=True):
            if leaf.kind == "Linear":
                unit = (row.shape[0] / row.shape[1]) ** 0.5
                s = np.linalg.svd(copy, compute_uv=False)
                values.append(row.target * unit * s.sum() if dual else s[0] / unit / row.target)
            else:
                root = np.sqrt(np.mean(copy**2))
                values.append(row.target * root * len(copy) if dual else root / row.target)
    return sum(values) if dual else max(values)


def gradients(m, count, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [[rng.standard_normal(leaf.shape).astype(dtype) for leaf in m.leaves] for _ in range(count)]


def reference(kind, m, w0, ws, gs, first):
    """The sizes of all steps, by the formulas."""
    sizes, distance, squares, total, gain = [], first, 0.0, [0 * a for a in w0], 0.0
    for w, g in zip(ws, gs, strict=True):
        if kind == "dog":
            distance = max(distance, norms(m, [a - b for a, b in zip(w, w0, strict=True)]))
            squares += norms(m, g, dual=True) ** 2
            sizes.append(distance * norms(m, g, dual=True) / squares**0.5)
        else:
            weight = distance**2
            total = [t + weight * a for t, a in zip(total, g, strict=True)]
            gain += weight * sum(np.sum((a - b) * c) for a, b, c in zip(w0, w, g, strict=True))
            distance = max(distance, gain / norms(m, total, dual=True))
            sizes.append(distance)
    return sizes


def walk(m, count, pull=0.3):
    """Weights that move against their gradients, so that the estimates grow."""
    w = m.initialize(0, np.float64)
    goal, ws, gs = m.initialize(1, np.float64), [], []
    for noise in gradients(m, count):
        g = [pull * (a - b) + 0.05 * n for a, b, n in zip(w, goal, noise, strict=True)]
        ws.append(w)
        gs.append(g)
        w = [a - 0.2 * u for a, u in zip(w, m.dualize(g), strict=True)]
    return ws, gs


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("backend", ["numpy", "jax"])
def test_sizes_follow_the_formula(kind, backend):
    m = network()
    ws, gs = walk(m, 12)
    init, step = PAIRS[kind]
    to = (lambda w: [jnp.asarray(a, jnp.float32) for a in w]) if backend == "jax" else (lambda w: w)
    state, sizes = init(m, to(ws[0]), 0.05), []
    for w, g in zip(ws, gs, strict=True):
        size, state = step(m, to(g), to(w), state)
        sizes.append(float(size))
    expected = reference(kind, m, ws[0], ws, gs, 0.05)
    np.testing.assert_allclose(sizes, expected, rtol=0.02)  # a norm is within 1 %, and so is a dual norm
    assert sizes[-1] > 2 * sizes[0]
    assert isinstance(size, float) == (backend == "numpy")


@pytest.mark.parametrize("kind", PAIRS)
def test_the_scale_of_gradients_does_not_matter(kind):
    m = network()
    ws, gs = walk(m, 6)
    init, step = PAIRS[kind]
    found = []
    for scale in (1.0, 1e-6):
        state = init(m, ws[0])
        for w, g in zip(ws, gs, strict=True):
            size, state = step(m, [scale * a for a in g], w, state)
        found.append(size)
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(-3, 0))
def test_the_estimate_of_prodigy_never_exceeds_the_distance_of_a_convex_problem(seed, exponent):
    """A linear model with squared error is convex in its weights, so every estimate is a lower bound of norm(solution - w0)."""
    rng = np.random.default_rng(seed)
    m = mr.Linear(3, 5)
    w, solution = m.initialize(seed % 997, np.float64), m.initialize(seed % 991 + 1, np.float64)
    x = rng.standard_normal((40, 5))
    first, distance = 10.0**exponent, norms(m, [solution[0] - w[0]])
    state, w0 = mr.optim.prodigy_init(m, w, first), w
    for _ in range(30):
        gradient = [(x @ (w[0] - solution[0]).T).T @ x / 40]
        size, state = mr.optim.prodigy(m, gradient, w, state)
        assert size <= max(first, 1.02 * distance)
        w = [w[0] - size * m.dualize(gradient)[0]]
    # Among 6,000 problems with estimates that began at 0.1 to 0.45, every one below 0.17 of the distance has grown by now.
    assert state.distance > first or first > 0.15 * distance
    assert w0 is not w


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_gradient_of_zero_or_nan_leaves_the_state_usable(kind, bad):
    m = network()
    ws, gs = walk(m, 6)
    init, step = PAIRS[kind]
    state, other = init(m, ws[0]), init(m, ws[0])
    for at, (w, g) in enumerate(zip(ws, gs, strict=True)):
        if at == 3:
            spoiled = [a.copy() for a in g]
            spoiled[0][:] = bad
            if not bad:
                spoiled = [0 * a for a in g]
            size, state = step(m, spoiled, w, state)
            assert np.isfinite(size)
            assert size == 0 or kind == "prodigy"
            continue
        size, state = step(m, g, w, state)
        same, other = step(m, g, w, other)
        assert size == pytest.approx(same, rel=0.02)


# ---- optax -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAIRS)
def test_the_transformation_is_the_loop(kind):
    m = network()
    init, step = PAIRS[kind]
    x = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    transform = optax.chain(SCALES[kind](m, mr.optax.scale_by_modular_norm(m, "dualize"), 0.05), optax.scale(-1.0))
    w = m.initialize(0)
    jw = [jnp.asarray(a) for a in w]
    state, jstate = init(m, w, 0.05), transform.init(jw)
    update = jax.jit(transform.update)
    for _ in range(8):
        y, pullback = m.vjp(x, w)
        g = pullback(((y - x[:, :3]) / len(x)).astype(np.float32))[1]
        size, state = step(m, g, w, state)
        w = [a - np.float32(size) * u for a, u in zip(w, m.dualize(g), strict=True)]
        jg = jax.grad(lambda w: 0.5 * jnp.sum((m(x, w) - x[:, :3]) ** 2) / len(x))(jw)
        made, jstate = update(jg, jstate, jw)
        jw = optax.apply_updates(jw, made)
        assert float(jstate[0].size) == pytest.approx(size, rel=0.03)
    for a, b in zip(w, jw, strict=True):
        np.testing.assert_allclose(a, b, atol=0.03 * np.abs(a).max())


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAIRS)
def test_a_traced_network_learns_without_a_rate(kind):
    def apply(params, x):
        return jnp.tanh(x @ params["in"] + params["bias"]) @ params["out"]

    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "in": jax.random.normal(keys[0], (6, 16)) / 4, "bias": jnp.zeros(16), "out": jax.random.normal(keys[1], (16, 2)) / 4
    }  # fmt: skip
    x = jax.random.normal(keys[2], (64, 6))
    y = jnp.stack([jnp.sin(x[:, 0]), x[:, 1] * 0.5], axis=1)
    net = mr.trace(apply, params, x)
    decay = optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, 80))
    losses = []
    for first in (0.02, 0.3):
        optimizer = optax.chain(SCALES[kind](net, mr.optax.scale_by_modular_norm(net, "dualize"), first), decay, optax.scale(-1.0))

        @jax.jit
        def step(p, state, optimizer=optimizer):
            value, g = jax.value_and_grad(lambda p: jnp.mean((apply(p, x) - y) ** 2))(p)
            made, state = optimizer.update(g, state, p)
            return optax.apply_updates(p, made), state, value

        p, state = params, optimizer.init(params)
        for _ in range(80):
            p, state, value = step(p, state)
        assert jax.tree.structure(p) == jax.tree.structure(params)
        losses.append(float(value))
    assert max(losses) < 0.05
    # The twin takes the same pytrees.
    init, number = PAIRS[kind]
    size, _ = number(net, params, p, init(net, params))
    assert float(size) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(kind, dtype):
    m = network()
    w = m.initialize(jax.random.key(0), dtype)
    g = [jnp.asarray(a, dtype) for a in gradients(m, 1)[0]]
    transform = SCALES[kind](m, mr.optax.scale_by_modular_norm(m))
    made, state = jax.jit(transform.update)(g, transform.init(w), w)
    assert all(a.dtype == dtype for a in made)
    assert float(m.norm([a.astype(jnp.float32) for a in made])) == pytest.approx(0.1, rel=0.05)
    assert all(number.dtype == jnp.float32 for number in state.numbers)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAIRS)
def test_optax_composes_it(kind):
    m = network()
    w = m.initialize(jax.random.key(0))
    g = [jnp.asarray(a, jnp.float32) for a in gradients(m, 1)[0]]
    base = mr.optax.scale_by_modular_norm(m, "dualize")
    ours = SCALES[kind](m, base)
    whole, _ = ours.update(g, ours.init(w), w)
    masked = optax.masked(ours, [True, True, False, True])
    made, state = masked.update(g, masked.init(w), w)
    made, _ = jax.jit(masked.update)(g, state, w)
    assert (made[2] == g[2]).all()  # optax.masked lets the rest through
    steps = optax.MultiSteps(optax.chain(ours, optax.scale(-1.0)), 2)
    state = steps.init(w)
    first, state = steps.update(g, state, w)
    second, state = steps.update(g, state, w)
    assert all((a == 0).all() for a in first)
    for a, b in zip(second, whole, strict=True):
        np.testing.assert_allclose(a, -b, rtol=1e-3, atol=1e-6)
    optimizer = optax.chain(ours, optax.scale(-1.0))
    state = optimizer.init(w)
    doubled = optax.tree_map_params(optimizer, lambda x: 2 * x, state)
    np.testing.assert_array_equal(doubled[0].start[0], 2 * w[0])
    inject = optax.inject_hyperparams(lambda rate: optax.chain(ours, optax.scale_by_learning_rate(rate)))
    injected = inject(0.5)
    made, _ = injected.update(g, injected.init(w), w)
    np.testing.assert_allclose(made[0], -0.5 * whole[0], rtol=1e-5, atol=1e-7)


def test_bad_arguments_are_refused():
    m = network()
    w, (g,) = m.initialize(0), gradients(m, 1, dtype=np.float32)
    for kind, (init, step) in PAIRS.items():
        state = init(m, w)
        for call, error, message in [
            (lambda: init([m], w), TypeError, "module must be a Module"),  # noqa: B023
            (lambda: init(m, w, 0.0), ValueError, "first must be positive and finite, got 0.0"),  # noqa: B023
            (lambda: init(m, w, "a"), TypeError, "first must be a number"),  # noqa: B023
            (lambda: init(m, {"a": w}), TypeError, "come as a list of arrays"),  # noqa: B023
            (lambda: init(mr.Identity(), []), ValueError, "no weights"),  # noqa: B023
            (lambda: step(m, g, w, ()), TypeError, "the state must be the"),  # noqa: B023
            (lambda: step(m, g[:-1], w, state), ValueError, "expected 4 gradients"),  # noqa: B023
            (lambda: step(m, g, w[:-1], state), ValueError, "expected 4 weights"),  # noqa: B023
            (lambda: SCALES[kind](m, None), TypeError, "base must be an optax transformation"),  # noqa: B023
            (lambda: SCALES[kind]([m], optax.identity()), TypeError, "module must be a Module"),  # noqa: B023
            (lambda: SCALES[kind](m, optax.identity(), -1), ValueError, "first must be positive"),  # noqa: B023
        ]:
            with pytest.raises(error, match=message):
                call()
        ours = SCALES[kind](m, optax.identity())
        with pytest.raises(ValueError, match="needs the parameters"):
            ours.update(g, ours.init(w))


# ---- schedule-free -----------------------------------------------------------------------------------------------------------


def test_the_loop_without_a_schedule_is_that_of_optax():
    m = network()
    gs = gradients(m, 6, dtype=np.float32)
    w = m.initialize(0)
    theirs = optax.contrib.schedule_free(optax.sgd(0.3), 0.3, 0.9)
    jw = [jnp.asarray(a) for a in w]
    jstate, state = theirs.init(jw), mr.optim.schedule_free_init(w)
    for g in gs:
        made, jstate = theirs.update(g, jstate, jw)
        jw = optax.apply_updates(jw, made)
        at, state = mr.optim.schedule_free(g, state, 0.3, 0.9)
    averaged = optax.contrib.schedule_free_eval_params(jstate, jw)
    for mine, other in ((at, jw), (state.fast, jstate.z), (state.average, averaged)):
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_decay_acts_on_the_fast_weights():
    m = mr.Linear(3, 4) @ mr.Linear(4, 5)
    w = m.initialize(jax.random.key(0))
    zero = [jnp.zeros_like(a) for a in w]
    shrink = optax.chain(mr.optax.add_modular_decay(m, 1.0), optax.scale(-0.5))
    ours, theirs = mr.optax.schedule_free(shrink, 0.5), optax.contrib.schedule_free(shrink, 0.5)
    found = []
    for transform in (ours, theirs):
        state, params = transform.init(w), w
        for _ in range(8):
            made, state = transform.update(zero, state, params)
            params = optax.apply_updates(params, made)
        found.append(state.z)
    np.testing.assert_allclose(found[0][0], w[0] * (1 - 0.5 * 0.5) ** 8, rtol=1e-4)
    assert (found[1][0] * w[0] < 0).all()  # decay at y takes more than z has left, and z changes its sign


@pytest.mark.slow
def test_schedule_free_with_our_norm_learns():
    m = mr.MLP(1, 4, width=16, depth=2)
    x = jax.random.normal(jax.random.key(1), (64, 4))
    ours = mr.optax.scale_by_modular_norm(m)
    base = optax.chain(optax.scale_by_adam(b1=0.0), ours, mr.optax.add_modular_decay(m, 0.01), optax.scale(-0.3))
    automatic = optax.chain(mr.optax.scale_by_dog(m, mr.optax.scale_by_modular_norm(m, "dualize")), optax.scale(-1.0))
    for transform in (mr.optax.schedule_free(base, 0.3), mr.optax.schedule_free(automatic, 1.0)):
        w = m.initialize(jax.random.key(0))
        state = transform.init(w)

        @jax.jit
        def step(w, state, transform=transform):
            g = jax.grad(lambda w: jnp.mean((m(x, w) - jnp.sin(x[:, :1])) ** 2))(w)
            made, state = transform.update(g, state, w)
            return optax.apply_updates(w, made), state

        for _ in range(60):
            w, state = step(w, state)
        final = optax.contrib.schedule_free_eval_params(state, w)
        assert float(jnp.mean((m(x, final) - jnp.sin(x[:, :1])) ** 2)) < 0.1  # 0.43 for an output of zero


def test_bad_arguments_of_schedule_free():
    m = network()
    w = m.initialize(0)
    state = mr.optim.schedule_free_init(w)
    for call, error, message in [
        (lambda: mr.optim.schedule_free(w, (), 0.1), TypeError, "must be the ScheduleFreeState"),
        (lambda: mr.optim.schedule_free(w[:-1], state, 0.1), ValueError, "updates must have the shapes"),
        (lambda: mr.optim.schedule_free(w, state, -0.1), ValueError, "rate must be at least 0"),
        (lambda: mr.optim.schedule_free(w, state, 0.1, 2.0), ValueError, "b1 must be from 0 to 1"),
        (lambda: mr.optim.schedule_free_init("w"), TypeError, "weights come as a list"),
        (lambda: mr.optax.schedule_free(None, 0.1), TypeError, "base must be an optax transformation"),
    ]:
        with pytest.raises(error, match=message):
            call()
    ours = mr.optax.schedule_free(optax.sgd(0.1), 0.1)
    with pytest.raises(ValueError, match="needs the parameters"):
        ours.update(w, ours.init([jnp.asarray(a) for a in w]))
