"""How an array is a batch of blocks, and where the blocks lie if the array is split over a mesh: plain Python, without devices.

An array's axes are cut into *digits*, the outermost first, and each digit counts blocks ("k"), rows ("r") or columns ("c"). A mesh axis
that splits an axis of the array splits the digits from the outermost on. If a mesh axis would split two digits at once, the array is
gathered along that mesh axis first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

from modula_rs.backend import Batch

#: Names of mesh axes, the outermost first.
Axes = tuple[str, ...]
#: The mesh axes over which each axis of an array is split.
Spec = tuple[Axes, ...]


class Lay(NamedTuple):
    """How one array is batches of blocks, one batch for each leaf of the norm that it holds.

    digits: the shape to which the array is reshaped. axes: the number of digits from each axis of the array. roles: for each digit "k", "r"
    or "c". cut, sections: the digit that is cut into leaves of different sizes, and these sizes; without them the array is one leaf.
    """

    digits: tuple[int, ...]
    axes: tuple[int, ...]
    roles: str
    cut: int = -1
    sections: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        ends = [sum(self.axes[: at + 1]) for at in range(len(self.axes))]
        return tuple(prod(self.digits[end - own : end]) for own, end in zip(self.axes, ends, strict=True))

    @property
    def order(self) -> tuple[int, ...]:
        """The order of the digits in a batch of blocks: those that count blocks, then rows, then columns."""
        return tuple(sorted(range(len(self.roles)), key=lambda at: "krc".index(self.roles[at])))


def plain(shape: Sequence[int], batch: Batch) -> Lay:
    """The lay of an array whose elements are in the order of its blocks.

    >>> plain((5, 3, 3, 16, 8), Batch("spectral", 45, 16, 8)).roles
    'kkkrc'
    """
    roles, at = [""] * len(shape), len(shape)
    for role, size in (("c", batch.cols), ("r", batch.rows)):
        reached = 1
        while at > 0 and reached < size:
            at -= 1
            reached *= shape[at]
            roles[at] = role
        if reached != size:
            raise ValueError(f"an array of shape {tuple(shape)} is no batch of {batch.rows} x {batch.cols}")
    roles[:at] = "k" * at
    return Lay(tuple(shape), (1,) * len(shape), "".join(roles))


class Split(NamedTuple):
    """Where an array lies. digits: the mesh axes that split each digit. gathered: along each axis of the array, the mesh axes along which
    the array is gathered first. copies: the mesh axes along which devices hold equal values, then."""

    digits: Spec
    gathered: Spec
    copies: Axes

    def of(self, lay: Lay, role: str) -> Axes:
        """The mesh axes that split the digits of a role."""
        return tuple(name for own, letter in zip(self.digits, lay.roles, strict=True) if letter == role for name in own)


def split(lay: Lay, spec: Spec, sizes: Mapping[str, int]) -> Split:
    """Where an array lies, from the mesh axes ``spec`` that split its axes and the sizes of the mesh axes.

    >>> split(plain((16, 64, 32), Batch("spectral", 16, 64, 32)), (("x",), (), ("y",)), {"x": 4, "y": 2, "z": 2})
    Split(digits=(('x',), (), ('y',)), gathered=((), (), ()), copies=('z',))
    """
    digits: list[Axes] = [()] * len(lay.digits)
    gathered: list[Axes] = []
    end = 0
    for own, names in zip(lay.axes, spec, strict=True):
        at, end = end, end + own
        left = [name for name in names if sizes[name] > 1]
        room = lay.digits[at] if own else 1
        while left and at < end:
            if room == 1:
                at += 1
                room = lay.digits[at] if at < end else 1
            elif at != lay.cut and room % sizes[left[0]] == 0:
                room //= sizes[left[0]]
                digits[at] += (left.pop(0),)
            else:
                break
        gathered.append(tuple(left))
    used = {name for own in digits for name in own}
    return Split(tuple(digits), tuple(gathered), tuple(name for name, size in sizes.items() if size > 1 and name not in used))


class Merged(NamedTuple):
    """An axis that merges digits, as the number of blocks or columns does: their sizes, and the mesh axes that split each of them."""

    digits: tuple[int, ...]
    axes: Spec

    @property
    def together(self) -> Axes:
        """The mesh axes that split the merged axis."""
        return tuple(name for own in self.axes for name in own)

    def spec(self, sizes: Mapping[str, int]) -> Axes:
        """The mesh axes over which an array that has this axis can be split as a whole: those whose parts lie one after the other."""
        found: Axes = ()
        for digit, own in zip(self.digits, self.axes, strict=True):
            if digit > 1:
                found += own
                if prod(sizes[name] for name in own) < digit:
                    break
        return found


class Share(NamedTuple):
    """What one device holds of a batch of blocks: the whole batch, and where its blocks, rows and columns lie."""

    whole: Batch
    blocks: Merged
    columns: Merged
    rows: Axes
    copies: Axes
    sizes: tuple[tuple[str, int], ...]

    @property
    def over(self) -> Axes:
        """The mesh axes that split the blocks."""
        return self.blocks.together

    @property
    def cols(self) -> Axes:
        """The mesh axes that split the columns."""
        return self.columns.together

    def ways(self, axes: Axes) -> int:
        """The number of devices along mesh axes."""
        sizes = dict(self.sizes)
        return prod(sizes[name] for name in axes)


def share(batch: Batch, lay: Lay, where: Split, sizes: Mapping[str, int], part: int = 0) -> Batch:
    """The batch that one device holds, with its :class:`Share`; ``part`` is the number of the leaf in the array."""
    digits = [lay.sections[part] if at == lay.cut and lay.sections else size for at, size in enumerate(lay.digits)]

    def merged(role: str) -> Merged:
        own = [(digits[at], where.digits[at]) for at in lay.order if lay.roles[at] == role]
        return Merged(tuple(size for size, _ in own), tuple(axes for _, axes in own))

    blocks, rows, columns = merged("k"), merged("r"), merged("c")
    whole = Batch(batch.geometry, prod(blocks.digits), prod(rows.digits), prod(columns.digits))
    if whole[1:4] != batch[1:4]:
        raise ValueError(f"a batch of {batch[1:4]} does not fit the digits {tuple(digits)} {lay.roles}")
    found = Share(whole, blocks, columns, rows.together, where.copies, tuple(sizes.items()))
    return Batch(
        batch.geometry,
        batch.count // found.ways(found.over),
        batch.rows // found.ways(found.rows),
        batch.cols // found.ways(found.cols),
        found,
    )
