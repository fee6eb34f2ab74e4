"""Networks with the expected rows of their readings, written by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from modula_rs import tracing


class Case(NamedTuple):
    """A network with its expected rows.

    ``build`` returns the arguments of ``tracing.read``; ``rows`` has the kind, the blocks and, if not 1, the copies of each path;
    ``refused``: the arrays that the program does not decide, each with a part of the reason, so that ``rules`` are needed.
    """

    name: str
    build: Callable[[], tuple[Any, ...]]
    rows: Mapping[str, tuple[Any, ...]]
    rules: Mapping[str, str] | None = None
    refused: Mapping[str, str] | None = None


def rows(reading: tracing.Reading) -> dict[str, tuple[Any, ...]]:
    """The rows of a reading, in the form in which a case gives them."""
    made: dict[str, tuple[Any, ...]] = {}
    for leaf in reading.leaves:
        kind = "+".join(role.kind for role in leaf.roles) or "frozen"
        blocks = (leaf.blocks,) if leaf.roles else ()
        made[leaf.path] = (kind, *blocks, *([leaf.copies] if leaf.copies != 1 else []))
    return made


def shape(*sizes: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    """An input or a parameter of which only the shape and the dtype are needed."""
    return jax.ShapeDtypeStruct(sizes, dtype)


def tokens(*sizes: int) -> jax.ShapeDtypeStruct:
    """An input of integers."""
    return jax.ShapeDtypeStruct(sizes, "int32")


def params(**sizes: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """Parameters by name and shape."""
    return {name: shape(*size) for name, size in sizes.items()}


def attend(q: Any, k: Any, v: Any) -> Any:
    """Attention over (batch, time, heads, features)."""
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def layer_norm(x: Any, gain: Any = 1.0, bias: Any = 0.0) -> Any:
    """Normalisation over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * gain + bias


def case(name: str, apply: Any, sizes: Any, *inputs: Any, rows: Any, rules: Any = None) -> Case:
    """The case of a function with parameters of these shapes."""
    return Case(name, lambda: (apply, sizes, *inputs), rows, rules)
