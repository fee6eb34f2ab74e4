"""How arrays of weights are made of leaves of a norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from modula_rs.arrays import Array


class View(Protocol):
    """How one array of weights is made of leaves of the norm. It has several leaves if it holds several matrices side by side."""

    rows: range
    #: The axis of the outputs in the leaves' blocks (count, rows, columns): 1, or 2 where the rows are inputs.
    output_axis: int

    def lay(self, name: str = "") -> Any:
        """How the array's axes count blocks, rows and columns, for the map called ``name``; None if the array is frozen.

        A :class:`modula_rs.backend.jax.sharded.lay.Lay`.
        """
        ...

    def open(self, array: Array, name: str = "") -> Sequence[Array]:
        """The arrays of the leaves whose numbers in the norm are ``rows``, for the map called ``name``."""
        ...

    def close(self, leaves: Sequence[Array], array: Array, name: str = "") -> Array:
        """The array that these leaves make, in the shape and dtype of ``array``, after the map called ``name``."""
        ...


class Shifted:
    """A view whose leaves have other numbers in the norm."""

    def __init__(self, view: View, start: int) -> None:
        self.rows = range(start, start + len(view.rows))
        self.open, self.close, self.output_axis = view.open, view.close, view.output_axis
        self.lay = view.lay
