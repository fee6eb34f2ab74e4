"""Primitives that sum products: matrix products and convolutions."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

from modula_rs.tracing.axes import BLURRED, Factor, Span, View, data_span, reshape_view
from modula_rs.tracing.record import CONV, DEPTHWISE, EMBED, LINEAR, SCALE, UNKNOWN
from modula_rs.tracing.registry import Equation, rule
from modula_rs.tracing.value import Kind, Value, constant, distinct, fresh, union
from modula_rs.tracing.walk import Walk


@rule("dot_general")
def dot_general(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """A product of two arrays: of a weight with data, of two parameters, or of data with data."""
    contract, batch = equation.params["dimension_numbers"]
    values = walk.spread(values)
    if values[0].is_parameter and values[1].is_parameter:
        values = [_as_data(walk, walk.settle(value)) for value in values]
    for side in (0, 1):
        if values[side].is_parameter and _is_rows(values[side], contract[side], batch[side]):
            values[side] = walk.settle(values[side])
    sides = [side for side in (0, 1) if values[side].is_parameter]
    free = [[axis for axis in range(len(v.shape)) if axis not in (*contract[s], *batch[s])] for s, v in enumerate(values)]
    places = _places(batch, free)
    if len(sides) == 2:
        return [_of_two_parameters(walk, equation, values, contract, places)]
    if not sides:
        _note_gates(walk, values, contract, batch, free)
        return [_of_data(equation, values, places)]
    (side,) = sides
    weight, other = values[side], values[1 - side]
    if other.known is not None and not other.known.array.any():  # such as the first state of a cell
        return [constant(equation.shapes[0])]
    if other.is_constant and not other.onehot:
        values = walk.refuse(values, "it is multiplied with a matrix of constants")
        return [_of_data(equation, values, places)]
    for view in weight.views:
        _use(walk, view, weight, other, contract[side], batch[side])
        _note_experts(walk, view, other, contract[side], contract[1 - side])
    maps = any(view.spans[axis].own for view in weight.views for axis in free[side])
    for view in other.views:  # each feature has a matrix of its own, not only a vector that scores it
        if maps and view.labels and any(view.spans[axis].own for axis in contract[1 - side]):
            for axis in batch[1 - side]:
                walk.record.separate(view.leaf, view.spans[axis].own)
    made = _of_data(equation, [_made(value, side == s) for s, value in enumerate(values)], places)
    mine = walk.bit(weight.views)
    return [made._replace(kind=Kind.DATA, seen=other.seen | weight.seen | mine)]


def _as_data(walk: Walk, value: Value) -> Value:
    """A parameter that a rule declares to be no weight of a product. It counts as data where it meets another parameter."""
    if value.is_parameter and all(view.leaf in walk.data for view in value.views):
        return walk.refuse([value], "it is multiplied with a matrix")[0]
    return value


def _is_rows(value: Value, contract: Iterable[int], batch: Iterable[int]) -> bool:
    """Whether looked-up rows are vectors that meet data, not matrices chosen by an index."""
    contract, batch = set(contract), set(batch)
    views = [view for view in value.views if view.rows]
    chosen = [
        any(view.spans[a].own for a in contract) and any(s.own for a, s in enumerate(view.spans) if a not in contract | batch)
        for view in views
    ]
    return bool(views) and not all(chosen)


def _use(walk: Walk, view: View, weight: Value, other: Value, contract: Iterable[int], batch: Iterable[int]) -> None:
    contract, batch = set(contract), set(batch)
    inputs = [f for axis in sorted(contract) for f in view.spans[axis].own]
    outputs = [f for axis, span in enumerate(view.spans) if axis not in contract | batch for f in span.own]
    counts = [f for axis in sorted(batch) for f in view.spans[axis].own] + list(view.rows)
    seen = other.seen | weight.seen
    if view.inner:  # the other side of a factor of a low-rank term are the digits between the factors
        summed = weight.based or any(not v.inner and any(v.spans[a].own for a in contract) for v in weight.views)
        if not summed or bool(inputs) == bool(outputs):
            walk.record.use(view, UNKNOWN, [], seen, f"it is multiplied with another parameter: {walk.name([weight])}")
            return
        inputs, outputs = inputs or list(view.inner), outputs or list(view.inner)
    if _kept_slice(view, contract):
        walk.record.use(view, UNKNOWN, [], seen, "it is sliced to length 1 where it is contracted")
        return
    roles = [(f, "i") for f in inputs] + [(f, "o") for f in outputs] + [(f, ".") for f in counts]
    if counts and not inputs and not outputs and not view.rows:
        walk.note(view, SCALE, [(f, "o") for f in counts], seen, "it multiplies data, element by element")
    elif other.onehot:
        walk.note(view, EMBED, roles, seen, "it is multiplied with one-hot rows")
    else:
        walk.note(view, LINEAR, roles, seen, "it is multiplied with data" + (", chosen by an index" if view.rows else ""))


def _kept_slice(view: View, contract: Iterable[int]) -> bool:
    return any(f.own and f.size == 1 and f.radix > 1 for axis in contract for f in view.spans[axis].factors)


def _places(batch: Any, free: list[list[int]]) -> list[list[int | None]]:
    """For each operand, the axis that becomes each axis of the result."""
    left = [*batch[0], *free[0], *([None] * len(free[1]))]
    right = [*batch[1], *([None] * len(free[0])), *free[1]]
    return [left, right]


def _moved(view: View, places: list[int | None], shape: tuple[int, ...]) -> View:
    return view.move([data_span(n) if axis is None else view.spans[axis] for axis, n in zip(places, shape, strict=True)])


def _made(value: Value, weight: bool) -> Value:
    """For the weight, the features that it makes in the product; the other operand is returned unchanged."""
    if not weight:
        return value
    views = tuple(view._replace(taken=(), rows=(), inner=()) for view in value.views)
    return value._replace(kind=Kind.DATA, views=views)


def _note_gates(walk: Walk, values: list[Value], contract: Any, batch: Any, free: list[list[int]]) -> None:
    """Records whether a product of data with data mixes places for each head, or only multiplies features by gates."""
    for side, value in enumerate(values):
        if contract[side]:
            for view in value.views if value.is_data else ():
                for axis in batch[side] if view.labels else ():
                    walk.record.head(view.leaf, view.spans[axis].own)
        elif not free[1 - side]:  # the axes of the other operand are put in the order of this one's
            order = dict(zip(batch[side], batch[1 - side], strict=True))
            views = tuple(
                view.move([view.spans[order[axis]] if axis in order else data_span(n) for axis, n in enumerate(value.shape)])
                for view in values[1 - side].views
            )
            walk.gate(value, values[1 - side]._replace(views=views), batch[side], free[side])


def _note_experts(walk: Walk, view: View, other: Value, mine: Iterable[int], theirs: Iterable[int]) -> None:
    """Records the digits that count experts, if a weight sums over gated experts and their features at once."""
    pairs = list(zip(mine, theirs, strict=True))
    for host in other.views:
        made = [axis for _, axis in pairs if host.labels and host.spans[axis].own]
        for own, axis in pairs if len(made) > 1 else ():
            gated = walk.record.gated[host.leaf] - walk.record.heads[host.leaf]
            for digit, expert in zip(view.spans[own].own, host.spans[axis].own, strict=False):
                if expert in gated and digit.size == expert.size:
                    walk.record.separate(host.leaf, (expert,))
                    walk.record.along(view.leaf, digit, host.leaf, expert)


def _of_data(equation: Equation, values: list[Value], places: list[list[int | None]]) -> Value:
    """A product without parameters: features along the free axes are features of the result."""
    shape = equation.shapes[0]
    moved = [_moved(view, places[side], shape) for side, value in enumerate(values) for view in value.views]
    views = [view for view in moved if view.varies]
    seen = union(values)
    kind = Kind.DATA if any(value.is_data for value in values) else Kind.CONSTANT
    if kind is Kind.CONSTANT:
        return constant(shape)
    return Value(kind, shape, distinct(views), seen=seen, opaque=any(value.opaque for value in values))


def _of_two_parameters(walk: Walk, equation: Equation, values: list[Value], contract: Any, places: list[list[int | None]]) -> Value:
    """A low-rank term. Each factor keeps the contracted digits, because they are its other side."""
    if any(view.inner or view.taken for value in values for view in value.views):
        values = walk.refuse(values, f"it is multiplied with another parameter: {walk.name(values)}")
        return _of_data(equation, values, places)
    views = []
    for side, value in enumerate(values):
        for view in value.views:
            inner = tuple(f for axis in contract[side] for f in view.spans[axis].own)
            views.append(_moved(view, places[side], equation.shapes[0])._replace(inner=inner))
    return Value(Kind.PARAMETER, equation.shapes[0], distinct(views))


@rule("ragged_dot", "ragged_dot_general")
def ragged_dot(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """Rows multiplied by the matrix of their group, as in a layer of experts."""
    rows, weights, *sizes = values
    numbers = equation.params.get("ragged_dot_dimension_numbers")
    dots = getattr(numbers, "dot_dimension_numbers", (((1,), (1,)), ((), ())))
    groups = tuple(getattr(numbers, "rhs_group_dimensions", (0,)))
    contract, batch = dots
    if rows.is_parameter or not weights.is_parameter or len(groups) != 1:
        values = walk.refuse(values, f"it is used by {equation.name} in another way than as the weights of groups")
        return [fresh(equation.shapes[0], *values, opaque=True)]
    sizes = walk.refuse(sizes, "it is used as the size of a group")
    seen = union([rows, *sizes])
    for view in weights.views:
        _use(walk, view, weights, rows._replace(seen=seen), contract[1], (*batch[1], *groups))
    taken = {*contract[1], *batch[1], *groups}
    left = [axis for axis in range(len(rows.shape)) if axis not in (*contract[0], *batch[0])]
    right = [axis for axis in range(len(weights.shape)) if axis not in taken]
    places: list[int | None] = [*batch[1], *([None] * len(left)), *right]
    views = [_moved(view, places, equation.shapes[0]) for view in _made(weights, True).views]
    mine = walk.bit(weights.views)
    return [Value(Kind.DATA, equation.shapes[0], distinct(views), seen=seen | mine)]


@rule("conv_general_dilated")
def convolution(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """A convolution of images with kernels, grouped or not."""
    image, kernel = values
    shape, numbers, groups = equation.shapes[0], equation.params["dimension_numbers"], equation.params["feature_group_count"]
    out, inner = numbers.rhs_spec[:2]
    (image,) = walk.refuse(walk.spread([image]), "it is convolved as an image")
    kernel = walk.settle(kernel)
    depthwise = groups > 1 and kernel.shape[inner] == 1
    seen = union([image])
    if kernel.is_parameter and equation.params["batch_group_count"] != 1:
        (kernel,) = walk.refuse([kernel], "the convolution has groups of images")
    for view in kernel.views if kernel.is_parameter else ():
        _use_kernel(walk, equation, view, kernel.shape, seen, depthwise)
    for view in image.views if groups > 1 and not depthwise else ():
        first, *rest = view.spans[numbers.lhs_spec[1]].factors or (None,)
        if first is not None and first.own and first.size == groups and rest and view.labels:  # one group for each member of an ensemble
            walk.record.separate(view.leaf, (first,))
    views = []
    for view in _made(kernel, kernel.is_parameter).views:
        spans = [data_span(n) for n in shape]
        spans[numbers.out_spec[1]] = view.spans[out]
        views.append(view.move(spans)._replace(vector=depthwise))
    if depthwise and shape[numbers.out_spec[1]] == image.shape[numbers.lhs_spec[1]]:  # depthwise: each feature is convolved alone
        for view in image.views:
            spans = [data_span(n) for n in shape]
            spans[numbers.out_spec[1]] = view.spans[numbers.lhs_spec[1]]
            views.append(view.move(spans))
    mine = walk.bit(kernel.views) if kernel.is_parameter else 0
    return [Value(Kind.DATA, shape, distinct(views), seen=seen | kernel.seen | mine)]


def _use_kernel(walk: Walk, equation: Equation, view: View, shape: tuple[int, ...], seen: int, depthwise: bool) -> None:
    numbers, groups = equation.params["dimension_numbers"], equation.params["feature_group_count"]
    out, inner, *taps = numbers.rhs_spec
    over = [(f, "k") for axis in taps for f in view.spans[axis].own]
    count = prod(shape[axis] for axis in taps)
    if depthwise:
        roles = over + [(f, "o") for axis in (out, inner) for f in view.spans[axis].own]
        walk.note(view, DEPTHWISE, roles, seen, "it is convolved with data, every feature by itself")
        return
    outputs = _grouped(view.spans[out].factors, groups)
    if outputs is None:
        walk.record.use(view, UNKNOWN, [], seen, f"its {shape[out]} output features cannot be cut into {groups} groups")
        return
    roles = outputs + [(f, "i") for f in view.spans[inner].own]
    steps, dilation = equation.params["window_strides"], equation.params["rhs_dilation"] or (1,) * len(taps)
    apart = all(step >= (shape[axis] - 1) * d + 1 for step, axis, d in zip(steps, taps, dilation, strict=True))
    if apart and count > 1 and groups == 1 and all(d == 1 for d in equation.params["lhs_dilation"] or ()):
        patches: list[tuple[Factor, str]] = [(f, "i") for f, _ in over]
        walk.note(view, LINEAR, patches + roles, seen, "it is convolved with data in patches that do not overlap")
    else:
        walk.note(view, CONV, over + roles, seen, "it is convolved with data")


def _grouped(factors: tuple[Factor, ...], groups: int) -> list[tuple[Factor, str]] | None:
    """The output digits with their roles; the outer digits count the groups."""
    size = prod(factor.size for factor in factors)
    if size % groups:
        return None
    whole = View(0, (Span(0, factors),))
    spans = reshape_view(whole, (size,), (groups, size // groups)).spans
    if any(f.axis == BLURRED for span in spans for f in span.factors):
        return None
    return [(f, ".") for f in spans[0].own] + [(f, "o") for f in spans[1].own]
