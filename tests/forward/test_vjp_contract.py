"""The contract of m.vjp for users: arguments, results, errors, users' own atoms and bonds, JAX arrays, training."""

import jax
import jax.numpy as jnp
import ml_dtypes
import modula_rs as mr
import numpy as np
import pytest
from user_modules import Gain


class GainWithVjp(Gain):
    def vjp(self, x, w):
        return self.forward(x, w), lambda dy: (dy * w[0], [(dy * x).sum()])


class Sine(mr.Bond):
    def forward(self, x):
        return np.sin(x) if isinstance(x, np.ndarray) else jnp.sin(x)


class SineWithVjp(Sine):
    def vjp(self, x):
        return np.sin(x), lambda dy: dy * np.cos(x)


class SineAsModula(mr.Bond):
    def forward(self, x, w):
        return np.sin(x)

    def vjp(self, x, w):
        return np.sin(x), lambda dy: (dy * np.cos(x), [])


def test_a_users_own_atoms_and_bonds():
    x = np.random.default_rng(0).standard_normal((4, 3))
    w = [np.array(0.7), np.array([0.5, 2.0])]
    plain = Gain() ** 2 @ Sine() @ Gain()
    with jax.enable_x64(True):
        y, pullback = jax.vjp(plain.forward, jnp.asarray(x), [jnp.asarray(a) for a in w])
        expected = pullback(jnp.ones_like(y))
    for bond in (SineWithVjp(), SineAsModula()):
        m = GainWithVjp() ** 2 @ bond @ GainWithVjp()
        dx, gradients = m.vjp(x, w)[1](np.ones((4, 3)))
        np.testing.assert_allclose(dx, expected[0], rtol=1e-13)
        for ours, theirs in zip(gradients, expected[1], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-13)


def test_a_users_own_atom_or_bond_without_one_is_told_what_to_define():
    x, w = np.ones((4, 3)), [np.ones(())]
    with pytest.raises(TypeError, match=r"^gain: Gain has no gradient for numpy arrays: define vjp\(self, x, w\)"):
        Gain().named("gain").vjp(x, w)
    with pytest.raises(TypeError, match=r"^gain: "):
        (mr.Identity() @ Gain()).vjp(x, w)
    with pytest.raises(TypeError, match=r"^Sine has no gradient for numpy arrays: define vjp\(self, x\)"):
        (Sine() @ mr.Identity()).vjp(x, [])
    y, pullback = (Gain() @ Sine()).vjp(jnp.asarray(x), [jnp.ones(())])  # JAX needs no vjp
    assert pullback(y)[0].shape == x.shape


def test_a_users_wrong_gradient_is_told_apart():
    class WrongInput(GainWithVjp):
        def vjp(self, x, w):
            return self.forward(x, w), lambda dy: (dy.sum(), [(dy * x).sum()])

    class WrongWeight(GainWithVjp):
        def vjp(self, x, w):
            return self.forward(x, w), lambda dy: (dy * w[0], [dy * x])

    class TwoGradients(GainWithVjp):
        def vjp(self, x, w):
            return self.forward(x, w), lambda dy: (dy * w[0], [dy.sum(), dy.sum()])

    x, w = np.ones((4, 3)), [np.ones(())]
    for cls, message in [
        (WrongInput, r"input that wronginput gives must have shape \(4, 3\), got \(\)"),
        (WrongWeight, r"gradient that wrongweight gives must have shape \(\), got \(4, 3\)"),
        (TwoGradients, "TwoGradients must return a list of one array, got 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            (mr.Identity() @ cls()).vjp(x, w)[1](x)


def test_no_gradient_from_a_users_vjp_means_zero():
    class Stop(mr.Bond):
        def forward(self, x):
            return x

        def vjp(self, x):
            return x, lambda dy: None

    m = mr.Identity() + mr.Linear(3, 3) @ Stop() @ mr.Linear(3, 3)
    w, x = m.initialize(0), np.ones((2, 3), np.float32)
    dx, gradients = m.vjp(x, w)[1](x)
    np.testing.assert_array_equal(dx, x)
    np.testing.assert_array_equal(gradients[0], 0)
    assert gradients[0].shape == (3, 3)
    assert gradients[1].any()


def test_the_cotangent_of_the_output():
    m = mr.Linear(2, 3)
    w, x = m.initialize(0), np.ones((4, 3), np.float32)
    y, pullback = m.vjp(x, w)
    expected = pullback(np.ones_like(y))[1][0]
    for same in (np.ones((4, 2)), np.ones((4, 2), int), np.ones((4, 2), ml_dtypes.bfloat16), [[1.0, 1.0]] * 4):
        (gradient,) = pullback(same)[1]
        assert gradient.dtype == np.float32
        np.testing.assert_array_equal(gradient, expected)
    with pytest.raises(ValueError, match=r"cotangent of the output must have shape \(4, 2\), got \(2,\)"):
        pullback(np.ones(2))
    with pytest.raises(TypeError, match="real numbers, got complex128"):
        pullback(np.ones((4, 2), complex))
    with pytest.raises(TypeError, match="must be an array of numpy, got one of jax"):
        pullback(jnp.ones((4, 2)))
    both = m @ mr.Identity(), mr.Identity()
    _, pullback = (mr.Identity() @ both).vjp(x, w)
    with pytest.raises(ValueError, match="must be a tuple of 2, got ndarray"):
        pullback(np.ones((4, 2)))
    assert pullback((np.ones((4, 2)), None))[0].shape == (4, 3)


def test_inputs_and_weights_are_checked_as_in_the_forward_pass():
    m = mr.Linear(2, 3).named("head") @ mr.Tanh()
    w, x = m.initialize(0), np.ones((4, 3))
    with pytest.raises(ValueError, match=r"^head: expected an input of shape \(..., 3\), got \(4, 2\)"):
        m.vjp(np.ones((4, 2)), w)
    with pytest.raises(ValueError, match=r"weight of head must have shape \(2, 3\), got \(3, 2\)"):
        m.vjp(x, [w[0].T])
    with pytest.raises(TypeError, match="real numbers, got complex128"):
        m.vjp(x + 1j, w)
    with pytest.raises(TypeError, match="real numbers"):
        m.vjp(np.array(["a", "b", "c"]), w)


def test_tuples_in_and_out():
    m = mr.Mul(2) @ mr.Identity()
    x = (np.ones((2, 3)), np.arange(2))
    (a, b), pullback = m.vjp(x, [])
    dx, gradients = pullback((a, b))
    assert gradients == []
    np.testing.assert_array_equal(dx[0], 4)
    assert dx[1] is None
    _, pullback = mr.Add().vjp((np.ones((2, 3), np.float32), np.ones(3)), [])
    dx, _ = pullback(np.ones((2, 3)))
    assert [(d.shape, d.dtype) for d in dx] == [((2, 3), np.float32), ((3,), np.float64)]
    np.testing.assert_array_equal(dx[1], 2)


def test_broadcast_sums_add_back():
    # Positions (T, d) are added to tokens (B, T, d), and some axes have size one.
    shapes = [(4, 3, 2), (3, 2), (1, 3, 2), (4, 1, 1), (2,), ()]
    x = tuple(np.random.default_rng(0).standard_normal(shape) for shape in shapes)
    y, pullback = mr.Add().vjp(x, [])
    dy = np.random.default_rng(1).standard_normal(y.shape)
    with jax.enable_x64(True):
        expected = jax.vjp(mr.Add().apply, tuple(map(jnp.asarray, x)))[1](jnp.asarray(dy))[0]
        for ours, theirs, shape in zip(pullback(dy)[0], expected, shapes, strict=True):
            assert ours.shape == shape
            np.testing.assert_allclose(ours, theirs, rtol=1e-13)


@pytest.mark.slow
def test_on_jax_arrays_it_is_jax_vjp():
    m = mr.MLP(2, 3, width=8, depth=3)
    w = m.initialize(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (4, 3))
    y, pullback = m.vjp(x, w)
    _, pullback_jax = jax.vjp(m.forward, x, w)
    for ours, theirs in zip(jax.tree.leaves(pullback(y)), jax.tree.leaves(pullback_jax(y)), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    @jax.jit
    def step(x, w):
        y, pullback = m.vjp(x, w)
        return pullback(2 * y)

    expected = jax.grad(lambda w: (m(x, w) ** 2).sum())(w)
    for ours, theirs in zip(step(x, w)[1], expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    table = mr.Linear(3, 4) @ mr.Embed(4, 7)
    w = table.initialize(jax.random.key(0))
    for tokens in (np.array([1, 2]), jnp.array([1, 2])):
        y, pullback = table.vjp(tokens, w)
        dx, gradients = pullback(np.ones((2, 3)))  # the cotangent may have any dtype
        assert dx is None
        assert gradients[0].shape == (7, 4)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16], ids=str)
def test_a_network_trains_in_numpy_alone(dtype):
    rng = np.random.default_rng(0)
    m = mr.ResMLP(width=16, num_blocks=3, block_depth=2, input_dim=4, output_dim=1)
    x = rng.standard_normal((64, 4)).astype(dtype)
    wanted = np.sin(2 * x[:, :1]) * x[:, 1:2]
    w = m.initialize(0, dtype)
    losses = []
    for step in range(60):
        y, pullback = m.vjp(x, w)
        losses.append(float(((y - wanted).astype(np.float64) ** 2).mean()))
        _, gradients = pullback((y - wanted) / len(x))
        rate = 0.3 * (1 - step / 60)
        w = [(a - rate * u).astype(dtype) for a, u in zip(w, m.dualize(gradients), strict=True)]
    assert losses[-1] < 0.1 * losses[0]
    assert all(a.dtype == dtype for a in w)
