"""Programs of inputs that have an axis of length 1, read at a length at which rows can be told from features.

A table of positions cut to one row is added to data as a bias is. So the axes of length 1 of the inputs are made longer before the program
is read. An axis that the program does not allow to be longer, such as the channel of a grey image, keeps its length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import jax
import numpy as np

from modula_rs.tracing.models import Model, is_array
from modula_rs.tracing.paths import paths_of

#: An axis of an array among the inputs: the number of the array, and of its axis.
Axis = tuple[int, int]


def jaxpr_of(source: Model) -> tuple[Any, tuple[str, ...], dict[str, str]]:
    """The program of a model as a closed jaxpr, made longer where that is possible.

    Returns:
        The jaxpr of (params, arrays among the inputs), notes on the lengths, and the arrays whose shape follows a length that stayed 1,
        with the reason why they cannot be told.
    """
    leaves, structure = jax.tree.flatten((source.inputs, dict(source.keywords)))
    held = len(jax.tree.leaves(source.inputs[: source.held]))
    # Static arguments such as flags are leaves too, without axes.
    short = [(at, axis) for at, leaf in enumerate(leaves) if at >= held and is_array(leaf) for axis in _ones(leaf)]
    if not short:
        return _read(source), (), {}
    length = _unlike(source.params, leaves)

    def longer(axes: Sequence[Axis]) -> Model:
        made = [_lengthened(leaf, [axis for at, axis in axes if at == place], length) for place, leaf in enumerate(leaves)]
        inputs, keywords = jax.tree.unflatten(structure, made)
        return replace(source, inputs=inputs, keywords=keywords)

    chosen, jaxpr = _longest(short, lambda axes: _read(longer(axes)))
    stuck = [axis for axis in short if axis not in chosen]
    note = f"axes of length 1 of the inputs were read at length {length}"
    return jaxpr, (note,) if chosen else (), _following(source, longer, chosen, stuck)


def _read(source: Model) -> Any:
    program, arrays = source.opened(source.inputs)
    return jax.make_jaxpr(program)(source.params, arrays)


def _ones(leaf: Any) -> list[int]:
    return [axis for axis, n in enumerate(np.shape(leaf)) if n == 1]


def _lengthened(leaf: Any, axes: Sequence[int], length: int) -> Any:
    if not axes:
        return leaf
    shape = [length if axis in axes else n for axis, n in enumerate(leaf.shape)]
    return jax.ShapeDtypeStruct(shape, leaf.dtype)


def _unlike(params: Any, inputs: Sequence[Any]) -> int:
    """The smallest length, 2 or more, that no axis of a parameter or an input has, so that no axes fit each other by coincidence."""
    sizes = {n for leaf in (*jax.tree.leaves(params), *filter(is_array, inputs)) for n in np.shape(leaf)}
    return next(n for n in range(2, len(sizes) + 3) if n not in sizes)


def _longest(short: Sequence[Axis], read: Callable[[Sequence[Axis]], Any]) -> tuple[list[Axis], Any]:
    """As many of the axes as the program allows to be longer, and what ``read`` returns for them.

    All axes are tried together, then those with one number in all arrays, such as the time of tokens and of their mask, then single axes.
    """
    if (made := _tried(read, short)) is not None:
        return list(short), made
    chosen: list[Axis] = []
    best = None
    by_number = sorted(short, key=lambda axis: axis[1])
    groups = [list(group) for _, group in groupby(by_number, key=lambda axis: axis[1])]
    for group in [*(g for g in groups if len(g) < len(short)), *([axis] for axis in short if len(short) > 1)]:
        rest = [axis for axis in group if axis not in chosen]
        if rest and (made := _tried(read, [*chosen, *rest])) is not None:
            chosen, best = [*chosen, *rest], made
    return chosen, read([]) if best is None else best


def _tried(read: Callable[[Sequence[Axis]], Any], axes: Sequence[Axis]) -> Any:
    try:
        return read(axes)
    except Exception:  # whatever the user's program raises for a length for which it is not made
        return None


def _following(source: Model, longer: Callable[[Sequence[Axis]], Model], chosen: Sequence[Axis], stuck: Sequence[Axis]) -> dict[str, str]:
    """The parameters that the model would make of another shape if an axis that had to keep its length 1 were longer."""
    if source.made is None or not stuck:
        return {}
    found = {}
    for axis in stuck:
        other = longer([*chosen, axis])
        try:
            made = source.made(other.inputs)
        except Exception:  # the model is not made for this length at all
            continue
        shapes = {path: leaf.shape for path, leaf in zip(paths_of(made), jax.tree.leaves(made), strict=True)}
        for path, leaf in zip(paths_of(source.params), jax.tree.leaves(source.params), strict=True):
            if 1 in leaf.shape and shapes.get(path, leaf.shape) != leaf.shape:
                found[path] = (
                    "its shape follows the length of an axis of the inputs, and that length is 1, so rows cannot be told from features: "
                    "trace with inputs whose axes are longer than 1"
                )
    return found
