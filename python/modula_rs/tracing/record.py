"""What the program does with the parameters, recorded while the program is read."""

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
MATRICES = (LINEAR, CONV, EMBED)  # the uses that make features. (PLACES is a table whose rows are added, one at each place.)


class Use(NamedTuple):
    """One use of a parameter.

    ``roles`` pairs the parameter's digits with letters: i contracted (or looked up), o produced, . independent, k taps. A digit without a
    letter was chosen by an index or a scan. ``taken``: the sections chosen. ``seen``: the parameters on which the data that the parameter
    meets depends. ``why``: what the program does, or for UNKNOWN the reason why this does not decide the kind. ``based``: a constant was
    added to the parameter before.
    """

    kind: str
    roles: tuple[tuple[Factor, str], ...]
    taken: tuple[Section, ...]
    seen: int
    why: str
    based: bool = False


class Record:
    """All uses, by parameter.

    While ``quiet`` is positive nothing is recorded, as in the first turns of a loop. While ``later`` is positive, data may depend on
    parameters through an earlier turn of a loop.
    """

    def __init__(self, count: int) -> None:
        self.quiet = self.later = 0
        self.uses: list[list[Use]] = [[] for _ in range(count)]
        # The sections to which the features that a parameter made are cut, by digit.
        self.cuts: list[dict[Factor, set[tuple[int, int]]]] = [{} for _ in range(count)]
        # Digits whose sections are joined again while they are affine, such as the halves of a rotary embedding: they are no parts.
        self.rejoined: list[set[Factor]] = [set() for _ in range(count)]
        # Digits of features that have a separate product for each index: experts, members of an ensemble.
        self.independent: list[set[Factor]] = [set() for _ in range(count)]
        # Digits of features whose indices were multiplied by data, one number for each.
        self.gated: list[set[Factor]] = [set() for _ in range(count)]
        # Digits that count products of data with data, such as the heads of an attention.
        self.heads: list[set[Factor]] = [set() for _ in range(count)]
        # Digits of a vector, with the digits of other parameters along which they run.
        self.alongside: list[set[tuple[Factor, int, Factor]]] = [set() for _ in range(count)]
        # The digits over which each loop runs, by parameter.
        self.loops: list[list[tuple[int, Factor]]] = []
        # Parameters that meet data which they have made themselves, in the same turn of a loop.
        self.fed = 0
        # Cuts of features whose place in the parameter is not known.
        self.lost: list[set[str]] = [set() for _ in range(count)]

    def use(self, view: View, kind: str, roles: list[tuple[Factor, str]], seen: int, why: str, based: bool = False) -> None:
        """Records a use."""
        self.fed |= 0 if self.later else seen & 1 << view.leaf
        use = Use(kind, tuple(roles), view.taken, seen, why, based)
        if not self.quiet and use not in self.uses[view.leaf]:
            self.uses[view.leaf].append(use)

    def cut(self, leaf: int, sections: list[Section]) -> None:
        """Records that features are cut."""
        if not self.quiet:
            for factor, low, high in sections:
                if low is not None and high is not None:
                    self.cuts[leaf].setdefault(factor, set()).add((low, high))

    def rejoin(self, leaf: int, factor: Factor) -> None:
        """Records that sections of a digit are joined again."""
        if not self.quiet:
            self.rejoined[leaf].add(factor)

    def separate(self, leaf: int, factors: tuple[Factor, ...]) -> None:
        """Records that each index of the digits is followed by a product of its own."""
        if not self.quiet:
            self.independent[leaf].update(factors)

    def loop(self, digits: list[tuple[int, Factor]]) -> None:
        """Records that a loop runs over these digits of parameters."""
        if not self.quiet and digits:
            self.loops.append(digits)

    def gate(self, leaf: int, factors: tuple[Factor, ...]) -> None:
        """Records that data multiplies features, with one number for each index of the digits."""
        if not self.quiet:
            self.gated[leaf].update(factors)

    def head(self, leaf: int, factors: tuple[Factor, ...]) -> None:
        """Records that each index of the digits has a product of data with data."""
        if not self.quiet:
            self.heads[leaf].update(factors)

    def along(self, leaf: int, factor: Factor, other: int, host: Factor) -> None:
        """Records that a vector's digit runs along a digit of another parameter."""
        if not self.quiet:
            self.alongside[leaf].add((factor, other, host))

    def lose(self, leaf: int, what: str) -> None:
        """Records a cut that cannot be attributed to a place in the parameter."""
        if not self.quiet:
            self.lost[leaf].add(what)
