"""What the program does with the parameters, collected while it is read."""

from __future__ import annotations

from typing import NamedTuple

from modula_rs.tracing.axes import Factor, Section, View

# The ways in which a program uses a parameter.
LINEAR, CONV, DEPTHWISE, EMBED, PLACES, BIAS, SCALE, UNKNOWN = [
    "linear",
    "conv",
    "depthwise",
    "embed",
    "places",
    "bias",
    "scale",
    "unknown",
]
MATRICES = (LINEAR, CONV, EMBED)  # the uses that make features; PLACES: a table of which a row is added at each place


class Use(NamedTuple):
    """One use of a parameter.

    ``roles`` pairs the parameter's digits with letters: i contracted (or looked up), o produced, . independent, k taps. A digit without a
    letter was chosen by an index or a scan. ``taken``: the sections chosen. ``seen``: the parameters on which the data that it meets
    depends. ``why``: what the program does, or for UNKNOWN why that says nothing.
    """

    kind: str
    roles: tuple[tuple[Factor, str], ...]
    taken: tuple[Section, ...]
    seen: int
    why: str


class Record:
    """Everything found, by parameter. While ``quiet`` is positive nothing is written down: the first passes through a loop's body."""

    def __init__(self, count: int) -> None:
        self.quiet = 0
        self.uses: list[list[Use]] = [[] for _ in range(count)]
        # Of features that a parameter made: the sections to which they are cut, by digit.
        self.cuts: list[dict[Factor, set[tuple[int, int]]]] = [{} for _ in range(count)]
        # Digits whose parts are put together again while still affine, as the halves of a rotary embedding: they are no parts.
        self.rejoined: list[set[Factor]] = [set() for _ in range(count)]
        # Digits of features on each of which a product of its own acts: experts, members of an ensemble.
        self.independent: list[set[Factor]] = [set() for _ in range(count)]
        # Digits of a vector, with the digits of other parameters along which it runs.
        self.alongside: list[set[tuple[Factor, int, Factor]]] = [set() for _ in range(count)]
        # Cuts of features whose place in the parameter is not known.
        self.lost: list[set[str]] = [set() for _ in range(count)]

    def use(self, view: View, kind: str, roles: list[tuple[Factor, str]], seen: int, why: str) -> None:
        """Writes a use down."""
        use = Use(kind, tuple(roles), view.taken, seen, why)
        if not self.quiet and use not in self.uses[view.leaf]:
            self.uses[view.leaf].append(use)

    def cut(self, leaf: int, sections: list[Section]) -> None:
        """Writes down that features are cut."""
        if not self.quiet:
            for factor, low, high in sections:
                if low is not None and high is not None:
                    self.cuts[leaf].setdefault(factor, set()).add((low, high))

    def rejoin(self, leaf: int, factor: Factor) -> None:
        """Writes down that parts of a digit are put together again."""
        if not self.quiet:
            self.rejoined[leaf].add(factor)

    def separate(self, leaf: int, factors: tuple[Factor, ...]) -> None:
        """Writes down that each index of the digits has a product of its own after it."""
        if not self.quiet:
            self.independent[leaf].update(factors)

    def along(self, leaf: int, factor: Factor, other: int, host: Factor) -> None:
        """Writes down that a vector's digit runs along a digit of another parameter."""
        if not self.quiet:
            self.alongside[leaf].add((factor, other, host))

    def lose(self, leaf: int, what: str) -> None:
        """Writes down a cut that cannot be attributed."""
        if not self.quiet:
            self.lost[leaf].add(what)
