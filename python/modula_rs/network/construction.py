"""The calls that made a tree, so that a copy in another process can be made by the same calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from modula_rs import _core


class Call(NamedTuple):
    """One call: a method of :class:`_core.Tree`, the results of earlier calls (by number) that it takes, and its other arguments.

    For an atom or a bond the method is "primitive", and the argument is the object that builds the tree.
    """

    method: str
    parts: tuple[int, ...]
    arguments: tuple[Any, ...]


class Made:
    """A tree and the call that made it. A part that is used twice is kept once."""

    __slots__ = ("arguments", "method", "parts", "tree")

    def __init__(self, tree: _core.Tree, method: str, parts: Sequence[Made], *arguments: Any) -> None:
        self.tree, self.method, self.parts, self.arguments = tree, method, tuple(parts), arguments

    @classmethod
    def primitive(cls, builder: Any) -> Made:
        """The tree of one atom or bond, from an object that can build it. The object must not hold a tree itself: that would be a cycle."""
        return cls(builder._build(), "primitive", (), builder)

    @classmethod
    def tuple(cls, members: Sequence[Made]) -> Made:
        """A tuple of members, all of which get the same input."""
        return cls(_core.Tree.tuple([member.tree for member in members]), "tuple", members)

    def compose(self, inner: Made) -> Made:
        """This tree, applied to the output of ``inner``."""
        return Made(self.tree.compose(inner.tree), "compose", (self, inner))

    def changed(self, method: str, argument: Any) -> Made:
        """The tree after a method with one argument: ``power``, ``named``, ``tare_absolute`` or ``tare_relative``."""
        return Made(getattr(self.tree, method)(argument), method, (self,), argument)

    def calls(self) -> list[Call]:
        """All calls, in order; the last one made this tree. There is no recursion, because a chain may be as long as memory allows."""
        numbers: dict[int, int] = {}
        calls: list[Call] = []
        waiting = [self]
        while waiting:
            made = waiting[-1]
            missing = [part for part in made.parts if id(part) not in numbers]
            if id(made) in numbers:
                waiting.pop()
            elif missing:
                waiting += missing
            else:
                waiting.pop()
                numbers[id(made)] = len(calls)
                calls.append(Call(made.method, tuple(numbers[id(part)] for part in made.parts), made.arguments))
        return calls

    @classmethod
    def again(cls, calls: Sequence[Sequence[Any]]) -> Made:
        """The tree that these calls make."""
        results: list[Made] = []
        for method, numbers, arguments in calls:
            parts = [results[number] for number in numbers]
            if method == "primitive":
                results.append(cls.primitive(*arguments))
            elif method == "tuple":
                results.append(cls.tuple(parts))
            elif method == "compose":
                results.append(parts[0].compose(parts[1]))
            else:
                results.append(parts[0].changed(method, *arguments))
        return results[-1]
