"""The plan of a map: how its work and its data are distributed over devices. It is made from shapes, shardings and a mesh alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from modula_rs.backend.jax.sharded import costs, meshes, run
from modula_rs.backend.jax.sharded.lay import Axes, Share
from modula_rs.backend.jax.sharded.plan import SCHEMES, Exchange, Part
from modula_rs.norm import placement
from modula_rs.norm.table import Norm


class Set(NamedTuple):
    """Matrices of equal shape that are split alike, and how one device takes part in their computation.

    paths: the arrays. shape: the edges of a matrix, the shorter one first where tall matrices are transposed. number: of the matrices.
    split: the mesh axes that split them. scheme: one of :data:`modula_rs.backend.jax.sharded.plan.SCHEMES`. padding: the share of the slots
    of an exchange that is empty. bytes_in, bytes_out: what a device receives before its computation, and after it. flops: of a device.
    """

    paths: tuple[str, ...]
    shape: tuple[int, int]
    number: int
    split: str
    scheme: str
    padding: float
    bytes_in: float
    bytes_out: float
    flops: float


class Plan(NamedTuple):
    """The sets of a map, and the number of devices; ``print`` shows a table."""

    method: str
    devices: int
    mesh: str
    sets: tuple[Set, ...]

    @property
    def bytes(self) -> float:
        """What a device receives."""
        return sum(each.bytes_in + each.bytes_out for each in self.sets)

    @property
    def flops(self) -> float:
        """What a device computes."""
        return sum(each.flops for each in self.sets)

    def __str__(self) -> str:
        head = ("matrices", "number", "split", "scheme", "padding", "bytes in", "bytes out", "flops a device", "arrays")
        rows = [
            (
                f"{each.shape[0]} x {each.shape[1]}", str(each.number), each.split, each.scheme, f"{each.padding:.0%}",
                amount(each.bytes_in, "B"), amount(each.bytes_out, "B"), amount(each.flops, ""), ", ".join(each.paths),
            )
            for each in self.sets
        ]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)]
        schemes = dict.fromkeys(each.scheme for each in self.sets)
        total = f"together: {amount(self.bytes, 'B')} received, {amount(self.flops, '')} flops a device"
        return "\n".join([f"{self.method} on {self.mesh}", *lines, total, *(f"{name}: {SCHEMES[name]}" for name in schemes)])


def plan(norm: Norm, held: Sequence[placement.Held], given: Sequence[Any], shardings: Any, method: str, accuracy: str) -> Plan:
    """The plan of ``"dualize"``, or of ``"normalize"`` from estimates, for given arrays (or their shapes and dtypes)."""
    op = {"dualize": "direction", "normalize": "unit"}[method]
    where = placement.find(held, given, shardings)
    if where is None:
        sets = []
        for leaf, batch in enumerate(norm.batches):
            if batch.geometry == "spectral":
                short, long = sorted((batch.rows, batch.cols))
                work = costs.direction(short, long, op, accuracy) if method == "dualize" else costs.norm(short, long, warm=True)
                sets.append(Set((norm.paths[leaf],), (short, long), batch.count, "", "local", 0.0, 0.0, 0.0, batch.count * work))
        return Plan(method, 1, "one device", tuple(sets))
    layout = placement.Layout(tuple(held), where)
    batches, examples, paths = [], [], []
    for each, array in zip(held, given, strict=True):
        for leaf in each.leaves:
            if each.lay is not None:
                batches.append(layout.batch(leaf, norm.batches[leaf]))
                examples.append(array)
                paths.append(norm.paths[leaf])
    exchanges = run.planned(op, batches, examples, accuracy, warm=True)
    sets = [_set(exchange, part, paths, layout.sizes) for exchange in exchanges for part in exchange.parts]
    for batch, array, path in zip(batches, examples, paths, strict=True):
        if batch.geometry != "spectral":
            sets.append(_entries(batch.share, path, max(4, array.dtype.itemsize), layout.sizes))
    return Plan(method, prod(layout.sizes.values()), meshes.described(where.mesh), tuple(sets))


def _set(each: Exchange, part: Part, paths: Sequence[str], ways: dict[str, int]) -> Set:
    stack = each.stack
    every = prod(ways[name] for name in stack.blocks)  # devices with other matrices of the stack
    named = (("stack", stack.blocks), ("short", stack.short_axes), ("long", stack.long_axes))
    padding = 1 - part.number / part.slots if part.slots else 0.0
    return Set(
        tuple(paths[leaf] for leaf, _ in stack.leaves), (stack.short, stack.long), part.number * every, _split(named), part.scheme,
        padding, part.bytes_in, part.bytes_out, part.flops,
    )  # fmt: skip


def _entries(share: Share, path: str, word: int, ways: dict[str, int]) -> Set:
    """A table or a vector: two numbers for each row are summed over devices where rows are split."""
    whole = share.whole
    rows = whole.count * whole.rows / prod(ways[name] for name in (*share.over, *share.rows))
    moved = 2 * costs.reduced(prod(ways[name] for name in share.cols), rows * word) if share.cols else 0.0
    named = (("stack", share.over), ("rows", share.rows), ("columns", share.cols))
    flops = 3.0 * rows * whole.cols / prod(ways[name] for name in share.cols)
    scheme = "entries" if share.cols else "local"
    return Set((path,), (whole.rows, whole.cols), whole.count, _split(named), scheme, 0.0, moved, 0.0, flops)


def _split(named: Sequence[tuple[str, Axes]]) -> str:
    return ", ".join(f"{edge} over {' and '.join(axes)}" for edge, axes in named if axes) or "no"


def amount(number: float, unit: str) -> str:
    """A number with a prefix.

    >>> amount(1.836e6, "B"), amount(0, "B")
    ('1.84 MB', '0 B')
    """
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}{unit}".rstrip()
    return f"{number:.3g} {unit}".rstrip()
