"""The head of a language model whose weights are measured row by row."""

from __future__ import annotations

from modula_rs.arrays import Array
from modula_rs.checks import size
from modula_rs.network.atom import _BuiltIn as _BuiltInAtom
from modula_rs.network.builtin_atoms import Linear
from modula_rs.random import Source


class Unembed(_BuiltInAtom):
    """``x -> W x``, measured row by row: the map from features to logits as the transpose of an :class:`Embed`.

    The weight W has shape (num_embed, d_embed). Its norm is ``d_embed`` times the largest RMS of a row, the operator norm from RMS to the
    largest entry: no logit moves by more than the norm of an update times the RMS of the input. The norm of a Linear bounds the RMS of
    the logits instead. Rows start as Gaussian vectors of RMS ``1 / d_embed``. ``dualize`` gives each row of a gradient the same length, so
    rare tokens move as far as frequent ones. The sensitivity is 1, the sharpness (0, 1, 0).

    Args:
        num_embed: number of features of the output, one for each token.
        d_embed: number of features of the input. The output comes first, as in :class:`Linear`; in the code of the paper the input comes
            first.
        mass: share of feature learning, in proportion to the masses of the other atoms; 0 keeps the weights as they are.
        share: atoms with the same name here, and weights of the same shape, use one array; None for an array of its own.

    Input of shape (..., d_embed), output of shape (..., num_embed).

    Raises:
        TypeError: a size that is no integer, a mass that is no number, a share that is no string; at a call, a tuple.
        ValueError: a negative size; a mass that is negative or not finite; at a call, an input whose last axis is not ``d_embed``.

    Source: Newhouse et al., "Training Transformers with Enforced Lipschitz Constants" (2025), code.

    >>> import numpy as np, modula_rs as mr
    >>> m = mr.Unembed(100, 16)
    >>> w = m.initialize(0)
    >>> w[0].shape, m(np.ones((2, 16), np.float32), w).shape, round(m.norm(w), 6)
    ((100, 16), (2, 100), 1.0)
    """

    def __init__(self, num_embed: int, d_embed: int, mass: float = 1.0, share: str | None = None) -> None:
        super().__init__((size("num_embed", num_embed), size("d_embed", d_embed)), mass, share)

    apply = Linear.apply
    apply_vjp = Linear.apply_vjp

    def draw(self, source: Source, copies: tuple[int, ...]) -> Array:
        rows = source.normal((*copies, *self.shape))
        features = self.shape[1]
        if not features:
            return rows
        return rows / (source.xp.sqrt((rows * rows).mean(axis=-1, keepdims=True)) * features)
