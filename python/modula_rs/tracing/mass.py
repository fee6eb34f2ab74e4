"""The mass of each array by its place in the program: before the first mixing, between, or last.

The places are found by dataflow, never by name or size. An array is at the *input* if the data that it meets has not met a matrix yet. It
is at the *output* if its product meets no matrix. Arrays between are *blocks* where they repeat, as a stack under a scan or as numbered
modules, and *layers* elsewhere. Only the numbering is read from the paths.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from modula_rs.checks import shown
from modula_rs.tracing.record import EMBED, PLACES, Use

INPUT, BLOCKS, LAYERS, OUTPUT = "input", "blocks", "layers", "output"
MATRICES = ("Linear", "Conv2D", "Embed")


#: The largest number of double precision.
LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True)
class Masses:
    """The masses of the places of a network.

    ``input``, ``blocks``, ``output``: the mass of all matrices there together, whatever their number, so that depth does not change the
    share of the blocks (Large et al. 2024, section 4). ``layers``: the mass of each matrix that is between and belongs to no block.
    ``vectors``: the mass of a gain or a bias, as a share of a matrix's mass at its place.

    ``branches`` is no mass. The targets of arrays in a residual branch ``x + c * f(x)`` with a literal ``c`` are divided by ``c`` to this
    power: at 1 they move ``x`` as if there were no factor, so that branches with a factor of 1 / L do not slow down as the depth L grows,
    and at 0 the factor is ignored.
    """

    input: float = 1.0
    blocks: float = 5.0
    output: float = 1.0
    layers: float = 1.0
    vectors: float = 0.1
    branches: float = 1.0

    @classmethod
    def of(cls, given: Weights | None) -> Masses:
        """The masses that a user gave, by their names in a mapping; the others have their defaults.

        Raises:
            ValueError: a name is none of a mass, or a mass is negative or not finite.

        >>> Masses.of({"blocks": 2}).blocks
        2.0
        """
        if given is None or isinstance(given, Masses):
            return given or cls()
        if not isinstance(given, Mapping):
            raise TypeError(f"masses must be a mapping from places to numbers, such as {{'blocks': 2}}, got {type(given).__name__}")
        names = [field.name for field in fields(cls)]
        if unknown := [name for name in given if name not in names]:
            raise ValueError(f"masses are those of {', '.join(names)}, got {', '.join(map(repr, unknown))}")
        return cls(**given)

    def __str__(self) -> str:
        return ", ".join(f"{field.name} {getattr(self, field.name):g}" for field in fields(self))

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
                raise TypeError(f"the mass of {field.name} must be a number, got {type(value).__name__}")
            if not 0 <= value <= LARGEST:
                raise ValueError(f"the mass of {field.name} must be finite and not negative, got {shown(value)}")
            object.__setattr__(self, field.name, float(value))


#: Masses as a user gives them.
Weights = Masses | Mapping[str, float]


class Member(NamedTuple):
    """An array of the norm. ``uses``: its uses in the program, none if only a rule gives its kind; ``copies``: the depth of its stack."""

    path: str
    kind: str
    copies: int
    uses: tuple[Use, ...]

    @property
    def matrix(self) -> bool:
        """Whether this is a matrix or a table, not a vector."""
        return self.kind in MATRICES

    @property
    def mixing(self) -> bool:
        """Whether it makes features, as do matrices and tables whose rows are looked up. Tables of positions are only added."""
        return self.matrix and not any(use.kind == PLACES for use in self.uses[:1])


class Places:
    """The places of the arrays of a network. Sets of arrays are kept as bits, in the order of the parameters."""

    def __init__(self, members: Sequence[Member | None]) -> None:
        self.members = members
        self.mixing = _bits(leaf for leaf, member in enumerate(members) if member and member.mixing)
        self.inputs = _bits(leaf for leaf in _each(self.mixing) if self._before(leaf) == 0 and self._uses(leaf))
        self.needed = 0
        for leaf in _each(self.mixing):
            for use in self._uses(leaf):
                self.needed |= use.seen & ~(1 << leaf)
        self.blocks = _blocks(members, self.mixing & ~self.inputs)

    def _uses(self, leaf: int) -> tuple[Use, ...]:
        member = self.members[leaf]
        return member.uses if member else ()

    def _before(self, leaf: int) -> int:
        """The matrices on which the data that an array meets depends."""
        return self._uses(leaf)[0].seen & self.mixing & ~(1 << leaf) if self._uses(leaf) else 0

    def of(self, leaf: int, at: int = 0) -> str:
        """The place of an array in use number ``at``."""
        between = BLOCKS if self.blocks >> leaf & 1 else LAYERS
        found = self._uses(leaf)
        if not found:
            return between
        if at:  # a further use, such as a tied table's use as the last matrix
            seen = found[min(at, len(found) - 1)].seen
            later = any(use.seen & seen == seen for other in _each(self.mixing & ~(1 << leaf)) for use in self._uses(other))
            return between if later else OUTPUT
        if between == BLOCKS:
            return BLOCKS
        table = bool(self.mixing >> leaf & 1) and found[0].kind == EMBED
        if not self.needed >> leaf & 1 and not table:
            return OUTPUT
        first = self.inputs >> leaf & 1 if self.mixing >> leaf & 1 else not self._before(leaf) & ~self.inputs
        return INPUT if first else LAYERS


def weigh(places: Sequence[str], matrices: Sequence[int], vectors: Sequence[int], masses: Masses) -> list[float]:
    """The masses of arrays; each is the mass of all copies and parts together.

    Args:
        places: the place of each array.
        matrices: the number of matrices in each array, copies and parts; 0 for vectors.
        vectors: the number of vectors in each array; 0 for matrices.
        masses: the masses of the places.
    """
    total = {INPUT: masses.input, BLOCKS: masses.blocks, OUTPUT: masses.output}
    number: dict[str, int] = defaultdict(int)
    for place, count in zip(places, matrices, strict=True):
        number[place] += count
    made = []
    for place, matrix, vector in zip(places, matrices, vectors, strict=True):
        each = masses.layers if place == LAYERS else total[place] / max(number[place], 1)
        made.append(each * (matrix + vector * masses.vectors))
    return made


def _bits(leaves: Iterable[int]) -> int:
    made = 0
    for leaf in leaves:
        made |= 1 << leaf
    return made


def _each(bits: int) -> list[int]:
    return [leaf for leaf in range(bits.bit_length()) if bits >> leaf & 1]


def _numbers(segment: str) -> list[tuple[str, str]]:
    """The names of a path segment with "#" in place of a number, each with the number. Haiku numbers block, block_1, block_2."""
    made = [(f"{segment}_#", "")]
    if number := re.fullmatch(r"(.*?)(\d+)(\D*)", segment):
        made.append((f"{number[1]}#{number[3]}", number[2]))
    return made


def _blocks(members: Sequence[Member | None], between: int) -> int:
    """The arrays of repeated blocks: stacks, and the members of a numbered container if they hold several matrices or modules."""
    made = {leaf for leaf, member in enumerate(members) if member and member.copies > 1}
    families: dict[tuple[str, str], dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for leaf, member in enumerate(members):
        segments = member.path.split("/") if member else []
        for at, segment in enumerate(segments[:-1]):
            for name, number in _numbers(segment):
                families["/".join(segments[:at]), name][number].append((leaf, len(segments) - at - 1))
    for members_of in families.values():
        repeated = [block for block in members_of.values() if any(between >> leaf & 1 for leaf, _ in block)]
        if len(repeated) > 1 and any(_holds_modules(block, between) for block in repeated):
            made |= {leaf for block in repeated for leaf, _ in block if between >> leaf & 1 or not _mixing(members[leaf])}
    return _bits(made)


def _mixing(member: Member | None) -> bool:
    return member is not None and member.mixing


def _holds_modules(block: Sequence[tuple[int, int]], between: int) -> bool:
    """Whether a member of a container, given as its arrays and their depth in it, is more than a single layer."""
    matrices = [depth for leaf, depth in block if between >> leaf & 1]
    return len(matrices) > 1 or any(depth > 1 for depth in matrices)
