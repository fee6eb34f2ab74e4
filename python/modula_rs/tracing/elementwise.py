"""Primitives that act on each element, and primitives that sum or sort along axes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod

from modula_rs.tracing.axes import INPUT, Factor, Section, View, blurred_span, data_span, transpose_view
from modula_rs.tracing.constants import is_uniform
from modula_rs.tracing.record import BIAS, LINEAR, PLACES, SCALE, UNKNOWN
from modula_rs.tracing.registry import Equation, rule
from modula_rs.tracing.value import Kind, Value, constant, distinct, fresh, union
from modula_rs.tracing.walk import Walk

Piece = tuple[int, Section]  # a parameter, and a section of its features
SUMS = ("add", "sub", "add_any", "complex")  # a complex number is a sum of its parts


@rule("elementwise")
def elementwise(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """The rule of functions of single elements. Any primitive without a rule is read as such a function, if the shapes allow it."""
    shape = equation.shapes[0]
    if any(made != shape for made in equation.shapes) or not all(_fits(value.shape, shape) for value in values):
        values = walk.refuse(values, f"it is used by the primitive {equation.name}, of which nothing is known")
        return [fresh(made, *values, opaque=True) for made in equation.shapes]
    name = equation.name
    values = [_expand(value, shape) for value in values]
    if not any(value.is_data or any(view.rows for view in value.views) for value in values):
        return [_of_parameters(walk, name, values)] * len(equation.shapes)
    if name == "select_n" and any(value.is_parameter for value in values) and not any(value.is_data for value in values[1:]):
        return [_of_parameters(walk, name, values[1:])]
    scaled = [value for value in values if not value.is_constant]
    if len(scaled) == 1 and (name == "mul" or (name == "div" and values[0] is scaled[0])):
        return scaled  # data or looked-up rows, times constants
    values = [walk.settle(value) for value in values]
    others = [value for value in values if value.is_data]
    beside = fresh(shape, *others)
    if name != "mul":
        values = walk.spread(values)
    if name in SUMS:
        values = [_add(walk, value, others, beside) for value in values]
    elif name == "mul":
        if len(others) == 2:
            walk.gate(values[0], values[1], [axis for axis in range(len(shape)) if axis not in values[1].flat], values[1].flat)
            walk.gate(values[1], values[0], [axis for axis in range(len(shape)) if axis not in values[0].flat], values[0].flat)
        values = [_scale(walk, value, others, beside, equation.summed or ()) for value in values]
    elif name == "select_n":
        values = [values[0], *(among(walk, value, others, "it is selected in the place of data") for value in values[1:])]
    else:
        divided = name == "div" and values[1].is_parameter
        values = walk.refuse(values, "data is divided by it" if divided else f"it meets data in {name}")
    return [_combine(walk, name, values, shape)] * len(equation.shapes)


def _fits(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    return shape == () or (len(shape) == len(target) and all(n in (1, m) for n, m in zip(shape, target, strict=True)))


def _expand(value: Value, shape: tuple[int, ...]) -> Value:
    """An operand broadcast to ``shape``, for primitives that broadcast axes of length one implicitly."""
    if value.shape == shape or value.is_constant:
        return value
    return value.broadcast(shape, range(len(value.shape))) if value.shape else value.broadcast(shape, ())


def _of_parameters(walk: Walk, name: str, values: list[Value]) -> Value:
    """A function of parameters and constants alone. Affine functions are followed; the result of any other function is unknown."""
    shape = max((value.shape for value in values), key=prod)
    if name in ("mul", "div") and sum(value.is_parameter for value in values) > 1:
        values = walk.fix(values, f"{name} takes it together with another parameter")
    parameters = [value for value in values if value.is_parameter]
    if not parameters:
        return constant(shape)
    if len({view.leaf for value in parameters for view in value.views}) > 1 and name not in (*SUMS, "select_n", "concatenate"):
        refused = walk.refuse(parameters, f"{name} takes it together with another parameter: {walk.name(parameters)}")
        return _combine(walk, name, refused, shape)
    constants = [value for value in values if value.is_constant]
    affine = name in (*SUMS, "mul", "select_n", "neg") or (name == "div" and values[0].is_parameter and len(parameters) == 1)
    if not affine or (name == "mul" and len(parameters) > 1):
        return _combine(walk, name, _function_of(walk, parameters, name), shape)
    if name in ("mul", "div") and any(_spreads(value, parameters[0]) for value in constants):
        return _combine(walk, name, walk.refuse(parameters, "it is multiplied with constants along an axis that it does not have"), shape)
    views = distinct(view for value in parameters for view in value.views)
    based = any(value.based for value in parameters) or (name in SUMS and bool(constants))
    return Value(Kind.PARAMETER, shape, views, seen=union(parameters), based=based)


def _function_of(walk: Walk, values: Sequence[Value], name: str) -> list[Value]:
    """The operands of a function of parameters alone that is not affine."""
    why = f"the program takes {name} of the parameter itself"
    fixed = walk.fix(list(map(walk.settle, values)), why)
    return [walk.postpone(value, why) if value.is_parameter else value for value in fixed]


def _spreads(factor: Value, parameter: Value) -> bool:
    """Whether a constant varies along an axis along which the parameter is constant."""
    if is_uniform(factor):
        return False
    return any(n > 1 and not parameter.features(axis) for axis, n in enumerate(factor.shape))


def _unit_slice(view: View) -> bool:
    return any(factor.own and factor.size == 1 and factor.radix > 1 for span in view.spans for factor in span.factors)


def _roles(view: View, others: Sequence[Value], what: str) -> tuple[list[tuple[Factor, str]] | None, str]:
    """The roles of the digits of a parameter that meets data, and the reason: features where it runs along features, rows elsewhere.

    The roles are None, with the reason, if they are not known.
    """
    if _unit_slice(view):
        return None, "it is sliced to length 1: trace with inputs whose axes are longer than 1, so that its rows are told from features"
    featured = [any(other.features(axis) for other in others) for axis in range(len(view.spans))]
    here = [axis for axis, span in enumerate(view.spans) if span.own]
    if not any(featured):  # raw inputs: their features are taken to run along the last axis
        if here not in ([], [len(featured) - 1]) or any(other.opaque for other in others):
            return None, f"{what} of which it is not known along which axes features run"
        return [(f, "o") for axis in here for f in view.spans[axis].own], f"{what} along its last axis"
    roles = [(f, "o" if featured[axis] else "i") for axis in here for f in view.spans[axis].own]
    rows = [letter for _, letter in roles if letter == "i"]
    return roles, f"{what} along {'places' if rows else 'features'}" + (" and features" if rows and len(rows) < len(roles) else "")


def _add(walk: Walk, value: Value, others: Sequence[Value], beside: Value) -> Value:
    """A parameter that is a term of a sum with data."""
    if not value.is_parameter:
        return value
    views = []
    for view in value.views:
        roles, why = _roles(view, others, "it is added to data")
        rows = any(letter == "i" for _, letter in roles or ())
        kind = UNKNOWN if roles is None else PLACES if rows else BIAS
        walk.note(view, kind, roles or [], beside.seen, why)
        _align(walk, view, others)
        views.append(_without_rows(view, roles, others))
    return walk.label(value._replace(views=tuple(views)), beside)


def _without_rows(view: View, roles: Sequence[tuple[Factor, str]] | None, others: Sequence[Value]) -> View:
    """The view without the digits that are rows: they run along places, which are no features of the other data."""
    if not any(host.labels and host.leaf != view.leaf for other in others for host in other.views):
        return view  # such as a table that meets its own mean
    rows = {factor for factor, letter in roles or () if letter == "i"}
    spans = [span if rows.isdisjoint(span.factors) else data_span(span.size) for span in view.spans]
    return view.move(spans)


def _align(walk: Walk, view: View, others: Sequence[Value]) -> None:
    for axis, span in enumerate(view.spans):
        for other in others:
            for host in other.views:
                for mine, theirs in zip(span.own, host.spans[axis].own, strict=False):
                    if mine.size == theirs.size and host.leaf != INPUT:
                        walk.record.along(view.leaf, mine, host.leaf, theirs)


def _scale(walk: Walk, value: Value, others: Sequence[Value], beside: Value, summed: Sequence[int]) -> Value:
    """A parameter that is a factor of a product with data. If the product is only summed over its axes, this is a matrix product."""
    if not value.is_parameter:
        return value
    views = []
    for view in value.views:
        contracted = [(f, "i") for axis in summed for f in view.spans[axis].own]
        rest = [(f, "o") for axis, span in enumerate(view.spans) if axis not in summed for f in span.own]
        if contracted:
            walk.note(view, LINEAR, contracted + rest, beside.seen, "it is multiplied with data and summed")
            views.append(view._replace(outer=_is_outer(view, others)))
            continue
        roles, why = _roles(view, others, "it multiplies data")
        here = [axis for axis, span in enumerate(view.spans) if span.own]
        if roles is None and (_unit_slice(view) or len(here) > 1):
            walk.note(view, UNKNOWN, [], beside.seen, why)
        else:
            walk.note(view, SCALE, rest, beside.seen, "it multiplies data, element by element", value.based)
            _align(walk, view, others)
        views.append(view._replace(outer=True) if _is_outer(view, others) else _without_rows(view, roles, others))
    return walk.label(value._replace(views=tuple(views)), beside)


def _is_outer(view: View, others: Sequence[Value]) -> bool:
    return any(span.own and not any(other.varies(axis) for other in others) for axis, span in enumerate(view.spans))


def among(walk: Walk, value: Value, others: Sequence[Value], what: str) -> Value:
    """A parameter that stands beside data or in its place, such as a class token: a table."""
    if not value.is_parameter:
        return value
    beside, views = fresh(value.shape, *others), []
    for view in value.views:
        roles, why = _roles(view, others, what)
        walk.note(view, UNKNOWN if roles is None else PLACES, roles or [], beside.seen, why)
        views.append(_without_rows(view, roles, others))
    return walk.label(value._replace(views=tuple(views)), beside)


def _combine(walk: Walk, name: str, values: Sequence[Value], shape: tuple[int, ...]) -> Value:
    """The features of an elementwise function of several arrays."""
    linear = name in (*SUMS, "mul", "div", "select_n", "neg")
    met = rejoined(walk, values) if name in (*SUMS, "select_n") else set()
    views, pieces = [], set[Piece]()
    for place, value in enumerate(values):
        factors = [other for at, other in enumerate(values) if at != place and not _vectors(other)] if name in ("mul", "div") else []
        affine = linear and not (name == "div" and place == 1)
        if affine and not any(view.labels for other in factors for view in other.views):
            pieces |= value.pieces
        for view in value.views:
            others = [other for at, other in enumerate(values) if at != place]
            views.append(view._replace(outer=view.outer and name == "mul" and _is_outer(view, others)))
    if all(value.is_constant for value in values):
        return constant(shape)
    pending = frozenset[int]().union(*(value.pending for value in values))
    onehot = name == "eq" and any(value.is_constant and value.shape for value in values)
    opaque = any(value.opaque for value in values)
    return Value(Kind.DATA, shape, distinct(views), frozenset(pieces - met), union(values), onehot=onehot, opaque=opaque, pending=pending)


def rejoined(walk: Walk, values: Sequence[Value]) -> set[Piece]:
    """The pieces of one cut that meet again while they are affine in the uncut features; they are recorded."""
    pieces = {piece for value in values for piece in value.pieces}
    number = Counter((leaf, section.factor) for leaf, section in pieces)
    met = {(leaf, section) for leaf, section in pieces if number[leaf, section.factor] > 1}
    for leaf, section in met:
        walk.record.rejoin(leaf, section.factor)
    return met


def _vectors(value: Value) -> bool:
    """Whether an array is a parameter that has just met data, or has the features of vectors only."""
    return all(view.vector or view.leaf == INPUT for view in value.views)


@rule("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor", "argmax", "argmin")
def reduce(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """The rule of sums and similar reductions over some axes: features along the other axes are kept."""
    gone = equation.params["axes"]
    kept = [axis for axis in range(len(values[0].shape)) if axis not in gone]
    if all(values[0].shape[axis] == 1 for axis in gone) and not equation.name.startswith("arg"):  # nothing is summed
        return [values[0].map(equation.shapes[0], lambda view: transpose_view(view, kept))]
    (value,) = _function_of(walk, values, equation.name)
    made = value.map(equation.shapes[0], lambda view: transpose_view(view, kept))
    made = made._replace(views=tuple(view for view in made.views if view.varies), onehot=False)
    return [made if equation.name == "reduce_sum" else made.stale()]


@rule("reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min")
def pool(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """The rule of sums or maxima over windows: features along axes without windows are kept."""
    values = walk.refuse(values, f"the program takes {equation.name} of the parameter itself")
    made = []
    for value, shape in zip(values, equation.shapes, strict=False):

        def windowed(view: View, old: tuple[int, ...] = value.shape, new: tuple[int, ...] = shape) -> View:
            pairs = zip(view.spans, old, new, equation.params["window_dimensions"], strict=True)
            return view.move([span if n == m and w == 1 else blurred_span(m) if span.featured else data_span(m) for span, n, m, w in pairs])

        made.append(walk.mixed(value.map(shape, windowed).stale(), values))
    return made


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def accumulate(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """The rule of running sums: all axes are kept."""
    (value,) = walk.refuse(values, f"the program takes {equation.name} of the parameter itself")
    return [value if equation.name == "cumsum" else value.stale()]
