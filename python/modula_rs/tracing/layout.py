"""How an array is a batch of matrices: which digits of its axes are produced, contracted, or only count.

A layout is written with a letter for each axis of the array: ``i`` contracted (for a table: its rows), ``o`` produced, ``.`` independent,
``k`` taps of a kernel, ``l`` layers of a stack. An axis of length one takes any letter. ``o/3`` cuts an axis into three equal parts one
after the other, ``o/64+16+16`` into parts of these lengths. Parentheses give the digits of an axis, the outermost first, with their sizes:
``(o8 /3 o)`` is three parts interleaved in eight heads; one size can be left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from modula_rs.arrays import namespace_of

COUNTS = "l/.k"  # letters of the digits that only count blocks


class LayoutError(ValueError):
    """A layout that does not fit its array."""


@dataclass(frozen=True)
class Layout:
    """How an array is a batch of matrices.

    ``digits``: the shape to which the array is reshaped; ``axes``: the number of digits that come from each axis of the array; ``roles``: a
    letter for each digit. ``sections``: the lengths of uneven parts along digit ``cut``; empty if no parts are uneven.

    >>> thirds = parse_layout("io/3", (64, 192))
    >>> thirds.digits, thirds.roles, thirds.blocks
    ((64, 3, 64), 'i/o', ((3, 64, 64),))
    """

    shape: tuple[int, ...]
    digits: tuple[int, ...]
    axes: tuple[int, ...]
    roles: str
    cut: int = -1
    sections: tuple[int, ...] = ()

    def _size(self, letters: str) -> int:
        return prod(n for n, role in zip(self.digits, self.roles, strict=True) if role in letters)

    def axis(self, axis: int) -> list[tuple[str, int]]:
        """The letters and sizes of the digits of one axis, the outermost first."""
        start = sum(self.axes[:axis])
        places = range(start, start + self.axes[axis])
        return [(self.roles[at], self.digits[at]) for at in places]

    @property
    def count(self) -> int:
        """The number of blocks; if the parts are uneven, the number of blocks of one part."""
        return self._size(COUNTS)

    @property
    def copies(self) -> int:
        """The depth of the stack."""
        return self._size("l")

    @property
    def taps(self) -> int:
        """The number of taps of a kernel."""
        return self._size("k")

    @property
    def parts(self) -> int:
        """The number of matrices, uneven ones included, that are fused into one array."""
        return self._size("/") * max(len(self.sections), 1)

    @property
    def blocks(self) -> tuple[tuple[int, int, int], ...]:
        """(count, fan-out, fan-in) of each part; a single entry unless the parts are uneven."""
        made = []
        for part in self.sections or (0,):
            sizes = dict.fromkeys(".io", 1)
            for at, (n, role) in enumerate(zip(self.digits, self.roles, strict=True)):
                sizes["." if role in COUNTS else role] *= part if at == self.cut else n
            made.append((sizes["."], sizes["o"], sizes["i"]))
        return tuple(made)

    @property
    def inner_first(self) -> bool:
        """Whether the matrices lie in the array as (in, out)."""
        letters = [role for role in self.roles if role in "io"]
        return letters[:1] == ["i"] and letters == sorted(letters)

    def order(self, rows_first: bool = False) -> tuple[int, ...]:
        """The order of the digits in a batch of matrices: counting digits, then rows, then columns.

        A matrix and its transpose have the same singular values, so of the two orders the one that needs no data movement is taken. With
        ``rows_first`` the digits ``i`` are the rows, as in a table.
        """
        rank = {"i": 1, "o": 2} if rows_first or self.inner_first else {"o": 1, "i": 2}
        return tuple(sorted(range(len(self.roles)), key=lambda at: rank.get(self.roles[at], 0)))

    def moved(self, rows_first: bool = False) -> bool:
        """Whether the batch of matrices needs the elements in another order than their order in memory."""
        return self.order(rows_first) != tuple(range(len(self.roles)))

    def to_blocks(self, array: Any, rows_first: bool = False) -> list[Any]:
        """The array as batches (count, rows, columns), one for each uneven part.

        Args:
            array: an array of shape ``shape``, of any library.
            rows_first: as in ``order``.

        >>> import numpy as np
        >>> kernel = np.arange(12.0).reshape(2, 6)
        >>> parse_layout("io/3", (2, 6)).to_blocks(kernel)[0].shape
        (3, 2, 2)
        """
        order, split = self.order(rows_first), array.reshape(self.digits)
        made = []
        for part in self._slices():
            piece = split[part].transpose(order)
            rank = [self.roles[digit] for digit in order]
            counts = sum(role in COUNTS for role in rank)
            rows = counts + (rank.count(rank[counts]) if counts < len(rank) else 0)
            made.append(piece.reshape(prod(piece.shape[:counts]), prod(piece.shape[counts:rows]), prod(piece.shape[rows:])))
        return made

    def from_blocks(self, blocks: Sequence[Any], rows_first: bool = False) -> Any:
        """The array whose batches ``to_blocks`` returns.

        >>> import numpy as np
        >>> layout = parse_layout("o/2+1+1 i", (4, 3))
        >>> weight = np.arange(12.0).reshape(4, 3)
        >>> bool((layout.from_blocks(layout.to_blocks(weight)) == weight).all())
        True
        """
        order = self.order(rows_first)
        back = tuple(sorted(range(len(order)), key=lambda at: order[at]))
        pieces = []
        for part, block in zip(self._slices(), blocks, strict=True):
            sizes = list(self.digits)
            if self.sections:
                sizes[self.cut] = part[self.cut].stop - part[self.cut].start
            pieces.append(block.reshape([sizes[digit] for digit in order]).transpose(back))
        if len(pieces) == 1:
            return pieces[0].reshape(self.shape)
        return namespace_of(pieces).concatenate(pieces, axis=self.cut).reshape(self.shape)

    def _slices(self) -> list[tuple[slice, ...]]:
        whole = [slice(None)] * len(self.digits)
        if not self.sections:
            return [tuple(whole)]
        made, start = [], 0
        for n in self.sections:
            part = list(whole)
            part[self.cut] = slice(start, start + n)
            made.append(tuple(part))
            start += n
        return made

    def __str__(self) -> str:
        made, at = [], 0
        for count in self.axes:
            digits = range(at, at + count)
            at += count
            items = [self.roles[d] + (f"/{'+'.join(map(str, self.sections))}" if d == self.cut else "") for d in digits]
            if count == 2 and items[0] == "/":
                made.append(f"{items[1]}/{self.digits[digits[0]]}")
            elif count < 2:
                made.append("".join(items) or ".")
            else:
                made.append("(" + " ".join(_sized(item, self.digits[d]) for item, d in zip(items, digits, strict=True)) + ")")
        return " ".join(made) if any(len(item) > 1 for item in made) else "".join(made)


def _sized(item: str, size: int) -> str:
    letter, rest = item[0], item[1:]
    return f"{letter}{size}{rest}"


_ITEM = re.compile(r"(?P<letter>[io.kl/])(?P<size>\d*)(?:/(?P<parts>\d+(?:\+\d+)*))?")


def parse_layout(text: str, shape: Sequence[int]) -> Layout:
    """The layout that a text describes, for an array of the given shape.

    Args:
        text: for each axis a letter, a letter with parts, or a group in parentheses; blanks between them are allowed.
        shape: the shape of the array.

    Raises:
        LayoutError: the text is no layout, or does not fit the shape.

    >>> str(parse_layout("i (o8 /3 o)", (64, 384)))
    'i (o8 /3 o16)'
    """
    axes = re.findall(r"\([^)]*\)|[^\s()](?:\d|/\d[\d+]*)*", text)
    if "".join(axes).replace(" ", "") != text.replace(" ", ""):
        raise LayoutError(f"cannot read the layout {text!r}: each axis has one of the letters i o . k l, with parts as in 'o/3'")
    if len(axes) != len(shape):
        raise LayoutError(f"the layout {text!r} has {len(axes)} axes, but the array has shape {tuple(shape)}")
    digits: list[int] = []
    sections: tuple[int, ...] = ()
    roles, counts, cut = "", [], -1
    for axis, n in zip(axes, shape, strict=True):
        items = _items(axis, n, text)
        for letter, size, parts in items:
            if len(parts) > 1:
                if sections:
                    raise LayoutError(f"the layout {text!r} cuts two axes unevenly; only one can be")
                cut, sections = len(digits), parts
            digits.append(size)
            roles += letter
        counts.append(len(items))
    return Layout(tuple(shape), tuple(digits), tuple(counts), roles, cut, sections)


def _items(axis: str, n: int, text: str) -> list[tuple[str, int, tuple[int, ...]]]:
    """The digits of one axis: letter, size, lengths of uneven parts."""
    body = axis[1:-1] if axis.startswith("(") else axis
    found = list(_ITEM.finditer(body))
    if "".join(match[0] for match in found) != body.replace(" ", "") or not found:
        raise LayoutError(f"cannot read {axis!r} in the layout {text!r}")
    sizes = [int(match["size"]) if match["size"] else None for match in found]
    if len(found) == 1 and sizes[0] is None and found[0]["letter"] == "/":
        raise LayoutError(f"cannot read {axis!r} in the layout {text!r}: parts are parts of a letter, as in 'o/3'")
    known = prod(size for size in sizes if size is not None)
    if sizes.count(None) > 1 or n % max(known, 1) or (None not in sizes and known != n):
        raise LayoutError(f"{axis!r} in the layout {text!r} does not fit an axis of length {n}")
    items: list[tuple[str, int, tuple[int, ...]]] = []
    for match, given in zip(found, sizes, strict=True):
        size = given if given is not None else n // known
        parts = tuple(int(part) for part in (match["parts"] or "").split("+") if part)
        if len(parts) > 1 and sum(parts) == size:
            items.append((match["letter"], size, parts))
        elif len(parts) > 1 or (parts and (not parts[0] or size % parts[0])):
            raise LayoutError(f"{axis!r} in the layout {text!r}: an axis of length {size} cannot be cut so")
        elif parts:
            items += [("/", parts[0], ()), (match["letter"], size // parts[0], ())]
        else:
            items.append((match["letter"], size, ()))
    return [item for item in items if item[1] != 1]


def make_layout(
    shape: Sequence[int], digits: Sequence[Sequence[tuple[str, int]]], cut: tuple[int, int] | None = None, sections: Sequence[int] = ()
) -> Layout:
    """A layout from the digits (letter, size) of each axis; neighbouring digits of one axis with the same letter are merged.

    ``cut``: the axis, and the position in it, of the digit with uneven parts.
    """
    sizes: list[int] = []
    roles, counts, place = "", [], -1
    for axis, items in enumerate(digits):
        start = len(sizes)
        for at, (letter, size) in enumerate(items):
            here = cut == (axis, at)
            if size == 1 and not here:
                continue
            if len(sizes) > start and roles[-1] == letter and letter != "/" and place != len(sizes) - 1 and not here:
                sizes[-1] *= size
                continue
            if here:
                place = len(sizes)
            sizes.append(size)
            roles += letter
        counts.append(len(sizes) - start)
    return Layout(tuple(shape), tuple(sizes), tuple(counts), roles, place, tuple(sections))
