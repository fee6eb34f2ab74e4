"""Describes any value as a text that is equal in every process and differs for another value. Fingerprints are hashes of such texts.

Numbers, strings, containers and arrays are described by their content, objects by their class and state. Functions without a name of their
own (lambdas, functions made inside functions) are described by their code and the values that the code refers to. Anything installed,
Python's own library included, is described by its name; so are the user's own classes and named functions, unless ``code`` is set.

>>> import functools
>>> describe([1, 2.0, "three"])
"[1, 2.0, 'three']"
>>> describe(functools.partial(pow, exp=2)) == describe(functools.partial(pow, exp=3))
False
>>> digest(lambda x: 2 * x) == digest(lambda x: 3 * x)
False
"""

from __future__ import annotations

import copyreg
import dis
import hashlib
import sys
import sysconfig
from collections import deque
from collections.abc import Iterable, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np

from modula_rs import arrays

#: Types whose repr describes a value completely.
_PLAIN = (bool, float, complex, str, bytes, bytearray, range, type(None), type(Ellipsis), type(NotImplemented))

#: The folders in which packages are installed.
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})

#: Attributes that Python itself gives to a class.
_OF_PYTHON = {"__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "__static_attributes__", "__slotnames__", "_abc_impl"}


def digest(value: Any, *, code: bool = False) -> str:
    """A short hash of :func:`describe`."""
    return hashlib.sha256(describe(value, code=code).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def describe(value: Any, *, code: bool = False) -> str:
    """The text of a value.

    With ``code``, the user's own classes and functions are described by what they do: an edit changes the text, and so may another version
    of Python. An object that does not reveal its state (a lock, a compiled function of another language) is described by its class alone.
    ValueError for values nested too deeply to follow.
    """
    try:
        return _Describer(code).text(value)
    except RecursionError:
        raise ValueError(f"{type(value).__name__} is nested too deeply to tell it from others") from None


#: Mutable containers, and the methods that change them.
_CONTAINERS = (list, dict, set, deque)
_CHANGING = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "clear"}


class _Describer:
    """Describes one value and everything it refers to. An object that was met before is described by its number, so cycles end."""

    def __init__(self, code: bool) -> None:
        self.code = code
        self.met: dict[int, tuple[int, Any]] = {}  # keeping the object keeps its id from being reused

    def text(self, value: Any) -> str:
        if type(value) in _PLAIN:
            return repr(value)
        if type(value) is int:
            return repr(value) if abs(value) < 2**64 else hex(value)  # Python refuses to write very long integers in decimal
        if type(value) is tuple:  # not counted as met: whether equal tuples are one object is up to Python
            return f"({self._list(value)})"
        if id(value) in self.met:
            return f"<{self.met[id(value)][0]}>"
        self.met[id(value)] = len(self.met), value
        if isinstance(value, type | FunctionType | BuiltinFunctionType | ModuleType) and self._counts_by_name(value):
            return _name(value)
        if arrays.library(value) is not None:
            return self._array(value)
        match value:
            case set() | frozenset():
                members = sorted(_Describer(self.code).text(member) for member in value)
                return f"{self.text(type(value))}{{{', '.join(members)}}}"
            case list() if type(value) is list:
                return f"[{self._list(value)}]"
            case dict() | MappingProxyType() if type(value) in (dict, MappingProxyType):
                return self._mapping(value)
            case FunctionType():
                return self._function(value)
            case MethodType():
                return f"{self.text(value.__self__)}.{self.text(value.__func__)}"
            case CodeType():
                return self._code(value)
            case type():
                own = {name: member for name, member in vars(value).items() if name not in _OF_PYTHON}
                return f"class {value.__qualname__}({self._list(value.__bases__)}){self.text(own)}"
        return f"{self.text(type(value))}{self._state(value)}"

    def _list(self, values: Iterable[Any]) -> str:
        return ", ".join([self.text(value) for value in values])

    def _mapping(self, value: Mapping[Any, Any]) -> str:
        items = list(value.items())
        if all(type(key) is str for key, _ in items):
            items.sort()
        return f"{{{', '.join([f'{self.text(key)}: {self.text(member)}' for key, member in items])}}}"

    def _array(self, value: Any) -> str:
        if arrays.is_key(value):
            import jax

            return f"key {jax.random.key_impl(value)} {self.text(np.asarray(jax.random.key_data(value)))}"
        if arrays.is_traced(value):
            return f"traced {value.dtype}{value.shape}"
        host = value.get() if arrays.library(value) == "cupy" else np.asarray(value)
        if host.dtype.hasobject:
            return f"array{host.shape}{self.text(host.tolist())}"
        content = hashlib.sha256(np.ascontiguousarray(host).tobytes()).hexdigest()[:16]
        return f"array {host.dtype.name}{host.dtype.str}{host.shape} {content}"

    def _function(self, function: FunctionType) -> str:
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_bound(cell)]
        around = self._looked_up(function.__globals__, _names(function.__code__)) if self.code and not _is_installed(function) else {}
        if _writes(function.__code__):  # containers that the function fills are its output, not its input
            cells = [type(cell) if isinstance(cell, _CONTAINERS) else cell for cell in cells]
            around = {name: type(value) if isinstance(value, _CONTAINERS) else value for name, value in around.items()}
        return f"function {self._code(function.__code__)}({self._list((function.__defaults__, function.__kwdefaults__, cells, around))})"

    def _looked_up(self, namespace: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
        """The values of these names; of a module of the user's, the values of the names that are used."""
        known = {name: namespace[name] for name in names if name in namespace}
        for name, value in known.items():
            if isinstance(value, ModuleType) and not _is_installed(value) and id(value) not in self.met:
                self.met[id(value)] = len(self.met), value
                known[name] = self._looked_up(vars(value), names)
        return known

    def _code(self, code: CodeType) -> str:
        body = hashlib.sha256(code.co_code).hexdigest()[:16]
        return f"{body} {code.co_argcount} {code.co_names} {code.co_freevars} {self._list(code.co_consts)}"

    def _state(self, value: Any) -> str:
        """The state from which an object would be unpickled, or the function that it wraps."""
        if isinstance(value, property):
            return f"({self._list((value.fget, value.fset, value.fdel))})"
        if callable(wrapped := getattr(value, "__wrapped__", None)):
            return f"({self.text(wrapped)})"
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            reduced = reduce(value) if reduce else value.__reduce_ex__(4)
        except Exception:
            return f"({self.text(vars(value)) if hasattr(value, '__dict__') else 'unknown'})"
        if isinstance(reduced, str):
            return f"({reduced})"
        return f"({self._list([list(part) if place > 2 and part is not None else part for place, part in enumerate(reduced[:5])])})"

    def _counts_by_name(self, value: Any) -> bool:
        return _is_installed(value) or (not self.code and not isinstance(value, BuiltinFunctionType) and "<" not in _name(value))


def _name(value: Any) -> str:
    module = "" if isinstance(value, ModuleType) else getattr(value, "__module__", None) or ""
    name = getattr(value, "__qualname__", None) or value.__name__
    return str(name) if module in ("", "builtins", "__main__") else f"{module}.{name}"


def _is_installed(value: Any) -> bool:
    """Whether a module, class or function is found under its name in an installed package."""
    module = value if isinstance(value, ModuleType) else sys.modules.get(getattr(value, "__module__", None) or "builtins")
    if module is None:
        return False
    top = sys.modules.get(module.__name__.partition(".")[0], module)  # a submodule that C code made has no file of its own
    places = [getattr(top, "__file__", None) or "", getattr(getattr(top, "__spec__", None), "origin", None) or ""]
    if not (top.__name__ == "modula_rs" or places[1] in ("built-in", "frozen") or any(place.startswith(_INSTALLED) for place in places)):
        return False
    found: Any = module
    for part in [] if value is module else value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def _names(code: CodeType) -> list[str]:
    """The names that a function's code, and the functions within it, may look up."""
    inner = [name for constant in code.co_consts if isinstance(constant, CodeType) for name in _names(constant)]
    return list(dict.fromkeys([*code.co_names, *inner]))


def _writes(code: CodeType) -> bool:
    """Whether a function, or a function within it, changes a container."""
    stores = any(step.opname == "STORE_SUBSCR" for step in dis.get_instructions(code))
    return stores or not _CHANGING.isdisjoint(code.co_names) or any(_writes(part) for part in code.co_consts if isinstance(part, CodeType))


def _is_bound(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # a name of the enclosing function that has no value yet
        return False
    return True
