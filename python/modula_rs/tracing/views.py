"""The arrays of a traced network as leaves of a norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modula_rs.arrays import Array
from modula_rs.backend.jax.sharded.lay import Lay
from modula_rs.tracing.layout import COUNTS
from modula_rs.tracing.read import TraceError
from modula_rs.tracing.reading import Leaf, Role


class ArrayView:
    """One array as leaves of the norm: one leaf for each part of a different size. Appends the rows of these leaves to the table."""

    def __init__(self, leaf: Leaf, rows: list[Any]) -> None:
        row, start = len(rows), sum(shares is None for *_, shares in rows)  # a further use has a row, but no leaf of its own
        self.shapes: list[tuple[int, int, int]] = []
        self.own: list[Any] = []  # the rows of its leading use
        for number, role in enumerate(leaf.roles):
            own = self._rows(leaf, role, row if number else None)
            if number and (len(own) > 1 or len(self.shapes) > 1 or not _lie_alike(leaf.roles[0], role)):
                first = leaf.roles[0]
                raise TraceError(
                    f"{leaf.path} {leaf.shape}: it is used as {first.kind} {first.layout} and as {role.kind} {role.layout}, whose matrices "
                    f"lie differently; give it one layout by a rule that ends with !"
                )
            if not number:
                self.shapes, self.own = self._shapes(role), own
            rows += own
        self.rows = range(start, start + len(self.shapes))
        self.layout = leaf.layout
        self.rows_first = leaf.kind == "Embed"
        self.vectors = leaf.kind in ("Bias", "Scale")
        self.inner_first = leaf.kind in ("Linear", "Conv2D") and leaf.roles[0].layout.inner_first
        outputs_last = bool(leaf.roles) and (self.rows_first or leaf.roles[0].layout.inner_first)
        self.output_axis = 2 if outputs_last else 1
        self.stack = [rows[row + part][3] for part in range(len(self.shapes))]

    def _shapes(self, role: Role) -> list[tuple[int, int, int]]:
        """(count, rows, columns) of the blocks of each part, in the array's order of elements."""
        inner_first = role.kind == "Embed" or role.layout.inner_first
        made = []
        for count, out, inner in role.layout.blocks:
            if role.kind in ("Bias", "Scale"):
                made.append((count, 1, out * inner))
            else:
                made.append((count, inner, out) if inner_first else (count, out, inner))
        return made

    def _rows(self, leaf: Leaf, role: Role, shares: int | None) -> list[Any]:
        units = role.unit if isinstance(role.unit, tuple) else (role.unit,)
        parts = max(len(role.layout.sections), 1)
        copies, made = role.number // parts, []
        for part, ((count, height, width), unit) in enumerate(zip(self._shapes(role), units, strict=True)):
            path = f"{leaf.path}[{part}]" if parts > 1 else leaf.path
            blocks = (role.geometry, count // copies, height, width)
            numbers = blocks[1] * height * width
            made.append((path, role.kind, [numbers], copies, blocks, unit, role.mass / role.number, role.gain, shares))
        return made

    def lay(self, name: str = "") -> Lay | None:
        """How the digits of the array count blocks, rows and columns, for the map called ``name``; None for a frozen array."""
        if self.layout is None:
            return None
        layout, order = self.layout, self.layout.order(self.rows_first)
        free = [at for at in order if layout.roles[at] not in COUNTS]  # rows first, then columns
        rows = [at for at in free if layout.roles[at] == layout.roles[free[0]]] if free and not self.vectors else []
        roles = "".join("k" if role in COUNTS else "r" if at in rows else "c" for at, role in enumerate(layout.roles))
        if name == "dualize" and self.inner_first and len(self.shapes) == 1 and self.shapes[0][1] == self.shapes[0][2]:
            roles = roles.translate(str.maketrans("rc", "cr"))  # as `_turned` does
        return Lay(layout.digits, layout.axes, roles, layout.cut, layout.sections)

    def open(self, array: Array, name: str = "") -> Sequence[Array]:
        """The arrays of the norm's leaves, for the map called ``name``."""
        if self.layout is None:
            return []
        blocks = self._turned(self.layout.to_blocks(array, self.rows_first), name)
        return [block.reshape((copies, -1) if copies != 1 else (-1,)) for block, copies in zip(blocks, self.stack, strict=True)]

    def close(self, leaves: Sequence[Array], array: Array, name: str = "") -> Array:
        """The array that these leaves make, after the map called ``name``."""
        assert self.layout is not None
        blocks = self._turned([leaf.reshape(shape) for leaf, shape in zip(leaves, self.shapes, strict=True)], name)
        return self.layout.from_blocks(blocks, self.rows_first)

    def _turned(self, blocks: Sequence[Array], name: str) -> Sequence[Array]:
        """Blocks that are (in, out) turned to (out, in) and back, for ``dualize``, if they are square.

        An oblong matrix is orthogonalised along its shorter edge, so it and its transpose give the same numbers. A square matrix and its
        transpose give the same numbers only to the accuracy of ``dualize``; with this turn a kernel has the update of a Linear to rounding.
        """
        if name != "dualize" or not self.inner_first:
            return blocks
        return [block.swapaxes(-1, -2) if block.shape[-1] == block.shape[-2] else block for block in blocks]


def _lie_alike(lead: Role, other: Role) -> bool:
    """Whether both uses take the elements of the array in the same order."""
    first, second = lead.layout.order(lead.kind == "Embed"), other.layout.order(other.kind == "Embed")
    return (lead.layout.digits, first) == (other.layout.digits, second) or not (
        lead.layout.moved(lead.kind == "Embed") or other.layout.moved(other.kind == "Embed")
    )
