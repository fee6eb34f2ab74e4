"""An array of a program as a multiple of other arrays, up to terms that are added."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

#: Dropout that keeps less than one over this is not recognised after a product with its mask.
_LARGEST_SHARE = 4.0

#: The number of terms that are remembered. A branch reads one of the last sums.
_TERMS = 8


class Logits(NamedTuple):
    """Logits that are products of ``size`` features, times ``scale``. ``arrays``: the parameters that made the factors, as bits."""

    scale: float
    size: int
    arrays: int


class Numbers:
    """Numbers for the arrays that are read more than once."""

    def __init__(self) -> None:
        self.marked = True  # whether arrays made now are numbered
        self._next: Iterator[int] = count()

    def bit(self) -> int:
        """The next number, as a bit."""
        return 1 << next(self._next)


class Stream:
    """The sum to which residual branches are added one after the other."""

    number = 0.0


class Node:
    """An array of the program.

    ``param``: the parameters that it is made of, as bits, if it is no data. ``value``: the number that it is everywhere, if it is a
    constant. ``bit``: its number among the arrays that are read more than once, else 0. ``above``: the arrays from which it is computed, as
    bits; ``mixed``: those that a weight has multiplied on the way; ``terms``: those of which it is a multiple, up to branches that were
    added, with the factors. ``factor``: the literal that multiplied it last; ``learned``: a parameter or a gate did as well; ``masked``: a
    mask did; ``grown``: the array of which it is a multiple by a literal above 1. (Dropout masks, and divides by the share that it keeps,
    which together is no factor on average.) ``last``: the parameters of the last products; ``looked``: the parameter whose rows it is a
    multiple of. ``scores``: products of data of which it is a multiple, up to terms that were added.
    """

    __slots__ = (
        "above", "bit", "data", "factor", "grown", "inputs", "last", "learned", "looked", "masked", "mixed", "param", "scores", "stream",
        "terms", "value",
    )  # fmt: skip

    def __init__(
        self, numbers: Numbers, inputs: Sequence[Node] = (), *, param: int = 0, data: bool = False, value: float | None = None
    ) -> None:
        self.inputs: tuple[Node, ...] = tuple(inputs)
        self.data: bool = data or any(node.data for node in inputs)
        self.param: int = 0 if self.data else param | union(node.param for node in inputs)
        self.value = value
        self.factor, self.learned, self.masked = 1.0, False, False
        self.grown: Node | None = None
        self.bit = numbers.bit() if self.data and numbers.marked else 0
        self.above: int = self.bit | union(node.above for node in inputs)
        self.mixed: int = union(node.mixed for node in inputs)
        self.terms: dict[int, float] = {self.bit: 1.0} if self.bit else {}
        self.last: int = union(node.last for node in inputs)
        self.looked = 0
        self.scores: tuple[Logits, ...] = ()
        self.stream: Stream | None = None

    def like(self, other: Node, factor: float = 1.0, learned: bool = False) -> Node:
        """This array, known to be ``factor`` times the other one."""
        self.factor, self.learned = other.factor * abs(factor), other.learned or learned
        self.include(other, factor)
        self.last, self.looked = other.last, other.looked
        self.masked, self.grown = other.masked, other.grown
        self.scores = tuple(own._replace(scale=own.scale * abs(factor)) for own in other.scores)
        return self

    def include(self, other: Node, factor: float = 1.0) -> None:
        """This array, known to be ``factor`` times the other one, up to terms that were added."""
        older = {bit: own * abs(factor) for bit, own in other.terms.items()}
        self.terms = dict(list({**older, **self.terms}.items())[-_TERMS:])
        self.stream = other.stream


def scaled(made: Node, name: str, values: Sequence[Node]) -> Node:
    """The product or the quotient of two arrays. Data that no weight has made, such as a mask or an angle, does not count as a factor."""
    left, right = values
    if left.data and right.data:
        if left.last and right.last:
            made.learned = True  # one is the gate of the other
            return made
        kept = left if left.last or name == "div" else right
        made.like(kept.grown or kept)
        made.masked = kept.grown is None
        return made
    if name == "div" and right.data:
        return made
    data, other = (left, right) if left.data else (right, left)
    value = abs(other.value or 1.0)
    factor = value if name == "mul" else 1 / value
    if data.masked and 1 < factor <= _LARGEST_SHARE:
        made.like(data)
        made.masked = False
        return made
    made.like(data, factor, learned=bool(other.param))
    made.grown = data if factor > 1 else None
    made.masked = data.masked or (not other.param and other.value is None)
    return made


def single(bits: int) -> bool:
    """Whether these bits are a single parameter."""
    return bits > 0 and bits & (bits - 1) == 0


def union(values: Iterable[int]) -> int:
    """All bits of some numbers."""
    made = 0
    for value in values:
        made |= value
    return made
