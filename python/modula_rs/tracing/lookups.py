"""Primitives that choose by an index: gather, and writes into an array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modula_rs.tracing.axes import Section, View, blurred_span, data_span, transpose_view
from modula_rs.tracing.moves import cut
from modula_rs.tracing.registry import Equation, rule
from modula_rs.tracing.value import Kind, Value, distinct, fresh
from modula_rs.tracing.walk import Walk


@rule("gather")
def gather(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """Slices of an array at places given by an array of indices. Slices of a parameter count as rows until they are used."""
    numbers, sizes, shape = equation.params["dimension_numbers"], equation.params["slice_sizes"], equation.shapes[0]
    array, indices = values
    (indices,) = walk.refuse([indices], "it is used as an index")
    array = walk.settle(array)
    if (stride := _stride(array, indices, numbers, sizes)) is not None:
        axis, cuts = stride
        made = cut(walk, array, cuts)
        kept = [at for at in range(len(array.shape)) if at != axis]
        (place,) = [at for at in range(len(shape)) if at not in numbers.offset_dims]
        order = [axis if at == place else kept.pop(0) for at in range(len(shape))]
        return [made.map(shape, lambda view: transpose_view(view, order))]
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    dropped = {*numbers.collapsed_slice_dims, *batching}
    chosen = [axis for axis in numbers.start_index_map if sizes[axis] == 1 and array.shape[axis] > 1]
    partial = [
        axis for axis, (size, n) in enumerate(zip(sizes, array.shape, strict=True)) if size != n and axis not in (*chosen, *batching)
    ]
    if array.is_parameter and partial:
        (array,) = walk.refuse([array], "windows of it are looked up by an index")
    kept = [axis for axis in range(len(array.shape)) if axis not in dropped]
    where: dict[int, int] = {axis: place for axis, place in zip(kept, numbers.offset_dims, strict=True) if sizes[axis] == array.shape[axis]}
    outer = [place for place in range(len(shape)) if place not in numbers.offset_dims]
    for axis, index_axis in zip(batching, getattr(numbers, "start_indices_batching_dims", ()), strict=True):
        where[axis] = outer[index_axis]
    alone = not outer and indices.is_constant  # one slice, at a place that does not depend on the inputs

    def look_up(view: View) -> View:
        spans = [data_span(n) for n in shape]
        for axis, place in where.items():
            spans[place] = view.spans[axis]
        rows = tuple(f for axis in chosen for f in view.spans[axis].own)
        if not array.is_parameter:
            return view.move(spans)
        if alone:
            return view.move(spans)._replace(taken=view.taken + tuple(Section(f, None, None) for f in rows))
        return view.move(spans)._replace(rows=view.rows + rows)

    if array.is_constant and indices.is_constant:
        return [array._replace(shape=shape, known=None)]
    if array.is_constant:
        return [fresh(shape, indices)]
    for view in array.views if array.is_parameter else ():  # a table for each member of an ensemble
        walk.record.separate(view.leaf, tuple(f for axis in batching for f in view.spans[axis].own))
    for view in array.views if array.is_data else ():
        if view.labels and any(view.spans[axis].featured for axis in (*chosen, *partial)):
            walk.record.lose(view.leaf, "features are looked up by an index")
    views = distinct(map(look_up, array.views))
    if array.is_parameter:
        return [Value(Kind.PARAMETER, shape, views, seen=array.seen | indices.seen, based=array.based)]
    return [walk.mixed(array.bare()._replace(shape=shape, views=tuple(v for v in views if v.varies)), [indices])]


def _stride(array: Value, indices: Value, numbers: Any, sizes: Sequence[int]) -> tuple[int, list[tuple[int, int, int]]] | None:
    """The axis and the slices, if known indices choose every n-th place along one axis; JAX writes slices with steps in this way."""
    if (
        indices.known is None
        or len(numbers.start_index_map) != 1
        or numbers.collapsed_slice_dims != numbers.start_index_map
        or array.is_constant
    ):
        return None
    axis = numbers.start_index_map[0]
    places = indices.known.array
    whole = all(size == n for at, (size, n) in enumerate(zip(sizes, array.shape, strict=True)) if at != axis)
    if not whole or places.ndim != 2 or places.shape[1] != 1 or len(places) < 2:
        return None
    steps = np.unique(np.diff(places[:, 0]))
    if len(steps) != 1 or steps[0] < 1:
        return None
    cuts = [(0, n, 1) for n in array.shape]
    cuts[axis] = int(places[0, 0]), int(places[-1, 0]) + 1, int(steps[0])
    return axis, cuts


@rule("dynamic_update_slice", "scatter", "scatter-add", "scatter_add", "scatter-mul", "scatter_mul")
def write(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """An array with a part replaced: features of both arrays are kept along axes on which the part is whole."""
    target, *rest = walk.refuse(values, "it is written into an array, or written over")
    if target.shape != equation.shapes[0]:
        return [fresh(equation.shapes[0], *values, opaque=True)]
    if equation.name != "dynamic_update_slice" or target.is_constant:
        part = rest[0] if equation.name == "dynamic_update_slice" else rest[-1]
        if target.is_constant and len(part.shape) == len(target.shape):

            def spread(view: View) -> View:
                pairs = zip(view.spans, part.shape, target.shape, strict=True)
                return view.move([span if n == m else blurred_span(m) if span.featured else data_span(m) for span, n, m in pairs])

            target = target._replace(views=distinct(map(spread, part.views)))
    return [walk.mixed(target.stale(), rest)]
