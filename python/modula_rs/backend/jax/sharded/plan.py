"""Which leaves go together, and how: plain Python from batches and their shares. A :class:`Plan` can be made and read without devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import ceil, prod
from typing import Any, NamedTuple

from modula_rs.backend import Batch
from modula_rs.backend.jax.sharded import costs
from modula_rs.backend.jax.sharded.lay import Axes, Share

#: The largest share of the slots of an exchange that may be padding, if another scheme has no more to compute.
MOST_PADDING = 0.25

#: The schemes in words.
SCHEMES = {
    "local": "each device computes what it holds",
    "deal": "whole matrices are dealt out over devices, and go back",
    "gather": "each device receives the whole matrices",
    "gram": "Gram matrices are summed over devices, all else is local",
    "power": "vectors are summed over devices, matrices stay",
    "entries": "a number for each row is summed over devices",
}


class Stack(NamedTuple):
    """Leaves of equal matrices that are split alike, as one stack of matrices whose shorter edge comes first.

    leaves: the number of each leaf, and whether its matrices are transposed to join the stack. number: the matrices that a device holds,
    in whole or in part. short, long: the edges of a whole matrix; ``short_axes``, ``long_axes``, ``blocks``, ``copies``: mesh axes.
    """

    leaves: tuple[tuple[int, bool], ...]
    number: int
    short: int
    long: int
    short_axes: Axes
    long_axes: Axes
    blocks: Axes
    copies: Axes
    itemsize: int


class Part(NamedTuple):
    """Matrices of a stack, and their scheme. over: the mesh axes along which copies are dealt out. slots: the number with padding."""

    scheme: str
    number: int
    slots: int = 0
    over: Axes = ()
    bytes_in: float = 0.0
    bytes_out: float = 0.0
    flops: float = 0.0

    @property
    def cost(self) -> tuple[float, float]:
        """What decides between schemes: first the work of a device, then the bytes that it receives."""
        return self.flops, self.bytes_in + self.bytes_out


class Exchange(NamedTuple):
    """A stack, and its parts in order."""

    stack: Stack
    parts: tuple[Part, ...]


def stacks(batches: Sequence[Batch], itemsizes: Sequence[int], whole: bool) -> list[Stack]:
    """The leaves of matrices, in stacks. whole: whether the operation needs whole matrices, so that tall matrices can be transposed."""
    found: dict[Any, list[tuple[int, bool]]] = {}
    for leaf, (batch, size) in enumerate(zip(batches, itemsizes, strict=True)):
        if batch.geometry != "spectral":
            continue
        share: Share = batch.share
        edges = [(share.whole.rows, share.rows), (share.whole.cols, share.cols)]
        tall = whole and edges[0][0] > edges[1][0]
        if tall:
            edges.reverse()
        order = None if whole else share.columns  # estimates of singular vectors are split like the columns
        found.setdefault((*edges, share.over, share.copies, size, order), []).append((leaf, tall))
    made = []
    for ((short, short_axes), (long, long_axes), blocks, copies, size, _), leaves in found.items():
        count = sum(batches[leaf].count for leaf, _ in leaves)
        made.append(Stack(tuple(leaves), count, short, long, short_axes, long_axes, blocks, copies, size))
    return made


def whole_matrices(stack: Stack, ways: dict[str, int], op: str, accuracy: str, gram: bool, back: bool = True) -> Exchange:
    """How a stack gets the operation that needs whole matrices: the parts with the least work, and of these with the fewest bytes.

    gram: whether the Gram scheme may be taken. back: whether the results are matrices, which go back to where the weights are.
    """

    def size(axes: Axes) -> int:
        return prod(ways[name] for name in axes)

    split, count = stack.short_axes + stack.long_axes, stack.number
    matrix = stack.short * stack.long * stack.itemsize
    work = costs.direction(stack.short, stack.long, op, accuracy)

    def dealt(number: int, over: Axes) -> Part:
        among, across = size(split), size(over)
        slots = ceil(number / (among * across)) * among * across
        each = slots / (among * across)  # whole matrices of a device
        there = costs.received(among, each * matrix)
        home = there + costs.received(across, slots * matrix / among)
        return Part("deal", number, slots, over, there, home if back else 0.0, each * work)

    def undealt(number: int) -> Part:
        if not split:
            return Part("local", number, number, flops=number * work)
        return Part("gather", number, number, (), costs.received(size(split), number * matrix), 0.0, number * work)

    choices: list[tuple[Part, ...]] = [(undealt(count),)]
    for over in _subsets(stack.copies):
        along = size(split) * size(over)
        if along == 1:
            continue
        rest = count % along
        padded = dealt(count, over)
        if (padded.slots - count) / padded.slots <= MOST_PADDING or (split and not over):
            choices.append((padded,))
        if rest and count > rest:
            choices.append((dealt(count - rest, over), undealt(rest)))
    best = min(choices, key=_cost)
    turned = bool(stack.short_axes)  # the short edge is split: an exchange makes it the long edge, and another one goes back
    if gram and op == "direction" and split and not (turned and (stack.long_axes or stack.long % size(split))) and count < size(split):
        word, among = max(4, stack.itemsize), size(split)
        turn = costs.received(among, count * matrix / among) if turned else 0.0
        sums = costs.reduced(among, (costs.stages(accuracy) * stack.short**2 + 1) * count * word)
        flops = count * costs.direction(stack.short, stack.long, op, accuracy, among)
        part = Part("gram", count, count, (), sums + turn, turn, flops)
        if _is_better(part.cost, _cost(best)):
            best = (part,)
    return Exchange(stack, best)


def norms(stack: Stack, ways: dict[str, int], warm: bool) -> Exchange:
    """How a stack gets its norms: without exchange of matrices."""
    rows, cols = (prod(ways[name] for name in axes) for axes in (stack.short_axes, stack.long_axes))
    flops = stack.number * costs.norm(stack.short / rows, stack.long / cols, warm)
    if rows * cols == 1:
        return Exchange(stack, (Part("local", stack.number, stack.number, flops=flops),))
    moved = stack.number * costs.power_step(stack.short, stack.long, rows, cols, max(4, stack.itemsize))
    return Exchange(stack, (Part("power", stack.number, stack.number, (), moved, 0.0, flops),))


def _is_better(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether one pair of work and bytes is better in one of them, and at most twice as bad in the other."""
    (work, moved), (other_work, other_moved) = one, other
    return (moved < other_moved and work <= 2 * other_work) or (work < other_work and moved <= 2 * other_moved)


def _cost(parts: tuple[Part, ...]) -> tuple[float, float]:
    work, moved = zip(*(part.cost for part in parts), strict=True)
    return sum(work), sum(moved)


def _subsets(axes: Axes) -> Iterator[Axes]:
    for number in range(len(axes) + 1):
        yield from combinations(axes, number)
