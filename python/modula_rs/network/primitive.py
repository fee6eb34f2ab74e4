"""What atoms and bonds have in common: the values that their class declares, and a tree of one node."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modula_rs.checks import number, shown, size
from modula_rs.network.module import Module

#: The values that a user's class may declare, as attributes of the class or of an instance.
DECLARED = ("mass", "sensitivity", "sharpness", "in_features", "out_features", "at_zero")


class _BuiltOnce(type):
    """Builds the tree as soon as an object is made, so that a bad argument raises in the line that gave it."""

    if not TYPE_CHECKING:  # a type checker would take the type of every module from here

        def __call__(cls, *args: Any, **options: Any) -> Any:
            made = super().__call__(*args, **options)
            _ = made._tree
            return made

    @property
    def __signature__(cls) -> inspect.Signature:
        own = inspect.signature(cls.__init__)  # type: ignore[misc]
        return own.replace(parameters=list(own.parameters.values())[1:])


class Primitive(Module, metaclass=_BuiltOnce):
    """An atom or a bond. Its declared values cannot change once its ``__init__`` has returned."""

    _declared: Mapping[str, Any] = {}  # never changed, only replaced

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = {name: cls.__dict__[name] for name in DECLARED if name in cls.__dict__ and not isinstance(cls.__dict__[name], property)}
        cls._declared = {**cls._declared, **own}
        for name in own:  # so that Module's property is found instead, which includes tare()
            delattr(cls, name)

    def _declare(self, name: str, value: Any) -> None:
        if self._cached_made is not None:
            raise AttributeError(f"{name} of a module that is in use cannot be assigned; tare() rescales masses")
        self._declared = {**self._declared, name: value}

    @property
    def at_zero(self) -> float:
        """The norm of the output at an input of zero (for an atom, with weights of norm at most 1): 0 unless declared."""
        return number("at_zero", self._declared.get("at_zero", 0.0))

    @at_zero.setter
    def at_zero(self, value: float) -> None:
        self._declare("at_zero", value)

    def _declaration(self) -> dict[str, Any]:
        """The values that the core takes for a user's class."""
        return {
            "sensitivity": number("sensitivity", self._declared.get("sensitivity", 1.0)),
            "sharpness": self._declared_sharpness(),
            "in_features": self._declared_size("in_features"),
            "out_features": self._declared_size("out_features"),
            "at_zero": self.at_zero,
        }

    def _declared_sharpness(self) -> tuple[float, float, float] | None:
        declared = self._declared.get("sharpness")
        return None if declared is None else bounds(declared)

    def _declared_size(self, name: str) -> int | None:
        declared = self._declared.get(name)
        return None if declared is None else size(name, declared)

    def _kind(self) -> str:
        """The name of the library's class that this object belongs to or derives from, by which the core knows it."""
        return next(cls.__name__ for cls in type(self).__mro__ if cls.__module__.startswith("modula_rs."))


def bounds(sharpness: Any) -> tuple[float, float, float]:
    """The three bounds of a declared sharpness, checked."""
    if not isinstance(sharpness, tuple | list) and not hasattr(sharpness, "shape"):
        raise TypeError(f"sharpness must be (alpha, beta, gamma), got {shown(sharpness)}")
    if len(sharpness) != 3:
        raise ValueError(f"sharpness must be (alpha, beta, gamma), got {shown(sharpness)}")
    alpha, beta, gamma = (number("a bound of sharpness", bound) for bound in sharpness)
    return alpha, beta, gamma
