"""Sharpness as a bound: second derivatives by differences never exceed it and reach it where it is tight; a loss obeys its consequence."""

import math

import modula_rs as mr
import numpy as np
import pytest
from modula_rs.compound import residual

STEP = 1e-3

#: Smooth networks on 5 features. The rules hold for RMS norms of input and output, and weights of atom norm 1.
NETWORKS = {
    "two linear": lambda: mr.Linear(3, 4) @ mr.Linear(4, 5),
    "tanh": lambda: mr.Linear(3, 4) @ mr.Tanh() @ mr.Linear(4, 5),
    "gelu, three layers": lambda: mr.Linear(2, 4) @ mr.GELU() @ mr.Linear(4, 4) @ mr.Tanh() @ mr.Linear(4, 5),
    "scaled": lambda: 0.5 * (mr.Linear(3, 4) @ (mr.Tanh() * 0.7) @ mr.Linear(4, 5)),
    "a sum": lambda: mr.Linear(3, 5) - 0.3 * (mr.Linear(3, 4) @ mr.Tanh() @ mr.Linear(4, 5)),
    "masses": lambda: mr.Linear(3, 4, mass=3) @ mr.Tanh() @ mr.Linear(4, 5, mass=0.5),
    "vectors": lambda: mr.Scale(5) @ mr.Tanh() @ mr.Bias(5) @ mr.Scale(5),
    "a power": lambda: (mr.Tanh() @ mr.Linear(5, 5)) ** 3,
    "a residual chain": lambda: mr.Linear(2, 5) @ residual(mr.Tanh() @ mr.Linear(5, 5), 4).tare(2),
}


def rms(x):
    return float(np.sqrt((x**2).mean(axis=-1)).max())


class At:
    """A network at random weights and a random input, each of norm 1."""

    def __init__(self, m, rng):
        self.m, self.rng = m, rng
        self.w = [a if a.any() else 0.1 * rng.standard_normal(a.shape) for a in m.initialize(rng, np.float64)]
        self.x = self.direction_of_input()

    def direction_of_input(self):
        # Inputs with equal and with very different features: an elementwise bond bends most along one feature.
        x = self.rng.standard_normal(5) * self.rng.choice([1.0, 10.0], 5)
        return x / rms(x)

    def direction_of_weights(self):
        # Moves of norm 1 in every atom; moves of low rank change some inputs most.
        g = [self.rng.standard_normal((*a.shape[:-1], 1)) * self.rng.standard_normal(a.shape[-1]) for a in self.w]
        made = self.m.normalize(g)
        size = self.m.norm(made)
        return [a / size for a in made]


@pytest.mark.parametrize("name", NETWORKS)
def test_second_derivatives_stay_within_it(name):
    m, rng = NETWORKS[name](), np.random.default_rng(0)
    alpha, beta, gamma = m.sharpness
    largest = np.zeros(3)
    for _ in range(60):
        at = At(m, rng)
        dw, dw2, dx, dx2 = at.direction_of_weights(), at.direction_of_weights(), at.direction_of_input(), at.direction_of_input()
        h = STEP

        def weights(t, s, at=at, dw=dw, dw2=dw2):
            return m(at.x, [a + t * d + s * e for a, d, e in zip(at.w, dw, dw2, strict=True)])

        def mixed(t, s, at=at, dw=dw, dx=dx):
            return m(at.x + s * dx, [a + t * d for a, d in zip(at.w, dw, strict=True)])

        def inputs(t, s, at=at, dx=dx, dx2=dx2):
            return m(at.x + t * dx + s * dx2, at.w)

        for place, f in enumerate((weights, mixed, inputs)):
            second = (f(h, h) - f(h, -h) - f(-h, h) + f(-h, -h)) / (4 * h * h)
            largest[place] = max(largest[place], rms(second))
    # The error of a difference is h^2 times a fourth derivative, of the order of 1e-6 of the bounds.
    assert (largest <= np.array([alpha, beta, gamma]) * 1.001 + 1e-5).all(), (largest, m.sharpness)
    # The bounds are not far too large: random directions come within a factor of 100 of each bound that is not zero.
    assert (largest >= np.array([alpha, beta, gamma]) / 100).all(), (largest, m.sharpness)


def test_two_linear_maps_reach_it():
    # For aligned moves of rank one every inequality is an equality.
    m = mr.Linear(4, 4, mass=2) @ mr.Linear(4, 4)
    one = np.full((4, 4), 1 / 4)  # u u^T with u the unit vector along the input
    x = np.ones(4)
    dw = m.normalize([one, one])
    alpha = rms(2 * dw[1] @ dw[0] @ x)  # d^2/dt^2 of (W2 + t dW2)(W1 + t dW1) x
    assert alpha == pytest.approx(m.sharpness.alpha, rel=1e-6)
    eye = [np.eye(4), np.eye(4)]
    beta = rms((dw[1] @ eye[0] + eye[1] @ dw[0]) @ x)
    assert beta == pytest.approx(m.sharpness.beta, rel=1e-6)


def test_the_bend_of_a_division_by_the_rms_is_reached_at_rms_one():
    m, d = mr.RMSDivide(), 8
    x, across = np.ones(d), np.where(np.arange(d) % 2, 1.0, -1.0)  # orthogonal, both of RMS 1
    largest = 0.0
    for angle in np.linspace(0, math.pi, 181):
        u = math.cos(angle) * x + math.sin(angle) * across
        h = STEP
        second = (m(x + 2 * h * u, []) - 2 * m(x, []) + m(x - 2 * h * u, [])) / (4 * h * h)
        largest = max(largest, rms(second))
    assert largest == pytest.approx(m.sharpness.gamma, rel=1e-3)


@pytest.mark.parametrize("bond", [mr.Tanh, mr.GELU], ids=["Tanh", "GELU"])
def test_the_bend_of_an_elementwise_bond_is_reached_along_one_feature(bond):
    d = 6
    m = mr.Scale(d) @ bond()
    steepest = max(
        (rms((m(x + s, w) - 2 * m(x, w) + m(x - s, w)) / STEP**2))
        for w in [[np.ones(d)]]
        for t in np.linspace(-2, 2, 401)
        for x, s in [(np.eye(d)[0] * t, np.eye(d)[0] * STEP * math.sqrt(d))]
    )
    assert steepest == pytest.approx(m.sharpness.gamma, rel=1e-3)


@pytest.mark.parametrize("name", ["two linear", "tanh", "a residual chain", "a power"])
def test_a_loss_stays_within_its_quadratic_bound(name):
    m, rng = NETWORKS[name](), np.random.default_rng(0)
    for _ in range(20):
        at = At(m, rng)
        x = np.stack([At(m, rng).x for _ in range(8)])
        w = [0.5 * a for a in at.w]
        wanted = rng.standard_normal((8, m.out_features or 5))

        def loss(w, x=x, wanted=wanted):
            return 0.5 * float(((m(x, w) - wanted) ** 2).mean())

        y, pullback = m.vjp(x, w)
        gradient = pullback((y - wanted) / y.size)[1]
        # |y| <= 1 for weights of norm 1 at most; half the squared RMS error: t = 1, s = the largest RMS of an error.
        curvature = (1 + rms(wanted)) * m.sharpness.alpha + 1
        for size in (0.4, 0.1, 0.01):
            dw = [size * d for d in at.direction_of_weights()]
            first = sum(float((g * d).sum()) for g, d in zip(gradient, dw, strict=True))
            excess = loss([a + d for a, d in zip(w, dw, strict=True)]) - loss(w) - first
            assert abs(excess) <= curvature / 2 * size**2
