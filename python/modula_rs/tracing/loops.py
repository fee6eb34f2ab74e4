"""Loops and branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modula_rs.tracing.axes import data_span
from modula_rs.tracing.registry import Equation, rule
from modula_rs.tracing.value import Value, constant
from modula_rs.tracing.walk import Walk


@rule("scan")
def scan(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """A loop over the first axis of some operands; that axis of a parameter counts copies."""
    body: Any = equation.params["jaxpr"]
    constants, carried = parts_of_scan(body, [value.shape for value in values], equation.shapes)
    fixed, carry, sequences = values[:constants], values[constants : constants + carried], values[constants + carried :]
    each = [_element(value) for value in sequences]
    walk.record.loop([(v.leaf, f) for value in sequences if value.is_parameter for v in value.views for f in v.spans[0].own])

    def turn(carry: list[Value]) -> list[Value]:
        return walk.call(body, [*fixed, *carry, *each])

    carry = _settled(walk, turn, carry, carried, "the initial carry of a loop")
    made = _last(walk, turn, carry)
    kept = [walk.join(a, b, "the initial carry of a loop") for a, b in zip(carry, made[:carried], strict=True)]
    return kept + [_stacked(value, shape) for value, shape in zip(made[carried:], equation.shapes[carried:], strict=True)]


def parts_of_scan(body: Any, operands: Sequence[tuple[int, ...]], results: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """The numbers of constants and of carried values of a scan, from the shapes of its operands and results.

    Versions of JAX write these numbers in different ways. Sequences have one axis more outside of the body.
    """
    jaxpr = getattr(body, "jaxpr", body)
    inside, made = ([tuple(atom.aval.shape) for atom in atoms] for atoms in (jaxpr.invars, jaxpr.outvars))
    carried = sum(a == b for a, b in zip(made, results, strict=True))
    return sum(a == b for a, b in zip(inside, operands, strict=True)) - carried, carried


@rule("while")
def loop(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """A loop with a condition."""
    params = equation.params
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    tested, fixed, carry = values[:first], values[first:second], values[second:]

    def turn(carry: list[Value]) -> list[Value]:
        return walk.call(params["body_jaxpr"], [*fixed, *carry])

    carry = _settled(walk, turn, carry, len(carry), "the initial carry of a loop")
    walk.call(params["cond_jaxpr"], [*tested, *carry])
    return [walk.join(a, b, "the initial carry of a loop") for a, b in zip(carry, _last(walk, turn, carry), strict=True)]


@rule("cond")
def branches(walk: Walk, equation: Equation, values: list[Value]) -> list[Value]:
    """One of several functions, chosen by an index."""
    index, *operands = values
    (index,) = walk.refuse([index], "it chooses a branch")
    made = [walk.call(branch, operands) for branch in equation.params["branches"]]
    results = made[0]
    for other in made[1:]:
        results = [walk.join(a, b, "what one branch gives, and another gives data") for a, b in zip(results, other, strict=True)]
    return [walk.mixed(value, [index]) for value in results]


def _settled(walk: Walk, turn: Any, carry: list[Value], count: int, where: str) -> list[Value]:
    """The carry of a loop, after as many turns as still add to what is known about it."""
    carry = [value._replace(known=None, pieces=frozenset()) for value in carry]
    record, settled = walk.record, False
    for number in range(16):
        record.quiet, record.later = record.quiet + 1, record.later + (number > 0)
        made = turn(carry)[:count]
        record.quiet, record.later = record.quiet - 1, record.later - (number > 0)
        joined = [walk.join(a, b, where)._replace(known=None, pieces=frozenset()) for a, b in zip(carry, made, strict=True)]
        settled, carry = joined == carry, joined
        if settled:
            return carry
    return [value.bare()._replace(opaque=True) if value.is_data else value for value in carry]


def _last(walk: Walk, turn: Any, carry: list[Value]) -> list[Value]:
    """The results of a turn that stands for all turns."""
    walk.record.later += 1
    made: list[Value] = turn(carry)
    walk.record.later -= 1
    return made


def _element(value: Value) -> Value:
    """One element along the first axis."""
    if value.is_constant:
        return constant(value.shape[1:], onehot=value.onehot)
    return value.map(value.shape[1:], lambda view: view.move(view.spans[1:]))


def _stacked(value: Value, shape: tuple[int, ...]) -> Value:
    """The results of all turns, along a new first axis."""
    if value.is_constant:
        return constant(shape)
    return value.map(shape, lambda view: view.move([data_span(shape[0]), *view.spans]))
