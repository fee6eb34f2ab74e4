"""The curvature of losses, and certified rates: descent measured on many networks, losses and starts, in float64."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest
from modula_rs.compound import residual

pytestmark = pytest.mark.usefixtures("double_precision")

NETWORKS = {
    "linear": lambda: mr.Linear(4, 6) @ mr.Linear(6, 5),
    "tanh": lambda: mr.Linear(4, 16, mass=2) @ mr.Tanh() @ mr.Linear(16, 5),
    "gelu": lambda: mr.Linear(4, 16) @ mr.GELU() @ mr.Linear(16, 16) @ mr.GELU() @ mr.Linear(16, 5),
    "residual": lambda: mr.Linear(4, 8) @ residual(mr.Tanh() @ mr.Linear(8, 8), 5) @ mr.Linear(8, 5),
    "bias": lambda: mr.Linear(4, 8) @ mr.Tanh() @ mr.Bias(8) @ mr.Linear(8, 5),
    "scaled gelu": lambda: mr.Linear(4, 8) @ mr.ScaledGELU() @ mr.Linear(8, 5),
    "sum": lambda: mr.Linear(4, 6) @ (mr.Linear(6, 5) + mr.Tanh() @ mr.Linear(6, 5)),
    "lora": lambda: mr.Linear(4, 5, mass=0) + mr.LoRA(4, 5, 2, scale=0.3, zero=True),
    "tied": lambda: mr.Linear(4, 5, share="a") @ mr.Tanh() @ mr.Linear(5, 4, share="b") @ mr.Linear(4, 5, share="a"),
    "attention": lambda: mr.Mean(-2) @ mr.Linear(4, 5) @ mr.Attention(1, 5, 3, 3, causal=True),
    "two heads": lambda: mr.Mean(-2) @ mr.Linear(4, 5) @ mr.Attention(2, 5, 3, 3, causal=True),
}


def cross_entropy(y, target):
    return -(jax.nn.log_softmax(y) * target).sum(-1).mean()


def square(y, target):
    return ((y - target) ** 2).mean() / 2


LOSSES = {"cross_entropy": cross_entropy, "square": square}


def start(m: mr.Module, name: str, loss: str, seed: int):
    """Inputs of RMS up to 1, targets and weights; ``jax.value_and_grad`` of the loss in the weights."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((8, 3, 5) if name in ("attention", "two heads") else (8, 5))
    x *= rng.uniform(0.5, 1, (8, *(1,) * (x.ndim - 1))) / np.sqrt((x * x).mean(-1, keepdims=True))
    if loss == "square":
        target = rng.standard_normal((8, 4))
        target /= np.maximum(1, np.sqrt((target * target).mean(-1, keepdims=True)))
    else:
        target = np.eye(4)[rng.integers(0, 4, 8)]
    w = [jnp.asarray(a) for a in m.initialize(seed, "float64")]
    return w, jax.jit(jax.value_and_grad(lambda w: LOSSES[loss](m(x, w), target)))


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_loss_never_falls_by_less_than_promised(name: str, loss: str) -> None:
    m = NETWORKS[name]()
    for seed in range(4):
        w, value_and_grad = start(m, name, loss, seed)
        w = [a * (1 + seed) / 2 for a in w]  # from half to twice the norm at initialisation
        value, g = value_and_grad(w)
        for _ in range(4):
            rate = float(mr.certified_rate(m, g, loss, w=w))
            promised = rate * float(m.dual_norm(g)) / 2
            w = [a - rate * u for a, u in zip(w, m.dualize(g), strict=True)]
            after, g = value_and_grad(w)
            # Singular values of a direction are within 0.01 of 1: the gain may be 1 % short, the curvature term 2 % more than assumed.
            assert value - after >= promised * (1 - 0.04) - 1e-14, (seed, value - after, promised)
            value = after


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["tanh", "residual", "attention"])
def test_weights_that_stay_within_norm_1_need_not_be_measured(name: str, loss: str) -> None:
    m = NETWORKS[name]()
    for seed in range(3):
        w, value_and_grad = start(m, name, loss, seed)
        w = [0.8 * a for a in w]
        value, g = value_and_grad(w)
        rate = float(mr.certified_rate(m, g, loss))
        assert rate == pytest.approx(float(m.dual_norm(g)) / mr.smoothness(m, loss))
        w = [a - rate * u for a, u in zip(w, m.dualize(g), strict=True)]
        assert max(m.atom_norms(w)) <= 1
        assert value - value_and_grad(w)[0] >= 0.96 * rate * float(m.dual_norm(g)) / 2


@pytest.mark.slow
def test_the_loss_bends_no_more_than_the_bound() -> None:
    """Along any direction, not only the steepest: |L(w + dw) - L(w) - <g, dw>| <= S / 2 |dw|^2."""
    for name in ("tanh", "bias"):
        m = NETWORKS[name]()
        for loss in LOSSES:
            w, value_and_grad = start(m, name, loss, 0)
            bound = mr.smoothness(m, loss, weight_norms=1.5)
            value, g = value_and_grad(w)
            for seed in range(5):
                rng = np.random.default_rng(seed)
                dw = m.normalize([rng.standard_normal(a.shape) for a in w], 0.4)
                after, _ = value_and_grad([a + b for a, b in zip(w, dw, strict=True)])
                linear = sum(float((a * b).sum()) for a, b in zip(g, dw, strict=True))
                assert abs(after - value - linear) <= bound / 2 * 0.4**2 * 1.02


def test_the_number_is_what_the_sharpness_and_the_loss_make() -> None:
    m = NETWORKS["tanh"]()
    alpha = m.sharpness.alpha
    assert mr.smoothness(m, "cross_entropy") == pytest.approx(math.sqrt(8) * alpha + 2)
    assert mr.smoothness(m, "cross_entropy", classes=10) == pytest.approx(math.sqrt(20) * alpha + 5)
    assert mr.smoothness(m, "square", error=0.5) == pytest.approx(0.5 * alpha + 1)
    assert mr.smoothness(m, "square") == pytest.approx(2 * alpha + 1)
    assert mr.smoothness(m, (3, 0.25)) == pytest.approx(3 * alpha + 0.25)
    # A loss that is linear in the output, in a network that is linear in its weights.
    assert mr.smoothness(mr.Linear(4, 5), (3, 0)) == 0.0
    # Weights that reach further bend more.
    assert mr.smoothness(m, (0, 1), weight_norms=2.0) > mr.smoothness(m, (0, 1))
    gained = NETWORKS["bias"]().certificate()
    assert mr.smoothness(NETWORKS["bias"](), (1, 1)) == pytest.approx(gained.sharpness.alpha + gained.gain**2)


@pytest.mark.slow
def test_the_bounds_of_the_losses() -> None:
    """s and t against the suprema of the losses' derivatives, in the dual of the RMS norm."""
    rng = np.random.default_rng(0)
    for classes in (2, 10):
        s = t = 0.0
        for scale in (0.1, 1, 10, 100):
            for _ in range(4):
                y, target = jnp.asarray(rng.standard_normal(classes) * scale), np.eye(classes)[0]
                s = max(s, float(jnp.linalg.norm(jax.grad(cross_entropy)(y, target))) * classes**0.5)
                t = max(t, float(jnp.linalg.norm(jax.hessian(cross_entropy)(y, target), 2)) * classes)
        two = jnp.zeros(classes).at[2:].set(-1e3)  # two classes, equally likely: there the Hessian is largest
        t = max(t, float(jnp.linalg.norm(jax.hessian(cross_entropy)(two, np.eye(classes)[0]), 2)) * classes)
        assert 0.9 * math.sqrt(2 * classes) < s <= math.sqrt(2 * classes) + 1e-9
        assert t == pytest.approx(classes / 2)


def test_what_has_no_bound_is_refused_with_its_cause() -> None:
    for m, cause in [
        (mr.MLP(4, 5, 6, 3), "ReLU: it has no second derivative"),
        (mr.ResMLP(8, 2, 2, 5, 4), "blocks/RMSDivide: its output moves without bound"),
        (mr.Linear(4, 6) @ (mr.Abs() @ mr.Linear(6, 6)).named("fold") @ mr.Linear(6, 5), "fold/Abs"),
        (mr.Mean(0) @ mr.Tanh() @ mr.Flatten() @ mr.Linear(6, 5), "which is not known here"),
    ]:
        with pytest.raises(ValueError, match=f"no bounded curvature .*{cause}"):
            mr.smoothness(m, (1, 1))
        with pytest.raises(ValueError, match=f"no bounded curvature .*{cause}"):
            mr.certified_rate(m, m.initialize(0), (1, 1))
    # Kinks that no trained weights act through do not matter.
    assert mr.smoothness(mr.Linear(4, 6) @ mr.ReLU(), (1, 1)) == 1.0


def test_bad_arguments_are_refused() -> None:
    m = NETWORKS["tanh"]()
    g = m.initialize(0)
    for loss in ("hinge", 3, None):
        with pytest.raises(ValueError, match='loss must be "cross_entropy", "square" or bounds'):
            mr.smoothness(m, loss)
    with pytest.raises(ValueError, match=r"bounds \(s, t\)"):
        mr.smoothness(m, (1, 2, 3))
    with pytest.raises(ValueError, match="the bound t of the loss must be finite and at least 0, got -1"):
        mr.smoothness(m, (1, -1))
    with pytest.raises(TypeError, match="the bound s of the loss must be a number"):
        mr.smoothness(m, ("1", 1))
    with pytest.raises(ValueError, match="give classes="):
        mr.smoothness(mr.Flatten() @ m, "cross_entropy")
    with pytest.raises(ValueError, match="classes must be at least 1"):
        mr.smoothness(m, "cross_entropy", classes=0)
    with pytest.raises(TypeError, match="follows from the parts of a Module, got Network"):
        mr.smoothness(mr.trace(lambda p, x: x @ p, jnp.ones((3, 4)), jnp.ones((2, 3))), (1, 1))
    with pytest.raises(FloatingPointError, match="gradient of linear"):
        mr.certified_rate(m, [np.full_like(a, np.nan) for a in g], "square")
    with pytest.raises(ValueError, match="no curvature"):
        mr.certified_rate(mr.Linear(4, 5), [np.ones((4, 5))], (1, 0))


def test_the_rate_stays_in_the_library_and_under_jit() -> None:
    m = NETWORKS["tanh"]()
    g = m.initialize(0)
    rate = mr.certified_rate(m, g, "square")
    assert isinstance(rate, float)
    traced = jax.jit(lambda g: mr.certified_rate(m, g, "square"))([jnp.asarray(a) for a in g])
    assert isinstance(traced, jax.Array)
    assert float(traced) == pytest.approx(rate, rel=1e-4)
