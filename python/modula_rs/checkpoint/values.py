"""Single values of a state: arrays become tensors, and every other value becomes a kind and a content that JSON can hold."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from modula_rs import arrays
from modula_rs.checkpoint.file import DTYPES

#: Integers of more bits than this are refused, because Python does not write out longer ones.
_MOST_BITS = 4096


class _Kind(NamedTuple):
    """How values of one type are stored: a function to JSON content, and its inverse, which raises ValueError or TypeError if it cannot."""

    kept: Callable[[Any], Any]
    back: Callable[[Any], Any]


def _same(*types: type) -> Callable[[Any], Any]:
    def checked(stored: Any) -> Any:
        if type(stored) not in types:
            raise ValueError(f"expected {types[0].__name__}, got {type(stored).__name__}")
        return stored

    return checked


def _pairs(values: Any) -> list[list[Any]]:
    return sorted(([type(value).__name__, _plain("a member of a set", value)] for value in values), key=repr)


def _members(stored: Any) -> list[Any]:
    return [_KINDS[kind].back(value) for kind, value in _same(list)(stored)]


_KINDS: dict[str, _Kind] = {
    "bool": _Kind(bool, _same(bool)),
    "int": _Kind(int, _same(int)),
    "float": _Kind(float, _same(float)),
    "str": _Kind(str, _same(str)),
    "NoneType": _Kind(lambda value: None, _same(type(None))),
    "complex": _Kind(lambda value: [value.real, value.imag], lambda stored: complex(*map(_same(float), _same(list)(stored)))),
    "bytes": _Kind(lambda value: base64.b64encode(value).decode(), lambda stored: base64.b64decode(_same(str)(stored))),
    "bytearray": _Kind(lambda value: base64.b64encode(value).decode(), lambda stored: bytearray(base64.b64decode(_same(str)(stored)))),
    "range": _Kind(lambda value: [value.start, value.stop, value.step], lambda stored: range(*map(_same(int), _same(list)(stored)))),
    "set": _Kind(_pairs, lambda stored: set(_members(stored))),
    "frozenset": _Kind(_pairs, lambda stored: frozenset(_members(stored))),
}


class Value(NamedTuple):
    """The header's entry for a value that is no array."""

    kind: str
    stored: Any


def stored(name: str, value: Any) -> Value | Any:
    """A value as it is stored: a NumPy array, or an entry of the header. TypeError for a value of an unknown kind."""
    if isinstance(value, np.random.Generator):
        return Value("generator", json.loads(json.dumps(value.bit_generator.state, default=np.ndarray.tolist)))
    if arrays.is_key(value):
        import jax

        return Value("key", [str(jax.random.key_impl(value)), np.asarray(jax.random.key_data(value)).tolist()])
    library = arrays.library(value)
    if library is not None and not isinstance(value, np.ma.MaskedArray):
        on_host = value.get() if library == "cupy" else _gathered(value) if library == "jax" else np.asarray(value)
        native = np.array(on_host, dtype=on_host.dtype.newbyteorder("="), order="C")
        if native.dtype.name not in DTYPES.values():
            raise TypeError(f"{name}: a checkpoint cannot hold {native.dtype.name}")
        return native
    return Value(type(value).__name__, _plain(name, value))


def spans_processes(value: Any) -> bool:
    """Whether an array of JAX lies in parts on the devices of several processes, so that only all of them together can read it."""
    return arrays.library(value) == "jax" and not value.is_fully_addressable and not value.is_fully_replicated


def _gathered(value: Any) -> Any:
    """The numbers of an array of JAX on the host. If it spans processes, each process must ask for it, and receives it."""
    if not spans_processes(value):
        return np.asarray(value)
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(value, tiled=True)


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise ValueError(f"{name}: a checkpoint holds integers of at most {_MOST_BITS} bits, got {value.bit_length()}")
    if type(value).__name__ in _KINDS and type(value).__module__ == "builtins":
        return _KINDS[type(value).__name__].kept(value)
    for base in (int, float, str):  # instances of derived classes, such as an IntEnum
        if isinstance(value, base):
            return base(value)
    held = "arrays, keys, generators, numbers, strings, bytes and sets of them"
    raise TypeError(f"{name}: a checkpoint holds {held}, not {type(value).__name__}")


def restored(name: str, found: Any, example: Any) -> Any:
    """A value as it was saved, in the library of the example; ValueError if the header's entry is no such value."""
    if not isinstance(found, Value):
        return _array(found, example)
    try:
        if found.kind == "generator":
            generator = np.random.Generator(type(example.bit_generator)())
            generator.bit_generator.state = found.stored
            return generator
        if found.kind == "key":
            import jax

            implementation, numbers = found.stored
            return jax.random.wrap_key_data(jax.numpy.asarray(numbers, np.uint32), impl=implementation)
        if found.kind in _KINDS:
            return _KINDS[found.kind].back(found.stored)
        return type(example)(found.stored)
    except Exception as error:
        raise ValueError(f"{name} is no {found.kind}: {error}") from error


def _array(found: Any, example: Any) -> Any:
    library = arrays.library(example)
    if library == "jax":
        import jax

        if example.weak_type and found.ndim == 0:  # a weakly typed scalar is rebuilt from a Python number, which keeps it weakly typed
            found = jax.numpy.asarray(found.item())
        if not example.is_fully_addressable:  # each process places the part that it holds
            return jax.make_array_from_callback(found.shape, example.sharding, lambda part: np.asarray(found)[part])
        if not getattr(example, "committed", getattr(example, "_committed", True)):
            return jax.numpy.asarray(found)  # as free as the example to move to where a computation needs it
        return jax.device_put(found, example.sharding)
    if library == "cupy":
        return arrays.namespace("cupy").asarray(found)
    return found[()] if isinstance(example, np.generic) else found


def signature(value: Any) -> str:
    """The properties in which a value in the file and its example must agree."""
    if isinstance(value, Value):
        if value.kind == "generator":
            made = value.stored.get("bit_generator") if isinstance(value.stored, dict) else None
            return f"a {made} generator"
        return "a JAX key" if value.kind == "key" else value.kind
    if isinstance(value, np.random.Generator):
        return f"a {type(value.bit_generator).__name__} generator"
    if arrays.is_key(value):
        return "a JAX key"
    if arrays.library(value) is not None:
        return f"{value.dtype.name} of shape {tuple(value.shape)}"
    return type(value).__name__
