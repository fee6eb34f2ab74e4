"""Descriptions of values: equal for equal values in every process, different for values that compute something else."""

import functools
import subprocess
import sys
import types
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longer import TIMES
from modula_rs.describe import describe, digest

scale = 1.0


def scaled(y):
    return scale * y


def through(y):
    return scaled(y)


@dataclass
class Smoothed:
    amount: float

    def __call__(self, y):
        return y + self.amount


def closure(amount):
    return lambda y: y + amount


def default(amount):
    def with_default(y, amount=amount):
        return y + amount

    return with_default


def made_class(body):
    return type("Loss", (), {"__call__": body, "again": property(body)})


PAIRS = {
    "numbers": (1, 1.0), "signs of zero": (0.0, -0.0), "bools": (1, True), "strings and bytes": ("a", b"a"), "None": (None, "None"),
    "long numbers": (10**6000, 10**6000 + 1), "lists and tuples": ([1], (1,)), "depth": ([1, [2]], [[1], 2]),
    "dicts": ({"a": 1}, {"a": 2}), "sets": ({1, 2}, {1, 3}), "kinds of dicts": (OrderedDict(a=1), {"a": 1}),
    "defaults": (defaultdict(int, a=1), defaultdict(float, a=1)), "limits": (deque([1], 2), deque([1], 3)),
    "arrays": (np.arange(3), np.arange(3)[::-1]), "dtypes": (np.zeros(2), np.zeros(2, np.int64)), "shapes": (np.zeros((1, 2)), np.zeros(2)),
    "libraries of one content": (np.zeros(2, bool), np.zeros(2, np.int8)), "keys": (jax.random.key(0), jax.random.key(1)),
    "lambdas": (lambda y: y, lambda y: -y), "constants": (lambda y: y + 1, lambda y: y + 2), "cells": (closure(1), closure(2)),
    "inner constants": (lambda y: [z + 1 for z in y], lambda y: [z + 2 for z in y]), "names": (lambda y: jnp.sin(y), lambda y: jnp.cos(y)),
    "default values": (default(1), default(2)), "partials": (functools.partial(pow, 2), functools.partial(pow, 3)),
    "objects": (Smoothed(0.1), Smoothed(0.2)), "methods": (Smoothed(0.1).__call__, Smoothed(0.2).__call__),
    "compiled": (jax.jit(lambda y: y), jax.jit(lambda y: -y)), "mapped": (jax.vmap(lambda y: y), jax.vmap(lambda y: -y)),
    "functions of NumPy": (np.sin, np.cos), "functions of JAX": (jnp.sin, jnp.cos), "builtins": (min, max),
    "optimizers": (optax.adam(0.1), optax.adam(0.2)), "chains": (optax.chain(optax.sgd(0.1)), optax.chain(optax.adam(0.1))),
    "schedules": (optax.cosine_decay_schedule(1.0, 10), optax.cosine_decay_schedule(1.0, 11)),
    "classes of a script": (made_class(lambda self: 1), made_class(lambda self: 2)), "types": (int, float),
    "caches": (functools.lru_cache(lambda y: y), functools.lru_cache(lambda y: -y)),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_other_values_have_other_descriptions(name):
    one, other = PAIRS[name]
    assert describe(one, code=True) != describe(other, code=True)
    assert describe(one, code=True) == describe(one, code=True)
    assert "0x7" not in describe(one, code=True)


def test_a_function_counts_with_what_it_refers_to(monkeypatch):
    module = sys.modules[__name__]
    before = describe(through, code=True), describe(through)
    monkeypatch.setattr(module, "scale", 2.0)
    assert describe(through, code=True) != before[0]
    assert describe(through) == before[1]
    monkeypatch.setattr(module, "scale", 1.0)
    assert describe(through, code=True) == before[0]
    monkeypatch.setattr(module, "scaled", lambda y: y)
    assert describe(through, code=True) != before[0]


def test_functions_of_the_users_other_modules_are_followed(monkeypatch):
    losses = types.ModuleType("losses")
    exec("def smooth(y):\n    return y + 1", vars(losses))
    monkeypatch.setitem(sys.modules, "losses", losses)
    loss = eval("lambda y: losses.smooth(y)", {"losses": losses})
    before = describe(loss, code=True)
    exec("def smooth(y):\n    return y + 2", vars(losses))
    assert describe(loss, code=True) != before


def test_what_a_function_writes_to_is_not_what_it_depends_on():
    seen = []

    def spy(y):
        seen.append(y)
        return y

    before = describe(spy, code=True)
    spy(1)
    assert describe(spy, code=True) == before
    amounts = [1.0]
    loss = lambda y: y * amounts[0]  # noqa: E731
    before = describe(loss, code=True)
    amounts[0] = 2.0
    assert describe(loss, code=True) != before


def test_use_changes_nothing():
    def loss(y):
        return sum(i * y for i in range(3))

    smoothed, before = Smoothed(1.0), describe([loss, Smoothed(1.0)], code=True)
    for _ in range(10_000):
        loss(1.0)
        smoothed(1.0)
    assert describe([loss, smoothed], code=True) == before


def test_what_holds_itself_ends():
    odd = []
    odd.append(odd)
    by_name = {}
    by_name["self"] = by_name
    assert describe(odd) != describe(by_name)
    deep = []
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deeply"):
        describe(deep)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=200 * TIMES, deadline=None)
@given(VALUES, VALUES)
def test_descriptions_are_equal_exactly_for_equal_values(one, other):
    assert (digest(one) == digest(other)) == (repr(_ordered(one)) == repr(_ordered(other)))


def _ordered(value):
    """The value with the keys of all dicts sorted, because their order does not count."""
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in sorted(value)}
    return type(value)(map(_ordered, value)) if isinstance(value, list | tuple) else value


@pytest.mark.slow
def test_they_are_the_same_in_every_process():
    code = (
        "import sys; sys.path[:0] = ['tests/package', 'tests/support'];"
        "from test_describe import PAIRS, through; from modula_rs.describe import digest;"
        "print([digest(pair, code=True) for pair in PAIRS.values()], digest(through, code=True))"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)]
    here = f"{[digest(pair, code=True) for pair in PAIRS.values()]} {digest(through, code=True)}\n"
    assert runs == [here, here]
