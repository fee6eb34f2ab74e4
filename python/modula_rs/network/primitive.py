"""What atoms and bonds have in common: values their class declares, and the tree of one node they start as."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

from modula_rs.network.module import Module

#: What a class may declare as plain attributes, of the class or of an instance.
DECLARED = ("mass", "sensitivity", "sharpness", "in_features", "out_features")


class _BuiltOnce(type):
    """Builds the tree as soon as an object is made, so that a bad argument is refused where it stands."""

    def __call__(cls, *args: Any, **options: Any) -> Any:
        made = super().__call__(*args, **options)
        _ = made._tree
        return made


class Primitive(Module, metaclass=_BuiltOnce):
    """A module that is no composition. Its declarations hold from the moment its ``__init__`` is done."""

    _declared: Mapping[str, Any] = MappingProxyType({})

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = {name: cls.__dict__[name] for name in DECLARED if name in cls.__dict__ and not isinstance(cls.__dict__[name], property)}
        cls._declared = MappingProxyType({**cls._declared, **own})
        for name in own:  # the property of Module answers from now on: it knows of tares
            delattr(cls, name)

    def _declare(self, name: str, value: Any) -> None:
        if self._cached_tree is not None:
            raise AttributeError(f"{name} of a module that is in use cannot be assigned; tare() rescales masses")
        self._declared = MappingProxyType({**self._declared, name: value})

    def _declaration(self) -> dict[str, Any]:
        """What the core takes of a user's class."""
        return {
            "sensitivity": float(self._declared.get("sensitivity", 1.0)),
            "sharpness": self._declared_sharpness(),
            "in_features": self._declared.get("in_features"),
            "out_features": self._declared.get("out_features"),
        }

    def _declared_sharpness(self) -> tuple[float, float, float] | None:
        declared = self._declared.get("sharpness")
        if declared is None:
            return None
        bounds = tuple(map(float, declared))
        if len(bounds) != 3:
            raise ValueError(f"sharpness must be (alpha, beta, gamma), got {declared!r}")
        return bounds

    def _kind(self) -> str:
        """The library's class that this one is, or derives from: the name the core knows it by."""
        return next(cls.__name__ for cls in type(self).__mro__ if cls.__module__.startswith("modula_rs."))

    def _behaviour(self) -> Self:
        """A copy for the tree to carry: what the module does, without the tree it is part of (that would be a cycle)."""
        carried = copy.copy(self)
        for name in ("_cached_tree", "_cached_parts", "_jitted"):
            carried.__dict__.pop(name, None)
        return carried
