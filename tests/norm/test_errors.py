"""Bad input raises an ordinary exception that names the leaf, what was expected and what came."""

import jax
import jax.numpy as jnp
import ml_dtypes
import modula_rs as mr
import numpy as np
import pytest

MAPS = ["norm", "dual_norm", "normalize", "dualize", "project", "regularize"]


def network():
    return (mr.Linear(2, 4).named("head") @ mr.Linear(4, 4).named("block") ** 3) @ mr.Embed(4, 5).named("table")


def call(m, name, w):
    return m.regularize(w, 0.1) if name == "regularize" else getattr(m, name)(w)


def weights(library):
    return network().initialize(jax.random.key(0) if library == "jax" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["numpy", "jax"])
@pytest.mark.parametrize("name", [*MAPS, "forward", "vjp"])
def test_weights_that_do_not_fit(name, library):
    m, w = network(), weights(library)
    xp = jnp if library == "jax" else np

    def run(w):
        return getattr(m, name)(xp.array([1, 2]), w) if name in ("forward", "vjp") else call(m, name, w)

    with pytest.raises(ValueError, match=r"expected 3 \w+s \(table, block, head\), got 2"):
        run(w[:2])
    with pytest.raises(ValueError, match=r"of block must have shape \(3, 4, 4\), got \(4, 4\)"):
        run([w[0], w[1][0], w[2]])
    with pytest.raises(ValueError, match=r"of head must be float64, float32, float16, bfloat16, got int32"):
        run([*w[:2], w[2].astype(np.int32)])
    with pytest.raises(ValueError, match=r"of head must be .*, got complex64"):
        run([*w[:2], w[2].astype(np.complex64)])
    with pytest.raises(TypeError, match=r"of head must be a NumPy, JAX or CuPy array, got list"):
        run([*w[:2], [[1.0] * 4] * 2])
    with pytest.raises(TypeError, match=r"of head must be a NumPy, JAX or CuPy array, got NoneType"):
        run([*w[:2], None])
    with pytest.raises(TypeError, match=r"as a list of arrays, one for each of m.leaves, got ndarray|ArrayImpl"):
        run(w[0])
    with pytest.raises(TypeError, match=r"as a list of arrays, .*, got dict"):
        run(dict(enumerate(w)))
    with pytest.raises(TypeError, match="one library"):
        run([*w[:2], np.asarray(w[2]) if library == "jax" else jnp.asarray(w[2])])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("library", ["numpy", "jax"])
@pytest.mark.parametrize("name", ["normalize", "dualize", "project"])
def test_numbers_that_are_not_finite(name, library, dtype):
    m = network()
    with jax.enable_x64(True):
        given = [a.astype(dtype) for a in m.initialize(0, np.float64)]
        given[1][1, 2, 3], given[1][1, 0, 0], given[1][2, 0, 1] = np.nan, np.inf, -np.inf
        w = [jnp.asarray(a) for a in given] if library == "jax" else given
        with pytest.raises(FloatingPointError, match="block: 3 of 48 numbers are not finite"):
            call(m, name, w)
        made = getattr(m, name)(w, nonfinite="zero")
        blank = np.zeros_like(given[1])
        blank[0] = given[1][0]
        given = [given[0], blank, given[2]]
        clean = getattr(m, name)([jnp.asarray(a) for a in given] if library == "jax" else given)
        for a, b in zip(made, clean, strict=True):
            np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64))
        assert not np.asarray(made[1][1:], np.float64).any()
        assert np.asarray(made[1][0], np.float64).any()
        with np.errstate(all="ignore"):
            through = getattr(m, name)(w, nonfinite="propagate")
        assert not np.isfinite(np.asarray(through[1][1], np.float64)).all()
        assert np.isfinite(np.asarray(through[0], np.float64)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["normalize", "dualize", "project"])
def test_under_jit_they_are_zeroed_only_if_asked_for(name):
    m = network()
    w = m.initialize(jax.random.key(0))
    w[2] = w[2].at[0, 0].set(jnp.nan)
    zeroed = jax.jit(lambda w: getattr(m, name)(w, nonfinite="zero"))(w)
    assert not zeroed[2].any()
    assert all(jnp.isfinite(a).all() for a in zeroed)
    assert not jnp.isfinite(jax.jit(getattr(m, name))(w)[2]).all()
    with pytest.raises(FloatingPointError, match="head: 1 of 8"):
        getattr(m.named("compiled").jit(), name)(w)


def test_arguments_of_the_maps():
    m = network()
    w = m.initialize(0)
    for name in ("normalize", "dualize"):
        for bad in (-1.0, np.nan, np.inf):
            with pytest.raises(ValueError, match="target_norm must be finite and at least 0, got"):
                getattr(m, name)(w, bad)
        for bad in ("1", None, [1.0, 2.0]):
            with pytest.raises(TypeError, match="target_norm must be a number, got"):
                getattr(m, name)(w, bad)
        with pytest.raises(ValueError, match="nonfinite must be one of 'raise', 'zero', 'propagate', got 'skip'"):
            getattr(m, name)(w, nonfinite="skip")
    for bad in (0, -1, 1.5, "5"):
        with pytest.raises(ValueError, match="steps must be a positive int"):
            m.dualize(w, steps=bad)
    for bad in ("a", None):
        with pytest.raises((TypeError, ValueError)):
            m.regularize(w, bad)


@pytest.mark.parametrize(
    ("key", "error"),
    [(-1, ValueError), ("0", TypeError), (0.5, TypeError), (None, TypeError), (True, TypeError), (np.zeros(2), TypeError)],
)
def test_keys(key, error):
    with pytest.raises(error, match=r"seed|key"):
        network().initialize(key)


@pytest.mark.parametrize("dtype", [np.int32, np.complex64, "U3", bool])
def test_dtypes_of_fresh_weights(dtype):
    with pytest.raises(ValueError, match="weights may be float64, float32, float16, bfloat16"):
        network().initialize(0, dtype)


def test_inputs_that_do_not_fit():
    m = network()
    w = m.initialize(0)
    with pytest.raises(TypeError, match=r"^table: an Embed takes integer tokens, got float64"):
        m(np.ones(3), w)
    for bad in ([5], [-6]):
        with pytest.raises(ValueError, match=r"^table: tokens must be at least 0 and below 5"):
            m(np.array(bad), w)
        with pytest.raises(IndexError):
            m(np.array(bad), w)
    head = mr.Linear(2, 4).named("head")
    w = head.initialize(0)
    for bad in (np.ones((3, 5)), np.ones(()), np.ones((4, 0))):
        with pytest.raises(ValueError, match=r"^head: expected an input of shape \(\.\.\., 4\), got \("):
            head(bad, w)
    with pytest.raises(TypeError, match="real numbers"):
        head(np.array(["a"] * 4), w)
    with pytest.raises(TypeError, match=r"head: expected one array, got a tuple of 2"):
        head((np.ones(4), np.ones(4)), w)
    with pytest.raises(ValueError, match=r"^conv2d: expected images of shape \(\.\.\., height, width, 3\), got \(4, 3\)"):
        mr.Conv2D(2, 3)(np.ones((4, 3)), mr.Conv2D(2, 3).initialize(0))


@pytest.mark.parametrize("atom", [mr.Linear, mr.Embed, mr.Conv2D])
def test_sizes_of_atoms(atom):
    for bad in ((-1, 3), (3, -1), (2**64, 3)):
        with pytest.raises((ValueError, OverflowError)):
            atom(*bad).mass  # noqa: B018
    for bad in ((1.5, 3), ("3", 3), (None, 3)):
        with pytest.raises(TypeError, match="must be an integer"):
            atom(*bad)
    for mass in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match="mass"):
            atom(3, 3, mass=mass).mass  # noqa: B018
    with pytest.raises(TypeError, match="share must be a string"):
        atom(3, 3, share=3)


def test_shared_arrays_must_have_one_shape():
    m = mr.Linear(3, 3, share="s") @ mr.Linear(3, 4, share="s")
    with pytest.raises(ValueError, match=r"s.*\[3, 4\].*\[3, 3\]|\(3, 4\).*\(3, 3\)"):
        m.initialize(0)


def test_sensitivities_and_sharpnesses_of_bonds():
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="sensitivity"):
            mr.ReLU(sensitivity=bad).mass  # noqa: B018
    with pytest.raises(ValueError, match="sharpness"):
        mr.ReLU(sharpness=(0, -1, 0)).mass  # noqa: B018
    with pytest.raises(ValueError, match="sharpness"):
        mr.ReLU(sharpness=(0, 0)).mass  # noqa: B018
    assert mr.ReLU(sharpness=(0, 0, 2)).sharpness.gamma == 2
    assert mr.ReLU(sharpness=(0, 0, 2)).smooth


def test_targets_beyond_the_range_are_refused():
    vanishing = mr.Linear(3, 3) @ mr.Linear(3, 3)
    for _ in range(40):
        vanishing = 1e-10 * vanishing
    with pytest.raises(ValueError, match="linear"):
        vanishing.targets()


def test_half_precision_results_that_overflow_are_no_panic():
    m = mr.Linear(4, 4)
    w = [np.full((4, 4), 6e4, np.float16)]
    assert np.isfinite(m.dualize(w, 1e3)[0].astype(np.float64)).all()
    made = m.normalize([a.astype(ml_dtypes.bfloat16) for a in w], 1e38)
    assert made[0].dtype == ml_dtypes.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("library", ["numpy", "jax", "jit"])
@pytest.mark.parametrize(
    ("dtype", "target"), [("float16", 1e9), ("float16", 1e38), ("bfloat16", 1e39), ("float32", 1e39), ("float32", 1e300)]
)
def test_an_update_beyond_its_dtype_is_refused(library, dtype, target):
    m = mr.Linear(4, 4) @ mr.Bias(4) @ mr.Embed(4, 3)
    w = [np.asarray(a + 1, jnp.dtype(dtype)) for a in m.initialize(0)]
    w = w if library == "numpy" else [jnp.asarray(a) for a in w]
    m = m.jit() if library == "jit" else m
    for call in (m.normalize, m.dualize):
        with pytest.raises(ValueError, match=r"embed: a target norm of 1e.* is too large"):
            call(w, target)
        assert all(bool(np.isfinite(np.asarray(a, np.float64)).all()) for a in call(w, 1e3))


@pytest.mark.parametrize("share", [None, "one"])
@pytest.mark.parametrize("mass", [1e-30, 1e-39, 1e-44, 1e-60, 1e-300])
def test_a_mass_of_next_to_nothing_makes_no_norm_undefined(mass, share):
    """The target of the first array is below the least float32, which updates of JAX are in: they are 0, and 0 over its target is 0."""
    m = mr.Linear(4, 4, mass=mass, share=share) @ mr.Linear(4, 4) @ mr.Linear(4, 4, share=share)
    w = [jnp.ones(leaf.shape) for leaf in m.leaves]
    update = m.normalize(w)
    assert float(m.norm(update)) == pytest.approx(1.0, abs=1e-2)
    assert float(m.norm([jnp.zeros_like(a) for a in w])) == 0.0
    small = [np.full(leaf.shape, 1e-9) for leaf in m.leaves]
    expected = m.norm(small)  # in float64
    found = float(m.norm([jnp.asarray(a, jnp.float32) for a in small]))
    assert found == pytest.approx(expected, rel=1e-2) if expected < 3e38 else np.isinf(found)


@pytest.mark.parametrize("strength", ["0.1", None, [0.1], float("nan"), float("inf"), 10**400])
def test_a_strength_is_a_finite_number(strength):
    m = mr.Linear(3, 3)
    with pytest.raises((TypeError, ValueError), match="strength must be"):
        m.regularize(m.initialize(0), strength)
