"""Certificates against suprema: what the derivatives of a network reach, found by alternating maximisation in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest
from modula_rs.compound import residual

pytestmark = pytest.mark.usefixtures("double_precision")


def biased() -> mr.Module:
    return mr.Linear(4, 6) @ mr.Bias(6) @ mr.Linear(6, 5)


#: Networks with bounded derivatives, each with whether it is proved to be well-normed. Inputs have five features.
NETWORKS = {
    "linears": (lambda: mr.Linear(4, 6) @ mr.Linear(6, 5), True),
    "masses": (lambda: mr.Linear(4, 6, mass=3) @ mr.Linear(6, 6, mass=0.5) @ mr.Linear(6, 5), True),
    "frozen": (lambda: mr.Linear(4, 6) @ (mr.Linear(6, 6, mass=0) + mr.Linear(6, 6, mass=0)) @ mr.Linear(6, 5), False),
    "tanh": (lambda: mr.Linear(4, 6) @ mr.Tanh() @ mr.Linear(6, 5), True),
    "gelu": (lambda: mr.Linear(4, 6) @ mr.GELU() @ mr.Linear(6, 5), True),
    "scale": (lambda: mr.Linear(4, 6) @ mr.Scale(6) @ mr.Linear(6, 5), True),
    "residual": (lambda: mr.Linear(4, 6) @ residual(mr.Tanh() @ mr.Linear(6, 6), 4) @ mr.Linear(6, 5), True),
    "shrinking": (lambda: mr.Linear(4, 6) @ (0.5 * mr.Linear(6, 6)) ** 3 @ mr.Linear(6, 5), True),
    "growing": (lambda: mr.Linear(4, 6) @ (1.5 * mr.Linear(6, 6)) ** 3 @ mr.Linear(6, 5), False),
    "scalar below": (lambda: mr.Linear(4, 6) @ (2.0 * mr.Linear(6, 5)), False),
    "scalar above": (lambda: 2.0 * mr.Linear(4, 6) @ mr.Linear(6, 5), True),
    "sum": (lambda: mr.Linear(4, 6) @ (mr.Linear(6, 5) + mr.Tanh() @ mr.Linear(6, 5)), False),
    "bias": (biased, False),
    "last bias": (lambda: mr.Bias(4) @ mr.Linear(4, 5), True),
    "bias and tanh": (lambda: mr.Linear(4, 6) @ mr.Tanh() @ mr.Bias(6) @ mr.Linear(6, 5), True),
    "scaled gelu": (lambda: mr.Linear(4, 6) @ mr.ScaledGELU() @ mr.Linear(6, 5), False),
    "declared tanh": (lambda: mr.Linear(4, 6) @ mr.Tanh(sensitivity=0.5) @ mr.Linear(6, 5), False),
    "generous tanh": (lambda: mr.Linear(4, 6) @ mr.Tanh(sensitivity=2.0) @ mr.Linear(6, 5), True),
    "lora": (lambda: mr.LoRA(4, 5, 2), True),
    "lora scale 0.25": (lambda: mr.LoRA(4, 5, 2, scale=0.25), True),
    "tied": (lambda: mr.Linear(4, 5, share="a") @ mr.Linear(5, 4, share="b") @ mr.Linear(4, 5, share="a"), True),
}
SEQUENCES = {
    "attention": (lambda: mr.Attention(1, 5, 3, 3, causal=True), True),
    "two heads": (lambda: mr.Attention(2, 5, 3, 3, causal=False), False),
    "attention of sums": (lambda: mr.Attention(1, 5, 3, 3, causal=False) @ (mr.Linear(5, 5) + mr.Linear(5, 5)), False),
}


def rms(y):
    """The largest RMS of a position."""
    return jnp.sqrt((y * y).mean(-1)).max()


def steepest(kind: str, g: np.ndarray, unit: float) -> np.ndarray:
    """The weight of norm 1 with the largest inner product, by singular value decomposition."""
    if kind == "Bias":
        return g / max(np.sqrt((g * g).mean()), 1e-300)
    if kind == "Scale":
        return np.sign(g)
    u, _, vt = np.linalg.svd(g, full_matrices=False)
    return unit * u @ vt


def duals(m: mr.Module, g, scaled: bool) -> list[np.ndarray]:
    """Weights of norm 1 in every atom or, if ``scaled``, of modular norm 1, with the largest inner product with ``g``."""
    rows = {}
    for row in m.targets():
        rows.setdefault(row.path, []).append(row)
    made = []
    for leaf, array in zip(m.leaves, g, strict=True):
        own = rows[leaf.path]
        blocks = np.asarray(array).reshape(-1, *own[0].shape)
        shape = own[0].shape
        unit = (shape[0] / shape[1]) ** 0.5 if leaf.kind == "Linear" else 1.0
        sizes = [row.target for row in own]
        if len(blocks) < len(own):  # shared: the smallest target of its uses serves all of them
            sizes = [min(sizes)]
        # m.targets() are those of the weights themselves; a scale makes weights of atom norm 1 smaller.
        scale = getattr(m.norm_table.objects[m.leaves.index(leaf)], "scale", 1.0)
        sizes = sizes if scaled else [1 / abs(scale)] * len(blocks)
        made.append(
            np.stack([size * steepest(leaf.kind, block, unit) for size, block in zip(sizes, blocks, strict=True)]).reshape(array.shape)
        )
    return made


def unit_input(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True))


def supremum(m: mr.Module, shape: tuple[int, ...], derivative: int, starts: int = 3, steps: int = 30) -> float:
    """The largest first (or second) derivative in the weights for a change of norm 1, at inputs of RMS 1 and atoms of norm 1.

    The value is maximised over change, weights and input in turn: each becomes the unit vector along its gradient, if that is better.
    """

    def value(x, w, dw):
        along = lambda w: jax.jvp(lambda w: m(x, w), (w,), (dw,))[1]  # noqa: E731
        if derivative == 1:
            return rms(along(w))
        return rms(jax.jvp(along, (w,), (dw,))[1])

    evaluate = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)))
    best = 0.0
    for seed in range(starts):
        rng = np.random.default_rng(seed)
        w = duals(m, [rng.standard_normal(leaf.shape) for leaf in m.leaves], scaled=False)
        dw = duals(m, [rng.standard_normal(leaf.shape) for leaf in m.leaves], scaled=True)
        x = unit_input(rng.standard_normal(shape))
        top, (gx, gw, gdw) = evaluate(x, w, dw)
        for _ in range(steps):
            for turn in ("dw", "x", "w"):
                trial = {"x": x, "w": w, "dw": dw}
                if turn == "x":
                    trial["x"] = unit_input(np.asarray(gx) + 1e-12 * x)
                elif turn == "w":
                    trial["w"] = duals(m, [np.asarray(g) + 1e-12 for g in gw], scaled=False)
                else:
                    trial["dw"] = duals(m, [np.asarray(g) + 1e-12 for g in gdw], scaled=True)
                found, gradients = evaluate(trial["x"], trial["w"], trial["dw"])
                if found > top:
                    x, w, dw = trial["x"], trial["w"], trial["dw"]
                    top, (gx, gw, gdw) = found, gradients
        best = max(best, float(top))
    return best


@pytest.mark.parametrize("name", NETWORKS | SEQUENCES)
def test_where_the_certificate_holds(name: str) -> None:
    build, holds = (NETWORKS | SEQUENCES)[name]
    m = build()
    certificate = m.certificate()
    assert m.well_normed == holds == (not certificate.ends)
    assert (certificate.gain <= 1 + 1e-9) == (holds or certificate.gain <= 1)
    if holds:
        assert certificate.gain == pytest.approx(1, abs=1e-9) or certificate.gain < 1
    assert np.isfinite(certificate.sharpness).all()
    assert certificate.unbounded is None


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS | SEQUENCES)
def test_no_derivative_exceeds_its_bound(name: str) -> None:
    m = (NETWORKS | SEQUENCES)[name][0]()
    certificate = m.certificate()
    shape = (1, 5) if name in NETWORKS else (3, 5)
    first, second = (supremum(m, shape, derivative) for derivative in (1, 2))
    assert first <= certificate.gain * (1 + 1e-9)
    assert second <= certificate.sharpness.alpha * (1 + 1e-9) + 1e-9
    # Without curved bonds or powers the bounds are reached, also where they are above 1.
    if name in ("linears", "masses", "scale", "scalar above", "scalar below", "bias", "last bias", "lora", "lora scale 0.25", "frozen"):
        assert first > 0.97 * certificate.gain, (first, certificate.gain)


def test_the_table_says_where_it_ends() -> None:
    text = str(biased())
    assert text.splitlines()[0].split() == ["module", "mass", "sensitivity", "share", "target", "reach"]
    rows = {line.split()[1]: line.split() for line in text.splitlines() if "Linear" in line}
    assert rows["Linear(4,"][-1] == "2"
    assert rows["Linear(6,"][-1] == "1"
    assert text.splitlines()[-1] == "not proved to be well-normed: linear_1 gets inputs of RMS up to 2"
    assert str(mr.MLP(4, 5, 6, 3)).splitlines()[-1] == "well-normed for inputs of RMS at most 1"
    gpt = str(mr.GPT(65, 64, num_heads=4, d_embed=128, d_query=32, d_value=32, num_blocks=3))
    assert "RMSDivide" in gpt.splitlines()[-1]
    assert "estimate" in gpt


def test_reach() -> None:
    assert biased().reach == 2.0
    assert mr.MLP(4, 5, 6, 3).reach == 1.0
    assert mr.Tanh().reach == 0.0  # no atoms
    assert (mr.Linear(4, 4) @ mr.Tanh() @ mr.Mul(7.0)).reach == 1.0
    assert (mr.Linear(4, 4) @ mr.Embed(4, 9)).reach == 1.0
    # The residual stream grows by a tenth in each of the first nine copies; the last copy gets what they made.
    m = (mr.Identity() + 0.1 * mr.Linear(4, 4)) ** 10
    assert m.reach == pytest.approx(1.1**9)
    assert m.certificate().output == pytest.approx(1.1**10)
    # What is not trained may get any input.
    assert (mr.Linear(4, 4, mass=0) @ (3.0 * mr.Linear(4, 4))).reach == 1.0


class Sine(mr.Bond):
    sharpness = (0, 0, 2)

    def forward(self, x):
        return jnp.sin(x)


class Shifted(mr.Bond):
    sharpness, sensitivity, at_zero = (0, 0, 0), 0.5, 1.0

    def forward(self, x):
        return 1 + x / 2


def test_users_bonds_count_by_what_they_declare() -> None:
    assert (mr.Linear(4, 4) @ Sine() @ mr.Linear(4, 4)).well_normed
    # Bounds are promised for inputs of norm at most 1.
    beyond = mr.Linear(4, 4) @ Sine() @ (2.0 * mr.Linear(4, 4))
    assert "no bound is proved" in beyond.certificate().ends[0]
    assert beyond.certificate().gain == np.inf
    assert (mr.Linear(4, 4) @ Shifted() @ mr.Linear(4, 4)).reach == 1.5
    assert Shifted().at_zero == 1.0
    with pytest.raises(ValueError, match="at_zero of Shifted must be a finite number >= 0, got -1"):
        type("Shifted", (Shifted,), {"at_zero": -1.0})()


def test_norms_of_weights_make_the_lipschitz_constant() -> None:
    m = mr.Linear(3, 6) @ mr.Tanh() @ mr.Bias(6) @ (mr.Linear(6, 6) ** 2) @ mr.Linear(6, 5)
    rng = np.random.default_rng(0)
    w = [rng.standard_normal(leaf.shape) for leaf in m.leaves]
    units = [(6 / 5) ** 0.5, 1.0, 1.0, (3 / 6) ** 0.5]
    norms = [
        float(np.sqrt((a**2).mean()) if a.ndim == 1 else np.linalg.norm(a, 2, axis=(-2, -1)).max() / unit)
        for a, unit in zip(w, units, strict=True)
    ]
    assert m.atom_norms(w) == pytest.approx(norms, rel=1e-12)
    assert m.lipschitz(w) == pytest.approx(norms[0] * norms[1] ** 2 * norms[3], rel=1e-12)
    assert m.atom_norms([jnp.asarray(a) for a in w]) == pytest.approx(norms, rel=1e-12)
    tied = mr.Linear(7, 4, share="t") @ mr.Embed(4, 7, share="t")
    table = rng.standard_normal((7, 4))
    wanted = max(np.sqrt((table**2).mean(-1)).max(), np.linalg.norm(table, 2) / (7 / 4) ** 0.5)
    assert tied.atom_norms([table]) == pytest.approx([wanted])
    assert mr.Linear(3, 4).lipschitz([np.zeros((3, 4))]) == 0.0


def test_bad_norms_are_refused() -> None:
    m = biased()
    with pytest.raises(ValueError, match="weight_norm must be a finite number >= 0, got -1"):
        m.certificate(-1.0)
    with pytest.raises(ValueError, match="one for each of 3 leaves, got 2"):
        m.certificate([1.0, 1.0])
    with pytest.raises(TypeError, match="the norm of bias must be a number, got 'two'"):
        m.certificate([1.0, "two", 1.0])
    with pytest.raises(TypeError, match="weight_norms must be a number, or one for each"):
        m.certificate("1")
    with pytest.raises(FloatingPointError, match="linear"):
        m.atom_norms([np.full(leaf.shape, np.nan) for leaf in m.leaves])
    with pytest.raises(TypeError, match=r"inside jax\.jit"):
        jax.jit(lambda w: m.atom_norms(w))([jnp.ones(leaf.shape) for leaf in m.leaves])


def test_depth_costs_nothing() -> None:
    m = mr.Linear(4, 4)
    for _ in range(20_000):
        m = mr.Tanh() @ mr.Linear(4, 4) @ m
    assert m.well_normed
    assert len(m.certificate().arrivals) == 20_001
    assert (0.5 * mr.Tanh() @ mr.Linear(4, 4) ** 10**12).well_normed
