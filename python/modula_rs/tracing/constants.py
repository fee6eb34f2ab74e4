"""Arithmetic on the small constants of a program: the places of slices and the indices of lookups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modula_rs.arrays import is_floating
from modula_rs.tracing.registry import Equation
from modula_rs.tracing.value import Known, Value, constant

LARGEST = 4096  # elements; larger constants are masks and tables, whose values are not needed here

_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "neg": np.negative,
    "max": np.maximum,
    "min": np.minimum,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "select_n": lambda which, *cases: np.choose(np.asarray(which, dtype=np.int64), cases),
    "clamp": lambda low, value, high: np.clip(value, low, high),
    "copy": lambda value: value,
    "stop_gradient": lambda value: value,
}
_KEEP_ROWS = ("convert_element_type", "reshape", "transpose", "broadcast_in_dim", "squeeze", "stop_gradient", "copy")


def known_constant(array: Any) -> Known | None:
    """A constant with its value if the value may be needed: numbers, and small arrays of integers."""
    kind = getattr(getattr(array, "dtype", None), "kind", "")
    if kind not in ("b", "i", "u", "f"):  # such as the dtypes of random keys
        return None
    small = kind != "f" and np.size(array) <= LARGEST
    return Known(np.asarray(array)) if small or _is_uniform(array) else None


def _is_uniform(array: Any) -> bool:
    return np.ndim(array) == 0 or (isinstance(array, np.ndarray) and not any(array.strides))


def is_uniform(value: Value) -> bool:
    """Whether a constant is known to be the same number everywhere."""
    if value.known is None:
        return prod(value.shape) == 1
    array = value.known.array
    return _is_uniform(array) or array.size == 0 or bool((array == array.flat[0]).all())


def constant_results(equation: Equation, values: list[Value]) -> list[Value]:
    """The values of a primitive's results if all operands are constants."""
    onehot = equation.name == "eq" or (equation.name in _KEEP_ROWS and values[0].onehot)
    spread = equation.name == "broadcast_in_dim" and prod(values[0].shape) == 1  # broadcasting one number takes no memory
    if len(equation.shapes) != 1 or (prod(equation.shapes[0]) > LARGEST and not spread):
        return [constant(shape, onehot=onehot) for shape in equation.shapes]
    made = _evaluate(equation, values)
    return [constant(equation.shapes[0], made if made is None else known_constant(made), onehot)]


def _evaluate(equation: Equation, values: list[Value]) -> NDArray[Any] | None:
    name, params, shape = equation.name, equation.params, equation.shapes[0]
    if name == "iota":
        axis = params["dimension"]
        return np.broadcast_to(np.arange(shape[axis]).reshape([-1 if at == axis else 1 for at in range(len(shape))]), shape)
    arrays = [value.known.array for value in values if value.known is not None]
    if len(arrays) < len(values) or not arrays:
        return None
    if name == "broadcast_in_dim":
        sizes = [1] * len(shape)
        for at, n in zip(params["broadcast_dimensions"], arrays[0].shape, strict=True):
            sizes[at] = n
        return np.broadcast_to(arrays[0].reshape(sizes), shape)
    if name == "squeeze" or (name == "reshape" and params.get("dimensions") is None):
        return arrays[0].reshape(shape)
    if name == "convert_element_type":
        return arrays[0].astype(params["new_dtype"]) if np.dtype(params["new_dtype"]).kind in "biuf" else None
    operation = _ARITHMETIC.get(name)
    return None if operation is None else np.asarray(operation(*arrays))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **_ARITHMETIC,
    "div": np.divide,
    "sqrt": np.sqrt,
    "rsqrt": lambda value: value**-0.5,
    "cbrt": np.cbrt,
    "square": np.square,
    "exp": np.exp,
    "log": np.log,
    "abs": np.abs,
    "pow": np.power,
}
_UNCHANGED = ("convert_element_type", "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "slice", "reduce_precision")


def evaluate_number(name: str, params: dict[str, Any], numbers: Sequence[float | None]) -> float | None:
    """The number that a primitive makes of numbers; None if it is not known, or not finite."""
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers) or not known:
        return None
    if name in _UNCHANGED:
        return known[0]
    operation = (lambda value: value ** params["y"]) if name == "integer_pow" else _FUNCTIONS.get(name)
    if operation is None:
        return None
    try:
        with np.errstate(all="ignore"):
            made = float(operation(*map(np.float64, known)))
    except (TypeError, ValueError, OverflowError):
        return None
    return made if np.isfinite(made) else None


def number_of(array: Any) -> float | None:
    """The number that a small array is everywhere, if it is one."""
    dtype = getattr(array, "dtype", None) or np.result_type(array)
    kind = getattr(dtype, "kind", "")  # "V" for half precisions; the dtypes of random keys have another
    if not (kind in ("b", "i", "u", "f") or (kind == "V" and is_floating(dtype))) or not 1 <= np.size(array) <= LARGEST:
        return None
    flat = np.asarray(array).astype(np.float64).ravel()
    return float(flat[0]) if (flat == flat[0]).all() else None
