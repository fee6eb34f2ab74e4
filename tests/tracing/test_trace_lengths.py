"""Inputs with an axis of length 1: tables of positions must not become biases."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax
from modula_rs import tracing
from trace_cases import attend, layer_norm, params, rows, shape, tokens

POSITIONS = ("Embed", (1, 20, 8))


def _sliced(p: Any, x: Any) -> Any:
    return layer_norm(x @ p["w"] + p["pos"][: x.shape[1]]) @ p["out"]


def _dynamic(p: Any, x: Any) -> Any:
    return layer_norm(x @ p["w"] + lax.dynamic_slice_in_dim(p["pos"], 0, x.shape[1])) @ p["out"]


def _looked_up(p: Any, t: Any) -> Any:
    return layer_norm(p["w"][t] + p["pos"][jnp.arange(t.shape[1])]) @ p["out"]


def _taken(p: Any, t: Any) -> Any:
    return layer_norm(jnp.take(p["w"], t, axis=0) + jnp.take(p["pos"], jnp.arange(t.shape[-1]), axis=0)) @ p["out"]


def _masked(p: Any, x: Any, mask: Any) -> Any:
    y = x @ p["w"] + p["pos"][: x.shape[1]]
    q = y.reshape(*y.shape[:2], 4, 2)
    z = attend(q, q, q) + 0 * mask.sum()
    return z.reshape(y.shape) @ p["out"]


def _step(p: Any, x: Any, at: Any) -> Any:
    """Generation: one position, chosen by an input."""
    return layer_norm(x @ p["w"] + lax.dynamic_slice_in_dim(p["pos"], at, 1)) @ p["out"]


SIZES = params(w=(8, 8), pos=(20, 8), out=(8, 3))
TABLES = params(w=(30, 8), pos=(20, 8), out=(8, 3))


@pytest.mark.parametrize(
    ("apply", "sizes", "inputs"),
    [
        (_sliced, SIZES, (shape(4, 1, 8),)),
        (_sliced, SIZES, (shape(1, 1, 8),)),
        (_sliced, SIZES, (shape(1, 5, 8),)),
        (_dynamic, SIZES, (shape(4, 1, 8),)),
        (_looked_up, TABLES, (tokens(4, 1),)),
        (_looked_up, TABLES, (tokens(1, 1),)),
        (_taken, TABLES, (tokens(4, 1),)),
        (_taken, TABLES, (tokens(1),)),
        (_masked, SIZES, (shape(2, 1, 8), shape(2, 1, 1, 1))),
        (_step, SIZES, (shape(4, 1, 8), tokens())),
    ],
)
def test_positions_are_a_table_at_every_length(apply: Any, sizes: Any, inputs: Any) -> None:
    reading = tracing.read(apply, sizes, *inputs)
    assert rows(reading)["pos"] == POSITIONS
    assert reading["w"].kind in ("Linear", "Embed")


def test_the_table_says_at_which_length_it_was_read() -> None:
    reading = tracing.read(_sliced, SIZES, shape(4, 1, 8))
    assert reading.notes == ("axes of length 1 of the inputs were read at length 2",)
    assert reading == tracing.read(_sliced, SIZES, shape(4, 7, 8))
    assert tracing.read(_sliced, SIZES, shape(4, 7, 8)).notes == ()


def test_a_table_shorter_than_every_length_that_is_tried_is_refused() -> None:
    """Lengths that a parameter has are not tried, because axes could fit each other by coincidence."""
    sizes = params(w=(8, 2), pos=(3, 2), out=(2, 3))
    with pytest.raises(tracing.TraceError, match=r"pos \(3, 2\): it is sliced to length 1: trace with inputs whose axes are longer"):
        tracing.read(_sliced, sizes, shape(4, 1, 8))
    assert rows(tracing.read(_sliced, sizes, shape(4, 3, 8)))["pos"] == ("Embed", (1, 3, 2))


def test_a_program_for_one_position_alone_is_refused() -> None:
    def apply(p: Any, x: Any) -> Any:
        if x.shape[1] != 1:
            raise ValueError("one position at a time")
        return _sliced(p, x)

    with pytest.raises(tracing.TraceError, match="sliced to length 1: trace with inputs whose axes are longer"):
        tracing.read(apply, SIZES, shape(4, 1, 8))


@pytest.mark.parametrize(
    ("case", "apply", "sizes", "inputs", "expected"),
    [
        ("grey image", None, params(k=(3, 3, 1, 6), b=(6,)), shape(2, 9, 9, 1), {"k": ("Conv2D", (9, 6, 1)), "b": ("Bias", (1, 1, 6))}),
        ("one feature", lambda p, x: jnp.tanh(x @ p["k"] + p["b"]), params(k=(1, 6), b=(6,)), shape(4, 7, 1), None),
        ("one example", lambda p, x: jnp.tanh(x @ p["k"] + p["b"]), params(k=(8, 6), b=(1, 6)), shape(1, 8), None),
        ("one example without batch", lambda p, x: jnp.tanh(x @ p["k"] + p["b"]), params(k=(8, 6), b=(6,)), shape(8), None),
        ("a mask", lambda p, x, m: jnp.tanh(x @ p["k"] * m + p["b"]), params(k=(8, 6), b=(6,)), (shape(4, 8), shape(4, 1)), None),
    ],
)
def test_axes_that_have_length_one_by_right(case: str, apply: Any, sizes: Any, inputs: Any, expected: Any) -> None:
    def image(p: Any, x: Any) -> Any:
        return jax.nn.relu(lax.conv_general_dilated(x, p["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + p["b"])

    reading = tracing.read(apply or image, sizes, *(inputs if isinstance(inputs, tuple) else (inputs,)))
    assert rows(reading) == (expected or {"k": ("Linear", (1, 6, sizes["k"].shape[0])), "b": ("Bias", (1, 1, 6))})


class Positions(nn.Module):
    """Positions that linen makes as long as the input of ``init``."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = nn.Dense(8)(x)
        y = y + self.param("pos", nn.initializers.normal(), (1, y.shape[1], 8))
        return nn.Dense(3)(nn.LayerNorm()(y))


def test_positions_as_long_as_the_first_input_are_refused_at_length_one() -> None:
    with pytest.raises(tracing.TraceError, match=r"pos \(1, 1, 8\): it is added to data.*its shape follows the length of an axis"):
        tracing.read(Positions(), shape(4, 1, 5))
    ruled = tracing.read(Positions(), shape(4, 1, 5), rules={"**/pos": "embed !"})
    assert ruled["params/pos"].kind == "Embed"
    assert tracing.read(Positions(), shape(4, 7, 5))["params/pos"].blocks == (1, 7, 8)
    assert tracing.read(Positions(), shape(1, 7, 5))["params/pos"].blocks == (1, 7, 8)


def test_positions_of_haiku_are_refused_alike() -> None:
    def forward(x: Any) -> Any:
        y = hk.Linear(8)(x)
        y = y + hk.get_parameter("pos", (y.shape[1], 8), init=jnp.zeros)
        return hk.Linear(3)(hk.LayerNorm(-1, True, True)(y))

    with pytest.raises(tracing.TraceError, match=r"pos \(1, 8\): it is added to data.*its shape follows"):
        tracing.read(hk.transform(forward), shape(4, 1, 5))
    assert tracing.read(hk.transform(forward), shape(4, 7, 5))["~/pos"].blocks == (1, 7, 8)


class Grey(nn.Module):
    """An image with one channel; only the kernel follows the number of channels."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(3)(nn.relu(nn.Conv(6, (3, 3))(x)).mean((1, 2)))


def test_kernels_that_follow_the_channels_are_no_tables() -> None:
    reading = tracing.read(Grey(), shape(2, 9, 9, 1))
    assert [leaf.kind for leaf in reading.leaves] == ["Bias", "Conv2D", "Bias", "Linear"]


def test_nnx_and_equinox_at_one_token() -> None:
    class Model(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.table, self.last = nnx.Embed(30, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
            self.pos = nnx.Param(jnp.zeros((20, 8)))

        def __call__(self, t: Any) -> Any:
            return self.last(self.table(t) + self.pos[...][: t.shape[1]])

    assert tracing.read(Model(nnx.Rngs(0)), tokens(2, 1))["pos"].kind == "Embed"

    class Tree(eqx.Module):
        table: Any
        pos: Any
        last: Any

        def __call__(self, t: Any) -> Any:
            return jax.vmap(self.last)(jax.vmap(self.table)(t) + self.pos[: len(t)])

    keys = jax.random.split(jax.random.key(0))
    tree = Tree(eqx.nn.Embedding(30, 8, key=keys[0]), jnp.zeros((20, 8)), eqx.nn.Linear(8, 3, key=keys[1]))
    assert tracing.read(tree, tokens(1))["pos"].kind == "Embed"


@pytest.mark.slow
def test_every_network_reads_the_same_with_a_batch_of_one() -> None:
    """A sample of the networks of the other tests, with their batch cut to one example."""
    from test_trace_networks import CASES

    tried = 0
    for case in CASES[::9]:
        apply, *arguments = case.build()
        if not arguments or not callable(apply) or isinstance(apply, nnx.Module | eqx.Module | nn.Module):
            continue
        given, *inputs = arguments
        short = [shape(1, *x.shape[1:], dtype=str(x.dtype)) if getattr(x, "ndim", len(getattr(x, "shape", ()))) > 1 else x for x in inputs]
        if len({x.shape[0] for x in inputs if len(getattr(x, "shape", ())) > 1}) != 1:
            continue
        try:
            jax.eval_shape(apply, given, *short)
        except Exception:  # a program that is made for its batch
            continue
        tried += 1
        found = rows(tracing.read(apply, given, *short, rules=case.rules))
        assert found == dict(case.rows), case.name
    assert tried > 3
