"""Launches that find spectral norms without estimates, by repeated squaring of the Gram matrix."""

from __future__ import annotations

from . import params
from .choose import chunk_of, fused_edge
from .launches import Builder, Operand
from .orthogonal import Stack, small

#: The number of squarings. After seven the bracket of the norm is narrower than 1 % for every spectrum (spectral.cu).
SQUARINGS = 7


def squarings(stack: Stack, chunk: int, norms: int) -> None:
    """Stores spectral norms as doubles at ``norms``. The Frobenius norms of R, R^2, R^4, ..., R^128 bracket them (spectral.cu)."""
    builder = stack.builder
    x, r, w = stack.allocate(stack.wide, chunk), stack.allocate(stack.square, chunk), stack.allocate(stack.square, chunk)
    level_bytes = 8 * chunk * stack.pieces
    squares = builder.allocate(level_bytes * (SQUARINGS + 1))
    for start in range(0, stack.count, chunk):
        count = min(chunk, stack.count - start)
        stack.pack(start, count, x)
        stack.symmetric(count, x, x, r, gram=True, partial=squares)
        for level in range(SQUARINGS):
            now = squares + level * level_bytes
            result = 0 if level + 1 == SQUARINGS else w
            stack.symmetric(count, r, r, result, alpha=stack.root, squares=now, partial=now + level_bytes)
            r, w = w, r
        builder.launch(
            "spectral", "norm_from_powers", (count, 1), threads=32, squares=squares, frobenius=stack.frobenius + 8 * start,
            norms=norms + 8 * start, levels=SQUARINGS + 1, matrices=chunk, count=stack.pieces, root=stack.root, size=stack.size,
        )  # fmt: skip


def spectral_norms(builder: Builder, operand: Operand, members: list[tuple[int, int]], entries: int, norms: int, normalize: bool) -> bool:
    """Stores spectral norms as doubles at ``norms``. With ``normalize``, returns whether the launches also store the rescaled matrices."""
    n, _ = sorted((operand.rows, operand.cols))
    edge = fused_edge(operand, len(members), 1, builder.device, 1, SQUARINGS)
    if edge:
        task = params.NORMALIZE if normalize else params.NORM
        steps = -(-SQUARINGS // 4)
        small(builder, operand, entries, len(members), edge, 1, task, norms=norms, steps=steps, restart=steps)
        return normalize
    stack = Stack(builder, operand, members, entries, 1)
    squarings(stack, chunk_of(n, len(members), 1, builder.device), norms)
    return False
