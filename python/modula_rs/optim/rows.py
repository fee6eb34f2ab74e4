"""A second moment after orthogonalising: every row of a matrix is divided by its root mean square over time, and the norm is put back."""

from __future__ import annotations

from typing import Any, NamedTuple

from modula_rs import arrays
from modula_rs.arrays import Array, widen
from modula_rs.backend import Batch
from modula_rs.checks import shown
from modula_rs.norm.maps import Vectors
from modula_rs.norm.methods import Normed
from modula_rs.optim.automatic import on_explicit_mesh, opened
from modula_rs.optim.averages import _share


class RowState(NamedTuple):
    """For every leaf of matrices the average square of each row, (matrices, rows), else None; and estimates of singular vectors."""

    squares: list[Array | None]
    vectors: Vectors


def row_moments_init(module: Normed[Any], w: Any, *, shardings: Any = None) -> RowState:
    """The first state for :func:`row_moments`; shardings: see :meth:`modula_rs.Module.normalize`."""
    given, _ = opened(module, w, "weight")
    kinds = list(zip(module.norm_table.batches, module.output_axes, strict=True))

    def squares(given: list[Array]) -> list[Array | None]:
        leaves = zip(module._leaves(given), kinds, strict=True)
        return [_no_squares(leaf, *kind) if kind[0].geometry == "spectral" else None for leaf, kind in leaves]

    layout = module._layout(given, module._in_order(shardings, w), "weight")
    lying = layout and [layout.rows(leaf, *kind) if kind[0].geometry == "spectral" else None for leaf, kind in enumerate(kinds)]
    return RowState(on_explicit_mesh(squares, lying, given), module.cold_vectors(w, shardings=shardings))


def _no_squares(leaf: Array, batch: Batch, axis: int) -> Array:
    """Zero for each row. It is computed from the weights, so that it lies where their rows lie."""
    blocks = leaf.reshape(batch.count, batch.rows, batch.cols)
    return ((blocks != blocks).any(axis=3 - axis) & False).astype(arrays.working_dtype(leaf.dtype))


def row_moments(
    module: Normed[Any],
    update: Any,
    state: RowState,
    beta2: float = 0.95,
    target_norm: Any = 1.0,
    *,
    nonfinite: str = "raise",
    shardings: Any = None,
) -> tuple[Any, RowState]:
    """A dualized update with the rows of each matrix divided by their root mean square over time, at norm ``target_norm``.

    A row is what one output gets, whatever the layout of the array. Afterwards the update is normalised: every matrix has its target norm
    again. Tables and vectors, whose rows all have RMS 1 after ``dualize``, are normalised only. In an exact orthogonalisation a matrix with
    no more outputs than inputs has rows of equal length, so this changes matrices with more outputs than inputs, and others by no more
    than the error of ``dualize``.

    Args:
        module: a module or a traced network.
        update: a dualized update.
        state: from :func:`row_moments_init` or the step before.
        beta2: the share of the old average in the new one, from 0 to 1.
        target_norm, nonfinite, shardings: see :meth:`modula_rs.Module.normalize`.

    Raises:
        TypeError, ValueError: arrays that do not fit the network or the state, a ``beta2`` out of range.

    Source: Li et al., "NorMuon" (2025), with the modular norm in place of the Frobenius norm.

    >>> import modula_rs as mr
    >>> m = mr.Linear(2, 64) @ mr.Linear(64, 2)
    >>> w = m.initialize(0)
    >>> update, state = mr.optim.row_moments(m, m.dualize(m.initialize(1)), mr.optim.row_moments_init(m, w))
    >>> round(m.norm(update), 2), [bool((abs(abs(u) - abs(u).mean()) < 0.2 * abs(u).mean()).all()) for u in update]
    (1.0, [False, False])
    """
    if not isinstance(state, RowState):
        raise TypeError(f"the state must be the RowState of the step before, got {shown(state)}")
    given, structured = opened(module, update, "update")
    beta2 = _share("beta2", beta2)
    table, number = module.norm_table, len(module.norm_table.leaves)
    if len(state.squares) != number:
        raise ValueError(f"expected {number} squares in the state, one for each leaf, got {len(state.squares)}")
    module._check_together(("update", given), ("squares", state.squares))

    def divided(given: list[Array], squares: list[Array | None], beta2: Any) -> tuple[list[Array], list[Array | None]]:
        made, averages = [], []
        for leaf, batch, axis, square in zip(module._leaves(given), table.batches, module.output_axes, squares, strict=True):
            result, average = (leaf, None) if square is None else _divided(leaf, batch, axis, square, beta2)
            made.append(result)
            averages.append(average)
        return list(module._arrays(made, given, "normalize")), averages

    arrays_made, squares = on_explicit_mesh(divided, (given, state.squares), given, list(state.squares), beta2)
    options = {"nonfinite": nonfinite, "shardings": shardings}
    normed, vectors = module.normalize(structured(arrays_made), target_norm, vectors=state.vectors, **options)
    return normed, RowState(squares, vectors)


def _divided(leaf: Array, batch: Batch, axis: int, square: Array, beta2: Any) -> tuple[Array, Array]:
    """The leaf with its rows divided, and the next average square of every row. ``axis``: of the outputs in (matrices, rows, columns)."""
    xp = arrays.namespace_of(leaf)
    blocks = widen(leaf).reshape(batch.count, batch.rows, batch.cols)
    if not blocks.size:
        return leaf, square
    average = beta2 * square + (1 - beta2) * (blocks * blocks).mean(axis=3 - axis)
    root = xp.expand_dims(xp.sqrt(average), 3 - axis)
    made = xp.where(root > 0, blocks / xp.where(root > 0, root, 1), 0)
    return made.reshape(leaf.shape).astype(leaf.dtype), average.astype(square.dtype)
