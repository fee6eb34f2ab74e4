"""The primitives that only rearrange: reshape, transpose, slice, join."""

from __future__ import annotations

from collections.abc import Sequence

from modula_rs.tracing.axes import (
    INPUT,
    Section,
    Span,
    View,
    blurred_span,
    broadcast_view,
    cut_anywhere,
    cut_view,
    data_span,
    reshape_view,
    transpose_view,
)
from modula_rs.tracing.elementwise import among, rejoined
from modula_rs.tracing.registry import Equation, rule
from modula_rs.tracing.value import Kind, Value, constant, distinct, fresh, union
from modula_rs.tracing.walk import Walk

# A slice along one axis: (low, high, step), or only its length if the program computes the place.
Cut = tuple[int, int, int] | int


@rule("convert_element_type", "copy", "copy_p", "stop_gradient", "reduce_precision", "sharding_constraint", "optimization_barrier")
@rule("name", "pvary", "device_put", "rev", "real", "mesh_cast", "reshard", "layout_constraint", "neg", "bitcast_convert_type")
def same(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """The rule of primitives whose results are their operands, up to the sign, the precision and the order along an axis."""
    if [value.shape for value in values] != equation.shapes:
        values = walk.refuse(values, f"{equation.name} changes its shape")
        return [fresh(shape, *values) for shape in equation.shapes]
    return values


@rule("reshape")
def reshape(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """The elements in their order, along other axes. If ``dimensions`` is given, the old axes are first put into that order."""
    value, shape, order = values[0], equation.shapes[0], equation.params.get("dimensions")
    if order is not None:
        value = value.map(tuple(value.shape[axis] for axis in order), lambda view: transpose_view(view, order))
    return [value.map(shape, lambda view: reshape_view(view, value.shape, shape))]


@rule("transpose")
def transpose(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """The array with its axes in another order."""
    return [values[0].map(equation.shapes[0], lambda view: transpose_view(view, equation.params["permutation"]))]


@rule("squeeze")
def squeeze(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """The array without some axes of length one."""
    gone = {axis % len(values[0].shape) for axis in equation.params["dimensions"]}
    kept = [axis for axis in range(len(values[0].shape)) if axis not in gone]
    return [values[0].map(equation.shapes[0], lambda view: transpose_view(view, kept))]


@rule("broadcast_in_dim")
def broadcast(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """The array repeated along new axes."""
    return [values[0].broadcast(equation.shapes[0], equation.params["broadcast_dimensions"])]


@rule("tile")
def tile(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """The array repeated along its own axes; an axis of length one is broadcast."""
    old, shape = values[0].shape, equation.shapes[0]

    def repeat(view: View) -> View:
        pairs = zip(view.spans, old, shape, strict=True)
        return view.move([span if n == m else blurred_span(m) if span.featured and n > 1 else data_span(m) for span, n, m in pairs])

    return [values[0].map(shape, repeat)]


@rule("slice")
def slice_(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """A part of the array, at known places."""
    lows, highs = equation.params["start_indices"], equation.params["limit_indices"]
    steps = equation.params["strides"] or [1] * len(lows)
    return [cut(walk, values[0], list(zip(lows, highs, steps, strict=True)))]


@rule("split")
def split(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """All parts of the array along one axis."""
    axis, start, made = equation.params["axis"], 0, []
    for shape in equation.shapes:
        cuts: list[Cut] = [(0, n, 1) for n in shape]
        cuts[axis] = (start, start + shape[axis], 1)
        made.append(cut(walk, values[0], cuts))
        start += shape[axis]
    return made


@rule("dynamic_slice")
def dynamic_slice(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """A part of the array, at places that the program computes. If the places depend on the inputs, rows are looked up."""
    value, *starts = values
    starts = walk.refuse(starts, "it is used as an index")
    cuts: list[Cut] = []
    rows = []
    for axis, (start, n, length) in enumerate(zip(starts, value.shape, equation.shapes[0], strict=True)):
        if n == length:
            cuts.append((0, n, 1))
        elif start.known is not None:
            low = min(max(int(start.known.array), 0), n - length)
            cuts.append((low, low + length, 1))
        else:
            cuts.append(length)
            rows += [axis] if start.is_data and length == 1 else []
    made = cut(walk, value, cuts)
    if rows and value.is_parameter:
        made = made._replace(views=tuple(_look_up(old, new, rows) for old, new in zip(value.views, made.views, strict=True)))
    return [made._replace(seen=made.seen | union(starts)) if value.is_parameter else walk.mixed(made, starts)]


def _look_up(old: View, new: View, rows: Sequence[int]) -> View:
    factors = tuple(factor for axis in rows for factor in old.spans[axis].own)
    spans = [Span(0, ()) if axis in rows else span for axis, span in enumerate(new.spans)]
    return new._replace(spans=tuple(spans), rows=old.rows + factors, taken=old.taken)


@rule("pad")
def pad(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """The array with constants around it, or with an edge cut off."""
    value, filling = values
    (filling,) = walk.refuse([filling], "it fills the space around an array")
    config = equation.params["padding_config"]
    if value.is_parameter and any(inner for _, _, inner in config):
        (value,) = walk.refuse([value], "pad spreads it out")
    cuts: list[Cut] = [(max(0, -low), n - max(0, -high), 1) for n, (low, high, _) in zip(value.shape, config, strict=True)]
    value = cut(walk, value, cuts)

    def shift(view: View) -> View:
        spans = []
        for span, (low, _, inner), n in zip(view.spans, config, equation.shapes[0], strict=True):
            placed = blurred_span(n) if inner else span._replace(start=span.start + max(0, low))
            spans.append(placed if span.featured else data_span(n))
        return view.move(spans)

    return [walk.mixed(value.map(equation.shapes[0], shift), [filling])]


@rule("concatenate")
def concatenate(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """Arrays one after the other along an axis. A parameter among data adds rows or features."""
    axis, shape = equation.params["dimension"], equation.shapes[0]
    values = [walk.settle(value) for value in values]
    met = rejoined(walk, values)
    if any(value.is_data for value in values):
        others = [value for value in values if value.is_data]
        values = [among(walk, value, others, "it is joined with data") for value in values]
    if all(value.is_constant for value in values):
        return [constant(shape)]
    kind = Kind.DATA if any(value.is_data for value in values) else Kind.PARAMETER
    start, views = 0, []
    for value in values:
        views += [_place(view, axis, start, shape[axis]) for view in value.views]
        start += value.shape[axis]
    if kind is Kind.DATA:
        views = _gather(views, axis, shape[axis])
    seen = union(values)
    pieces = frozenset(piece for value in values for piece in value.pieces if piece not in met)
    return [Value(kind, shape, distinct(views), pieces, seen, opaque=any(value.opaque for value in values))]


@rule("stack")
def stack(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """Arrays one after the other along a new axis."""
    axis, shape = equation.params["axis"], equation.shapes[0]
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    at = [place for place in range(len(shape)) if place != axis]
    if all(value.is_constant for value in values):
        return [constant(shape)]
    old = values[0].shape
    lifted = [value.map(one, lambda view: broadcast_view(view, old, one, at)) for value in values]
    return concatenate(walk, Equation("concatenate", {"dimension": axis}, [shape]), lifted)


@rule("unstack")
def unstack(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """The elements along an axis, as single arrays."""
    (value,), axis = values, equation.params["axis"]
    kept = [place for place in range(len(value.shape)) if place != axis]
    made = []
    for index, shape in enumerate(equation.shapes):
        cuts: list[Cut] = [(index, index + 1, 1) if place == axis else (0, n, 1) for place, n in enumerate(value.shape)]
        made.append(cut(walk, value, cuts).map(shape, lambda view: transpose_view(view, kept)))
    return made


def _place(view: View, axis: int, start: int, size: int) -> View:
    spans = list(view.spans)
    spans[axis] = spans[axis]._replace(start=spans[axis].start + start) if spans[axis].featured else data_span(size)
    return view.move(spans)


def _gather(views: list[View], axis: int, size: int) -> list[View]:
    """The views, in which a parameter with features at several places along the axis has one view, with features of no known place."""
    places: dict[View, set[Span]] = {}
    for view in views:
        spans = list(view.spans)
        spans[axis] = blurred_span(size)
        places.setdefault(view.move(spans), set()).add(view.spans[axis])
    made = []
    for joined, found in places.items():
        if len(found) == 1:
            joined = joined.move([*joined.spans[:axis], *found, *joined.spans[axis + 1 :]])
        made.append(joined)
    return made


def cut(walk: Walk, value: Value, cuts: Sequence[Cut]) -> Value:
    """A part of an array. The view of a parameter keeps the sections; sections of features are recorded, even after other functions."""
    shape = tuple(c if isinstance(c, int) else -(-(c[1] - c[0]) // c[2]) for c in cuts)
    if value.is_constant:
        return constant(shape, onehot=value.onehot)
    views, pieces = [], set(value.pieces)
    for view in value.views:
        made, sections = _cut_view(walk, view, value, shape, cuts)
        if made is None:
            continue
        if value.is_parameter:
            made = made._replace(taken=made.taken + tuple(sections))
        elif made.leaf != INPUT:
            walk.record.cut(made.leaf, sections)
            pieces |= {(made.leaf, section) for section in sections if section.low is not None}
        views.append(made)
    return value._replace(shape=shape, views=distinct(views), pieces=frozenset(pieces), known=None)


def _cut_view(walk: Walk, view: View, value: Value, shape: Sequence[int], cuts: Sequence[Cut]) -> tuple[View | None, list[Section]]:
    """The view of a part (None if no part of the parameter is in it), and the sections chosen."""
    sections: list[Section] = []
    for axis, (c, old, new) in enumerate(zip(cuts, value.shape, shape, strict=True)):
        if old == new:
            continue
        made = cut_anywhere(view, axis, c) if isinstance(c, int) else cut_view(view, axis, old, *c)
        if made is None:
            return None, []
        lost = not made[1] and view.spans[axis].featured and made[0].spans[axis] != view.spans[axis]
        if lost and value.is_data and view.leaf != INPUT:
            walk.record.lose(view.leaf, f"features are cut from {old} to {new} where their place is not known")
        view = made[0]
        sections += made[1]
    return view, sections
