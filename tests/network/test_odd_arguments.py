"""Odd values in place of numbers, sizes, axes and modules: the result is a value, a TypeError or a ValueError."""

import inspect
import operator
import warnings
from decimal import Decimal
from fractions import Fraction

import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest

recursive = []
recursive.append(recursive)
deep = ()
for _ in range(100_000):
    deep = (deep,)
doubled = [mr.ReLU()]
for _ in range(200):
    doubled = [doubled, doubled]

ODD = {
    "None": None, "empty tuple": (), "tuple": (1, 2, 3), "empty list": [], "string": "3", "bytes": b"3", "10^30": 10**30, "10^400": 10**400,
    "-10^400": -(10**400), "10^5000": 10**5000, "-1": -1, "0": 0, "half": 0.5, "NaN": float("nan"), "infinity": float("inf"),
    "-0.0": -0.0, "tiny": 5e-324, "True": True, "object": object(), "recursive list": recursive, "deep tuple": deep,
    "tuple of the odd": (None, "a"), "array": np.ones(2), "array of one": np.ones((1, 1)), "array of strings": np.array("3"),
    "NumPy's integer": np.int64(3), "dict": {}, "set": {1}, "function": len, "class": int, "imaginary": 1j,
    "NumPy's imaginary": np.complex64(1), "fraction": Fraction(1, 3), "decimal": Decimal("sNaN"), "lone surrogate": "\ud800",
    "NUL": "\0", "huge decimal": Decimal("1e999"),
}  # fmt: skip

CONSTRUCTORS = {
    mr.Linear: (3, 4), mr.Embed: (3, 4), mr.Conv2D: (3, 4), mr.Bias: (3,), mr.Scale: (3,), mr.Identity: (), mr.Add: (), mr.Mul: (0.5,),
    mr.Abs: (), mr.ReLU: (), mr.Tanh: (), mr.Sigmoid: (), mr.AttentionQK: (), mr.ApplyAttentionScores: (), mr.Unembed: (3, 4),
    mr.GELU: (), mr.MeanSubtract: (), mr.RMSDivide: (), mr.Mean: (-2,), mr.AvgPool: (),
    mr.Flatten: (),
    mr.ScaledReLU: (), mr.ScaledGELU: (), mr.LayerNorm: (), mr.SplitIntoHeads: (2,), mr.MergeHeads: (), mr.Enumerate: (), mr.Rope: (4,),
    mr.CausalMask: (), mr.Softmax: (), mr.FunctionalAttention: (True,), mr.MLP: (2, 3, 4, 2), mr.ResMLP: (4, 2, 1, 3, 2),
    mr.ResCNN: (4, 2, 1, 3, 2), mr.Attention: (2, 4, 2, 2, True), mr.GPT: (5, 4, 2, 4, 2, 2, 1), mr.LoRA: (3, 4, 2),
}  # fmt: skip


def used(m):
    """The properties of a module; an odd argument must raise no other exceptions here than in the constructor."""
    return repr(m), m.mass, m.sensitivity, m.sharpness, m.in_features


def allowed(call, *also):
    """Whether a call returns, or raises an allowed exception with a short message."""
    said = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            answer = call()
            if isinstance(answer, mr.Module):
                used(answer)
        except (TypeError, ValueError, *also) as error:
            said = str(error)
    assert said is None or 0 < len(said) < 500


@pytest.mark.parametrize("build", CONSTRUCTORS, ids=lambda build: build.__name__)
def test_every_argument_of_every_constructor(build):
    given = CONSTRUCTORS[build]
    parameters = list(inspect.signature(build).parameters)
    usual = dict(zip(parameters, given, strict=False))
    for name in parameters:
        for value in ODD.values():
            allowed(lambda name=name, value=value: build(**usual | {name: value}))


@pytest.mark.parametrize("name", ODD)
def test_operators_methods_and_declarations(name):
    value, m = ODD[name], mr.Linear(3, 3)

    class Gain(mr.Bond):
        def forward(self, x):
            return x

    for apply in (operator.matmul, operator.add, operator.sub, operator.mul, operator.truediv, operator.pow):
        for call in (lambda apply=apply: apply(m, value), lambda apply=apply: apply(value, m)):
            allowed(call, *[ZeroDivisionError] * (apply is operator.truediv and name in ("0", "-0.0")))
    allowed(lambda: m.named(value))
    allowed(lambda: mr.Linear(3, 3).tare(value))
    allowed(lambda: mr.Linear(3, 3).tare(relative=value))
    for declared in ("sensitivity", "sharpness", "in_features", "out_features", "mass", "shape"):
        allowed(lambda declared=declared: type("Gain", (Gain,), {declared: value})())
        allowed(lambda declared=declared: type("Scaled", (Scaled,), {declared: value})())


class Scaled(mr.Atom):
    shape = (3,)

    def forward(self, x, w):
        return x * w[0]

    def initialize(self, key):
        return [np.ones(3, np.float32)]

    def norm(self, w):
        return abs(w[0]).max()

    def normalize(self, w, target_norm=1.0):
        return [w[0] * target_norm]

    dualize = normalize


def test_lists_that_hold_one_another():
    for odd in (recursive, deep):
        with pytest.raises((TypeError, ValueError)):
            mr.ReLU() @ odd
    with pytest.raises(ValueError, match="nested"):
        mr.ReLU() @ doubled
    with pytest.raises(TypeError):
        mr.optim.sgd_init(recursive)


def test_an_array_times_a_module_is_refused_not_spread():
    with pytest.raises(TypeError):
        np.ones(3) * mr.ReLU()
    assert (np.float32(2) * mr.ReLU()).sensitivity == (2 * mr.ReLU()).sensitivity == 2


def test_the_first_power_is_the_module_itself():
    m = mr.Linear(2, 3)
    assert (m**1).fingerprint == m.fingerprint
    assert [leaf.shape for leaf in (mr.Linear(3, 3) ** 1).leaves] == [(1, 3, 3)]
    with pytest.raises(ValueError, match="2"):
        m**2


@pytest.mark.parametrize(
    "bond", [mr.ReLU, mr.Tanh, mr.GELU, mr.MeanSubtract, mr.RMSDivide, mr.Softmax, mr.Flatten, mr.AvgPool, mr.CausalMask]
)
def test_bonds_on_one_array_refuse_a_tuple(bond):
    with pytest.raises(TypeError, match=f"{bond.__name__} takes one array, got a tuple of 2"):
        bond()((np.ones((3, 3)), np.ones((3, 3))), [])
    with pytest.raises(TypeError, match="takes one array"):
        bond().vjp((np.ones((3, 3)), np.ones((3, 3))), [])


@pytest.mark.parametrize("name", ODD)
def test_optimizers(name):
    value, w = ODD[name], [np.ones(3, np.float32)]
    state = mr.optim.sgd_init(w)
    for call in (
        lambda: mr.optim.sgd_init(value),
        lambda: mr.optim.adam_init([value]),
        lambda: mr.optim.sgd(value, state),
        lambda: mr.optim.sgd([value], state),
        lambda: mr.optim.sgd(w, value),
        lambda: mr.optim.sgd(w, state._replace(step=value)),
        lambda: mr.optim.sgd(w, state, value),
        lambda: mr.optim.adam(w, mr.optim.adam_init(w), beta1=value),
        lambda: mr.optim.adam(w, mr.optim.adam_init(w), beta2=value),
    ):
        allowed(call)


@pytest.mark.parametrize("library", ["numpy", "jax"])
@pytest.mark.parametrize(
    "power",
    [
        lambda: mr.Tanh() ** 10**18,
        lambda: (mr.Tanh() ** 10**9) ** 10**9,
        lambda: mr.Linear(4, 4, share="w") ** 10**18,
        lambda: (mr.Linear(4, 4) @ (mr.Tanh() ** 10**9)) ** 2,
        lambda: mr.Identity() @ (mr.Linear(0, 0) ** 10**6) @ mr.Linear(0, 4),
    ],
)
def test_a_power_that_would_never_end_is_refused_on_an_input(power, library):
    m = power()
    assert m.mass >= 0
    xp = jnp if library == "jax" else np
    w = [xp.asarray(a) for a in m.initialize(0)]
    for call in (m.forward, m.vjp):
        if library == "numpy" or call == m.forward:
            with pytest.raises(ValueError, match="powers without weights of their own would run"):
                call(xp.ones((2, 4), np.float32), w)


def test_long_powers_run():
    m = mr.Identity() ** 10_000
    assert (m(np.ones(3), []) == 1).all()
    deep = (mr.Tanh() @ mr.Linear(1, 1)) ** 2_000
    assert deep(np.ones((1, 1), np.float32), deep.initialize(0)).shape == (1, 1)
