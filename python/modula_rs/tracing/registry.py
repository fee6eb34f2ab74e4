"""The rules of primitives: each derives the values of a primitive's results from the values of its operands.

A rule is found by the name of the primitive. For a function under ``jax.jit``, or a Pallas kernel, it is found by the name of the function,
so a rule for an opaque kernel takes one line:

>>> from modula_rs import tracing
>>> tracing.functions["my_fused_norm"] = tracing.like(0)  # the result has the features of operand 0
>>> del tracing.functions["my_fused_norm"]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from modula_rs.tracing.value import Value


class Equation(NamedTuple):
    """One line of the program: the primitive's name and parameters, and the shapes of its results.

    ``summed``: the axes over which the result is summed, if only a sum reads it.
    """

    name: str
    params: dict[str, Any]
    shapes: list[tuple[int, ...]]
    summed: tuple[int, ...] | None = None


# The first argument is the walk (``walk.Walk``), which records uses.
Rule = Callable[[Any, Equation, list[Value]], list[Value]]

primitives: dict[str, Rule] = {}
functions: dict[str, Rule] = {}


def find_rule(name: str, params: dict[str, Any]) -> Rule | None:
    """The rule for a line of the program, if there is one."""
    kernel = getattr(params.get("name_and_src_info"), "name", None)  # the name that Pallas gives a kernel
    called = kernel or (params.get("name") if "jaxpr" in params else None)
    return functions.get(called, primitives.get(name)) if isinstance(called, str) else primitives.get(name)


def rule(*names: str) -> Callable[[Rule], Rule]:
    """A decorator that registers a rule for each of the names."""

    def enter(function: Rule) -> Rule:
        primitives.update(dict.fromkeys(names, function))
        return function

    return enter


def like(*operands: int) -> Rule:
    """The rule of a primitive whose result i has the axes of operand ``operands[i]`` and is no affine function of it.

    Args:
        operands: for each result, the position of the operand whose axes it has.

    Returns:
        A rule for ``primitives`` or ``functions``. It refuses parameters among the operands, because it does not say what they do.
    """

    def follow(walk: Any, equation: Equation, values: list[Value]) -> list[Value]:
        values = walk.refuse(values, f"{equation.name} uses it in a way that its rule does not say")
        made = []
        for operand, shape in zip(operands, equation.shapes, strict=True):
            source = values[operand]
            if source.shape != shape:
                raise ValueError(
                    f"the rule of {equation.name}: result of shape {shape} is said to be like operand {operand} of {source.shape}"
                )
            made.append(walk.mixed(source.stale(), values))
        return made

    return follow


def linear(
    weight: int, data: int, contract: tuple[Iterable[int], Iterable[int]], batch: tuple[Iterable[int], Iterable[int]] = ((), ())
) -> Rule:
    """The rule of a primitive that multiplies a weight by data, as ``dot_general`` does.

    Args:
        weight: the position of the weight among the operands.
        data: the position of the data.
        contract: the contracted axes of the data, and of the weight.
        batch: the axes of the data, and of the weight, that only count.

    Returns:
        A rule for ``primitives`` or ``functions``. The result's axes are the batch axes, then the data's, then the weight's.
    """
    numbers = tuple(tuple(axes) for axes in contract), tuple(tuple(axes) for axes in batch)

    def multiply(walk: Any, equation: Equation, values: list[Value]) -> list[Value]:
        product = equation._replace(params={"dimension_numbers": numbers})
        rest = [value for place, value in enumerate(values) if place not in (weight, data)]
        rest = walk.refuse(rest, f"{equation.name} uses it in a way that its rule does not say")
        made = primitives["dot_general"](walk, product, [values[data], values[weight]])
        return [walk.mixed(made[0], rest)]

    return multiply
